"""Shared fixtures: the shipped model, and real data that may not be there."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tiny_base() -> Path:
    """The embedded base model."""
    return ROOT / "data" / "tiny-base"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Real rows from outside; skips where they are not beside the checkout."""
    path = ROOT.parent / "shared" / "real"
    if not path.is_dir():
        pytest.skip("../shared/real is not beside this checkout")
    return path
