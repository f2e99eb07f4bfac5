"""The script that proves accuracy over seeds: when a claim holds, and when it does not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def script(root: Path):
    sys.path.insert(0, str(root))
    try:
        yield importlib.import_module("scripts.prove_accuracy")
    finally:
        sys.path.remove(str(root))


def sweep(worse: tuple[int, ...] = (), adapter: tuple[float, float] = (-0.01, 0.01), kl: float = 1.0) -> dict:
    rows = [{"label": "adapter", "what": "adapter", "kl": None, "difference_interval": list(adapter), "worse": False}]
    for bits in (8, 6, 5, 4, 3):
        rows.append({
            "label": f"{bits}-bit", "what": "quantized", "bits": bits, "worse": bits in worse,
            "kl": {"mean": kl if bits == 4 else 1 / bits}, "difference_interval": [-0.02, 0.02],
        })  # fmt: skip
    return {"rows": rows}


def claims(script: ModuleType) -> tuple:
    return tuple(c for c in script.CLAIMS if not c.text.startswith("the base"))  # that one reads run files


def holding(script: ModuleType, *sweeps: dict) -> dict[str, bool]:
    settled = script.settle(dict(enumerate(sweeps)), claims(script))
    return {one["claim"]: one["holds"] for one in settled}


def test_claims_hold_where_all_seeds_say_what_was_predicted(script):
    found = holding(script, sweep((3,), kl=0.25), sweep((3,), kl=0.25))
    assert len(found) == 6 and all(found.values())


@pytest.mark.parametrize(
    ("first", "second", "broken"),
    [
        ({"worse": (3,)}, {"worse": (4, 3)}, "the fewest bits"),
        ({"worse": (5,)}, {"worse": (5,)}, "5 bits are not"),
        ({"adapter": (-0.02, 0.04)}, {}, "fusing changes nothing"),
        ({}, {"kl": 0.9}, "KL to float16 rises"),
    ],
)
def test_a_claim_that_differs_between_seeds_or_from_its_prediction_does_not_hold(script, first, second, broken):
    found = holding(script, sweep(**{"kl": 0.25, **first}), sweep(**{"kl": 0.25, **second}))
    assert [claim for claim, holds in found.items() if not holds] == [c for c in found if c.startswith(broken)] != []


def test_claims_of_models_that_were_not_made_are_left_out(script):
    few = {"rows": [r for r in sweep()["rows"] if r["label"] in ("adapter", "8-bit", "4-bit")]}
    assert not any(claim.startswith(("6 bits", "5 bits")) for claim in holding(script, few))


def test_each_seed_needs_its_adapter(script, tmp_path):
    with pytest.raises(SystemExit) as stopped:
        script.main(["--out", str(tmp_path / "o"), "--seeds", "0,1", "--adapter", str(tmp_path)])
    assert stopped.value.code == 2 and not (tmp_path / "o").exists()
