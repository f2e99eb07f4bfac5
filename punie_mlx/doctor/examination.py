"""One visit to the doctor: all that was asked for is looked at, and what was found is put in order of harm."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from punie_mlx.doctor import flags, table
from punie_mlx.doctor.findings import Check, Examined, examine
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.errors import ConfigError

STATIC = ("template", "round-trip", "vocabulary")
NEEDS = {
    **dict.fromkeys(STATIC, "a model directory or --template FILE"),
    "adapter": "--adapter DIR", "data": "--data DATA", "behaviour": "--probe", "server": "--url URL",
}  # fmt: skip
"""What is given so that an area is looked at."""
UNRENDERED = ("two-templates", "ids-out-of-range")
"""Checks that look at no rendering."""


@dataclass(frozen=True)
class Asked:
    """What to look at, each where it is given.

    probe: load the model, with its adapter, and see what it writes. only, without: ids of checks.
    """

    specimen: Specimen | None = None
    adapter: Path | None = None
    data: Path | None = None
    probe: bool = False
    url: str | None = None
    served: str | None = None
    api_key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    rows: int = 200
    only: Collection[str] = ()
    without: Collection[str] = ()

    def __post_init__(self) -> None:
        """Raises `ConfigError`."""
        known = {c.id: c.area for c in table.checks()}
        for name in (*self.only, *self.without):
            if name not in known:
                raise ConfigError(f"there is no check {name!r}: `punie-mlx doctor --list` names them all")
        if both := sorted({*self.only} & {*self.without}):
            raise ConfigError(f"the check {both[0]} is both asked for and left out: give --check or --skip")
        if self.specimen is None and self.url is None:
            raise ConfigError("nothing to look at: give a model directory, --template FILE or --url URL")
        directory = self.specimen.directory if self.specimen else None
        for option, given in (("--probe", self.probe), ("--adapter", self.adapter)):
            if given and directory is None:
                raise ConfigError(f"{option} needs the model: give its directory")
        if self.data and self.specimen is None:
            raise ConfigError("--data needs a template to hold the rows against: give a model directory or --template")
        for name in self.only:
            if known[name] not in self._areas:
                raise ConfigError(f"the check {name} would not be made: give {NEEDS[known[name]]}, too")

    @property
    def _areas(self) -> set[str]:
        """What is looked at."""
        given = {"adapter": self.adapter, "data": self.data, "behaviour": self.probe, "server": self.url}
        return {*(STATIC if self.specimen else ()), *(area for area, value in given.items() if value)}

    def checks(self, *areas: str) -> list[Check]:
        """Those of `areas` that are wanted."""
        every = table.checks(*areas)
        return [c for c in every if (not self.only or c.id in self.only) and c.id not in self.without]


def visit(asked: Asked, tell: Callable[[str], None] = lambda _: None) -> Examined:
    """Look at all that is asked for; `tell` hears what comes next where that takes time.

    Raises `PunieError` where something cannot be looked at at all.
    """
    found = Examined()
    if asked.specimen is not None:
        found += _static(asked.specimen, asked)
        for look in (_adapter, _data, _behaviour):
            found += look(asked.specimen, asked, tell)
    if asked.url is not None:
        found += _server(asked.url, asked, tell)
    return found


def static(specimen: Specimen) -> Examined:
    """All that template, tokenizer and vocabulary show by themselves."""
    return _static(specimen, Asked(specimen))


def _static(specimen: Specimen, asked: Asked) -> Examined:
    """Of a template that renders nothing, only what can be told without a rendering."""
    wanted, able, why = asked.checks(*STATIC), None, ""
    if not specimen.template.strip():
        able, why = ("template-missing", *UNRENDERED), "there is no chat template"
    elif specimen.syntax_error:
        able, why = ("render-error", *UNRENDERED), "the template cannot be compiled: render-error says so"
    found = examine(specimen, [c for c in wanted if able is None or c.id in able])
    if able is not None:
        found += Examined(skipped=tuple((c.id, why) for c in wanted if c.id not in able))
    if not specimen.template.strip():
        return found
    return found + Examined(facts={"subject": specimen.name, **flags.facts(specimen)})


def _adapter(specimen: Specimen, asked: Asked, tell: Callable[[str], None]) -> Examined:
    if asked.adapter is None:
        return Examined()
    from punie_mlx.doctor.adapter import AdapterSubject

    return examine(AdapterSubject(specimen, asked.adapter), asked.checks("adapter"))


def _data(specimen: Specimen, asked: Asked, tell: Callable[[str], None]) -> Examined:
    if asked.data is None:
        return Examined()
    from punie_mlx.doctor.data import DataSubject

    tell(f"reading rows of {asked.data}")
    return examine(DataSubject(specimen, asked.data, asked.rows), asked.checks("data"))


def _behaviour(specimen: Specimen, asked: Asked, tell: Callable[[str], None]) -> Examined:
    if not asked.probe or specimen.directory is None:
        return Examined()
    from punie_mlx import direct
    from punie_mlx.doctor.probe import probe

    tell(f"loading {specimen.directory}")
    model = direct.Model(specimen.directory, asked.adapter)
    tell("asking the model for calls")
    probed = probe(model, specimen)
    found = examine(probed, asked.checks("behaviour"))
    return found + Examined(facts={"behaviour": probed.to_json()})


def _server(url: str, asked: Asked, tell: Callable[[str], None]) -> Examined:
    from punie_mlx.doctor.server_client import base_url
    from punie_mlx.doctor.server_session import ask

    tell(f"asking {base_url(url)}")
    session = ask(url, asked.served, asked.api_key, asked.timeout)
    found = examine(session, asked.checks("server"))
    return found + Examined(facts={"server": session.facts()})


def as_json(found: Examined, mended: Any = None) -> dict[str, Any]:
    """What `--json` prints: the findings first."""
    told = found.to_json()
    return told | ({"mended": mended.to_json()} if mended is not None else {})


def left(found: Examined, cleared: Sequence[str]) -> list[str]:
    """Ids of the findings that a mended template does not clear."""
    return [f.check for f in found.findings if f.check not in cleared]
