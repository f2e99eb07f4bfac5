"""The audit on real rows: it finds the faults between rows that these are known to have, as many as there are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from punie_mlx.corpus.audit.model import Audit
from punie_mlx.corpus.audit.read import read_corpus
from punie_mlx.corpus.audit.run import audit


@pytest.fixture(scope="module")
def phase22(real_data: Path) -> Audit:
    return audit(read_corpus(real_data / "punie" / "phase22"))


@pytest.fixture(scope="module")
def mlx_format(real_data: Path) -> Audit:
    return audit(read_corpus(real_data / "punie" / "mlx_format"))


def counts(found: Audit, check: str) -> dict[tuple[str, str], int]:
    """(split, severity) → findings of one check."""
    return dict(Counter((f.split, f.severity) for f in found.of(check)))


def of_train(found: Audit, check: str) -> int:
    """Findings about what is trained on and scored on; those between two held-out splits are warnings."""
    return sum(f.severity == "error" for f in found.of(check))


def figure(found: Audit, name: str) -> Any:
    return found.figures[name][""]


def test_rows_of_phase22_stand_several_times(phase22: Audit) -> None:
    assert (figure(phase22, "rows"), figure(phase22, "queries")) == (707, 483)
    assert len(phase22.of("duplicate")) == 75
    assert (of_train(phase22, "leak_row"), of_train(phase22, "leak_query")) == (19, 58)
    assert counts(phase22, "leak_query") == {("valid", "error"): 28, ("test", "error"): 30, ("test", "warning"): 1}


def test_rows_of_phase22_disagree_in_their_spelling(phase22: Audit) -> None:
    (spelling,) = phase22.of("mixed_spellings")
    assert 1 + len(spelling.also) == 8


def test_rows_of_mlx_format_stand_several_times(mlx_format: Audit) -> None:
    assert figure(mlx_format, "rows") == 251
    assert counts(mlx_format, "duplicate") == {("train", "warning"): 2}
    assert counts(mlx_format, "leak_row") == {("valid", "error"): 1}
