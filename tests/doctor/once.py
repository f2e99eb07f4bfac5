"""What the checks say of a template alone never changes, so that a file of tests asks for it once."""

from __future__ import annotations

import functools

import pytest

from punie_mlx.doctor import mend as mending
from punie_mlx.doctor.examination import static
from punie_mlx.doctor.findings import Examined
from punie_mlx.doctor.specimen import Specimen


@pytest.fixture(autouse=True)
def examined_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The good templates are proved again and again."""
    monkeypatch.setattr(mending, "static", kept)


@functools.cache
def _kept_text(template: str) -> Examined:
    return static(Specimen.of_text(template))


def kept(specimen: Specimen) -> Examined:
    return static(specimen) if specimen.directory else _kept_text(specimen.template)


def found(template: str) -> list[str]:
    """The checks that find something in `template`."""
    return [f.check for f in _kept_text(template).findings]
