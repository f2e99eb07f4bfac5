"""What is under examination: a chat template, alone or with the tokenizer and the directory that it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, meta

from punie_mlx.chat.alone import Alone
from punie_mlx.chat.render import Message, encode, load_tokenizer, read_template, render_as_given
from punie_mlx.doctor.findings import Shown, Tokens
from punie_mlx.doctor.jinja_text import Text
from punie_mlx.errors import ConfigError, DataError
from punie_mlx.toolcalls import detect
from punie_mlx.toolcalls.detect import Detection
from punie_mlx.toolcalls.wire import Format

_EXTENSIONS = ("jinja2.ext.loopcontrols",)
_GENERATION = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # transformers' own tags


@dataclass(frozen=True)
class Rendering:
    """What a template made of messages: `text`, or the `error` that it raised and no text."""

    text: str = ""
    error: str | None = None

    @property
    def failed(self) -> bool:
        return self.error is not None


@dataclass(frozen=True)
class Specimen:
    """A template under examination.

    tokenizer: the model's own, with this template put into it, or an `Alone`. directory: of the model, where there is
    one. name: what to call it in messages.
    """

    template: str
    tokenizer: Any
    name: str
    directory: Path | None = None
    _rendered: dict[str, Rendering] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of_text(cls, template: str, name: str = "the template") -> Specimen:
        """A template alone."""
        return cls(template, Alone(template), name)

    @classmethod
    def of_file(cls, file: Path, model: Path | None = None) -> Specimen:
        """The template in `file`, with the tokenizer of `model` if given. Raises `ConfigError`, `ModelError`."""
        template = read_template(file)
        if model is None:
            return cls.of_text(template, str(file))
        return cls.of_model(model).with_template(template, str(file))

    @classmethod
    def of_model(cls, model: Path) -> Specimen:
        """The tokenizer of a model directory, and its template; that is "" where it has none. Raises `ModelError`."""
        tokenizer = load_tokenizer(Path(model), needs_template=False)
        template = getattr(tokenizer, "chat_template", None)
        if isinstance(template, Mapping):
            template = template.get("tool_use") or template.get("default")
        return cls(template or "", tokenizer, str(model), Path(model))

    def with_template(self, template: str, name: str | None = None) -> Specimen:
        """The same with another template: the tokenizer is loaded anew, and this one stays as it is."""
        if self.directory is None:
            return Specimen.of_text(template, name or self.name)
        tokenizer = load_tokenizer(self.directory, needs_template=False)
        tokenizer.chat_template = template
        return Specimen(template, tokenizer, name or self.name, self.directory)

    @property
    def has_vocabulary(self) -> bool:
        return not isinstance(self.tokenizer, Alone)

    @cached_property
    def vocabulary(self) -> Mapping[str, int]:
        """Token ids by spelling; empty for a template alone."""
        return self.tokenizer.get_vocab() if self.has_vocabulary else {}

    @cached_property
    def detection(self) -> Detection:
        """The wire formats that the template shows."""
        return detect.examine(self.template, self.vocabulary)

    @cached_property
    def wire(self) -> Format | None:
        """The one wire format that the template shows, with its own markers; None where none or several fit."""
        try:
            return self.detection.wire()
        except ConfigError:
            return None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        **template_kwargs: Any,
    ) -> Rendering:
        """What the template makes of `messages` exactly as they are given."""
        key = repr((messages, tools, add_generation_prompt, template_kwargs))
        if key not in self._rendered:
            try:
                text = render_as_given(
                    self.tokenizer, messages, tools, add_generation_prompt=add_generation_prompt, **template_kwargs
                )
                self._rendered[key] = Rendering(text)
            except DataError as e:
                self._rendered[key] = Rendering(error=str(e))
        return self._rendered[key]

    def tokens(self, text: str) -> Tokens:
        """The tokens of `text`, each with its spelling; none for a template alone."""
        if not self.has_vocabulary:
            return ()
        return tuple((i, self.tokenizer.decode([i])) for i in encode(self.tokenizer, text))

    def show(self, label: str, text: str) -> Shown:
        """`text` as evidence, with its tokens where they are known; "…" stands for what was cut out and is none."""
        return Shown(label, text, tuple(t for part in text.split("…") for t in self.tokens(part)))

    @cached_property
    def syntax_error(self) -> str:
        """Why the template cannot be compiled, whatever the messages; "" where it can."""
        error = self.render([{"role": "user", "content": "Aye?"}]).error or ""
        return error if error.startswith(("TemplateSyntaxError", "TemplateAssertionError")) else ""

    @cached_property
    def variables(self) -> frozenset[str]:
        """What the template reads that it may not have set itself: its options, among others."""
        try:
            parsed = Environment(extensions=_EXTENSIONS).parse(_GENERATION.sub("", self.template))
        except TemplateError:
            return frozenset(re.findall(r"(?<![\w.'\"])\w+", Text(self.template).code))
        return frozenset(meta.find_undeclared_variables(parsed))

    def mentions(self, *variables: str) -> list[str]:
        """Those of `variables` that the template reads."""
        return [v for v in variables if v in self.variables]
