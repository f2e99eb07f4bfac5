"""The JSON Schema of a case, for editors and other programs: data/suites/schema.json.

    punie-mlx suite schema > data/suites/schema.json

It is made from the models that read a suite, and each field is described by the docstring below it. What one field
says of another (a tool that is expected must be offered) only `punie-mlx suite check` knows.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from punie_mlx.corpus import suite
from punie_mlx.corpus.suites import matchers

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def json_schema() -> dict[str, Any]:
    """The JSON Schema of one line of a suite."""
    schema = suite.Case.model_json_schema()
    schema["required"] = [k for k in schema["required"] if k != "query"]  # or `messages`, says `oneOf`
    for module in (matchers, suite):
        for model, field, text in _docstrings(module):
            owner = schema if model == suite.Case.__name__ else schema["$defs"].get(model, {})
            if found := owner.get("properties", {}).get(field):
                found["description"] = text
    return {"$schema": DIALECT, **schema, "title": "A case of a suite"}


def _docstrings(module: ModuleType) -> Iterator[tuple[str, str, str]]:
    """Class, field and docstring of each field that has one."""
    for model in ast.parse(inspect.getsource(module)).body:
        if not isinstance(model, ast.ClassDef):
            continue
        for pair in zip(model.body, model.body[1:], strict=False):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=field)), ast.Expr(value=ast.Constant(value=str(text))):
                    yield model.name, field, inspect.cleandoc(text)
