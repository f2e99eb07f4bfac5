"""The grammar of a turn where some schema cannot be one: that parameter takes its widest form, and it is said.

    asked = ask("qwen3_coder", tools, Constraint("required"), tokens=tokens, refused=compiler)
    asked.lark, asked.relaxed

`relaxed` names every parameter that may come out wider than its schema allows, and why: because the schema is none
(`$ref` to nothing), because it holds a keyword that no grammar here keeps, or because the engine of the grammar refuses
it, which `refused` says. The others are held to their schemas all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from punie_mlx.errors import ConfigError
from punie_mlx.toolcalls.calls import Tool
from punie_mlx.toolcalls.grammar import ANSWER, Constraint, offered, write
from punie_mlx.toolcalls.schema import branches, proper_kind
from punie_mlx.toolcalls.wire import Format

EXTRA = "additionalProperties"
Refused = Callable[[str], str]


@dataclass(frozen=True)
class Relaxed:
    """A parameter that the grammar holds less narrowly than its schema. `parameter` is empty for a whole schema."""

    tool: str
    parameter: str
    reason: str


@dataclass(frozen=True)
class Asked:
    """A grammar in llguidance's Lark syntax, and what it does not hold."""

    lark: str
    relaxed: tuple[Relaxed, ...] = ()


def ask(
    format: Format,
    tools: Sequence[Tool],
    constraint: Constraint,
    *,
    tokens: Collection[str] = (),
    refused: Refused = lambda lark: "",
) -> Asked:
    """The narrowest grammar that can be had. `refused` says why a grammar cannot be used, or nothing.

    Raises `ConfigError` where there is none at all: a format without a grammar, a choice of a tool that is not there.
    """
    return _Asking(format, tools, constraint, tokens, refused).asked()


class _Asking:
    """Writes the grammar of one turn, with ever wider parameters until one can be used."""

    def __init__(
        self, format: Format, tools: Sequence[Tool], constraint: Constraint, tokens: Collection[str], refused: Refused
    ) -> None:
        self._format, self._tokens, self._refused = format, tokens, refused
        self._constraint = constraint
        self._tools = {t.name: t for t in tools}
        self._callable = [t.name for t in offered(tools, constraint)] if constraint.choice != "none" else []
        self._notes: dict[tuple[str, str], str] = {}
        self._unheld: dict[tuple[str, str], dict[str, None]] = {}

    def asked(self) -> Asked:
        lark, why = self._try()
        if why:
            self._widen_what_fails()
            lark, why = self._try()
        while why and (largest := self._largest()):
            for place in largest:
                self._widen(place, f"all schemas together are too much for one grammar: {why}")
            lark, why = self._try()
        if why:
            raise ConfigError(f"no grammar of these tools can be used: {why}")
        let_pass = {p: f"not held by the grammar: {', '.join(keys)}" for p, keys in self._unheld.items() if keys}
        notes = {**let_pass, **self._notes}
        return Asked(lark, tuple(Relaxed(*place, reason) for place, reason in notes.items()))

    def _try(self, tools: Sequence[Tool] | None = None, constraint: Constraint | None = None) -> tuple[str, str]:
        """The grammar and why it cannot be used."""
        tools = list(self._tools.values()) if tools is None else tools
        try:
            lark, rules = write(self._format, tools, constraint or self._constraint, tokens=self._tokens)
        except ConfigError as e:
            if self._format.grammar is None:
                raise
            return "", str(e)
        self._unheld = rules.unheld
        return lark, self._refused(lark)

    # ---- which parameters ----

    def _widen_what_fails(self) -> None:
        if self._constraint.json_schema is not None:
            self._widen_if_alone((ANSWER, ""))
        for name in self._callable:
            if self._alone(self._tools[name]):
                for place in self._places(name):
                    self._widen_if_alone(place)

    def _places(self, name: str) -> list[tuple[str, str]]:
        tool = self._tools[name]
        found = dict.fromkeys([*tool.properties, *tool.required])
        extra = [EXTRA] if isinstance(tool.parameters.get(EXTRA), Mapping) else []
        return [(name, parameter) for parameter in [*found, *extra]]

    def _widen_if_alone(self, place: tuple[str, str]) -> None:
        if why := self._alone_at(place):
            self._widen(place, why)

    def _alone_at(self, place: tuple[str, str]) -> str:
        """Why the schema of one parameter cannot be used by itself."""
        name, parameter = place
        if name == ANSWER:
            return self._try([], replace(self._constraint, choice="auto", allowed=None))[1]
        tool = self._tools[name]
        keep = [parameter] if parameter in tool.properties else []
        extra = parameter == EXTRA and not keep
        alone = {
            **tool.parameters,
            "properties": {k: tool.properties[k] for k in keep},
            "required": [] if extra else [parameter],
            EXTRA: tool.parameters.get(EXTRA) if extra else False,
        }
        return self._alone(Tool(name, tool.description, alone))

    def _alone(self, tool: Tool) -> str:
        return self._try([tool], Constraint("required", parallel=False))[1]

    def _largest(self) -> list[tuple[str, str]]:
        """The larger half of what is not wide yet."""
        places = [p for name in self._callable for p in self._places(name)]
        places += [(ANSWER, "")] if self._constraint.json_schema is not None else []
        left = [p for p in places if p not in self._notes]
        left.sort(key=lambda place: -len(json.dumps(self._schema(place), default=repr)))
        return left[: (len(left) + 1) // 2]

    # ---- how wide ----

    def _schema(self, place: tuple[str, str]) -> Any:
        name, parameter = place
        if name == ANSWER:
            return self._constraint.json_schema
        tool = self._tools[name]
        if parameter in tool.properties or parameter != EXTRA:
            return tool.properties.get(parameter, True)
        return tool.parameters.get(EXTRA)

    def _widen(self, place: tuple[str, str], why: str) -> None:
        """Put the narrowest wide form that can be used in place of the schema of a parameter."""
        self._notes[place] = why
        before = self._schema(place)
        for wide in self._wider(place, before):
            self._put(place, wide)
            if not self._alone_at(place):
                return

    def _wider(self, place: tuple[str, str], schema: Any) -> Iterator[Any]:
        """Its types alone, then anything at all."""
        if place[0] == ANSWER:
            yield {}
            return
        root = self._tools[place[0]].parameters
        kinds = [proper_kind(b) for b in branches(schema, root)] if isinstance(schema, Mapping) else []
        if kinds and all(k in _KINDS for k in kinds):
            yield {"type": list(dict.fromkeys(kinds))}
        yield {}

    def _put(self, place: tuple[str, str], schema: Any) -> None:
        name, parameter = place
        if name == ANSWER:
            self._constraint = replace(self._constraint, json_schema=schema)
            return
        tool = self._tools[name]
        if parameter == EXTRA and parameter not in tool.properties:
            parameters = {**tool.parameters, EXTRA: schema or True}
        else:
            parameters = {**tool.parameters, "properties": {**tool.properties, parameter: schema}}
        self._tools[name] = Tool(name, tool.description, parameters)


_KINDS = ("null", "boolean", "integer", "number", "array", "object", "string")
