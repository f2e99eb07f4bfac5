"""An adapter against its model, read from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from punie_mlx import identity
from punie_mlx.doctor import adapter
from punie_mlx.doctor.adapter import AdapterSubject
from punie_mlx.doctor.findings import Finding, examine
from punie_mlx.doctor.specimen import Specimen
from punie_mlx.errors import ModelError

LAYER = "model.layers.{}.self_attn.q_proj"
ROWS, WIDTH, RANK = 1536, 192, 4  # of the embedded model, and of the adapter


@pytest.fixture(scope="module")
def specimen(tiny_base: Path) -> Specimen:
    return Specimen.of_model(tiny_base)


def arrays(layer: int = 0, out: int = 256, moved: float = 0.5, kind: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    name = LAYER.format(layer)
    made = {f"{name}.lora_a": mx.ones((WIDTH, RANK)), f"{name}.lora_b": mx.full((RANK, out), moved)}
    return {n: a.astype(kind) for n, a in made.items()}


def write(path: Path, weights: dict[str, mx.array], base: str | None = None) -> Path:
    path.mkdir(exist_ok=True)
    config: dict[str, Any] = {
        "fine_tune_type": "lora",
        "num_layers": 4,
        "lora_parameters": {"rank": RANK, "scale": 20.0},
    }
    (path / "adapter_config.json").write_text(
        json.dumps(config | ({"punie": {"base_fingerprint": base}} if base else {}))
    )
    mx.save_safetensors(str(path / "adapters.safetensors"), weights)
    return path


def found(specimen: Specimen, path: Path) -> list[Finding]:
    return list(examine(AdapterSubject(specimen, path), adapter.CHECKS).findings)


@pytest.mark.parametrize("kind", [mx.float32, mx.float16, mx.bfloat16])
def test_an_adapter_of_this_model_is_clean(specimen, tiny_base, tmp_path, kind):
    path = write(tmp_path / "a", arrays(kind=kind), identity.fingerprint(tiny_base))
    examined = examine(AdapterSubject(specimen, path), adapter.CHECKS)
    assert not examined.findings and not examined.skipped


def test_the_width_is_that_of_the_weight(specimen, tmp_path):
    """256 is 4 heads of 64: what q_proj gives; mlx_lm refuses another one."""
    (finding,) = found(specimen, write(tmp_path / "a", arrays(out=128)))
    assert finding.check == "adapter-fit" and finding.shown[0].text.endswith(
        "lora_b is 4 × 128, the weight is 256 × 192"
    )


def test_more_layers_than_the_model_has(specimen, tmp_path):
    (finding,) = found(specimen, write(tmp_path / "a", arrays() | arrays(layer=17)))
    assert finding.check == "adapter-fit" and "layer 17" in finding.shown[0].text and "0 to 3" in finding.shown[0].text


def test_names_that_are_nowhere_in_the_model(specimen, tmp_path):
    renamed = {n.replace("self_attn", "attention"): a for n, a in arrays().items()}
    (finding,) = found(specimen, write(tmp_path / "a", renamed))
    assert finding.check == "adapter-fit"
    assert not found(specimen, write(tmp_path / "b", arrays() | renamed)), "files may name some modules otherwise"


def test_names_that_only_begin_otherwise(specimen, tmp_path):
    """As the files of a model with images have them: mlx_lm turns the beginning about when it loads them."""
    turned = {n.replace("model.layers", "language_model.model.layers"): a for n, a in arrays().items()}
    assert not found(specimen, write(tmp_path / "a", turned))


def test_an_embedding_takes_the_number_of_a_row(specimen, tmp_path):
    name = "model.embed_tokens"
    made = {f"{name}.lora_a": mx.ones((ROWS, RANK)), f"{name}.lora_b": mx.ones((RANK, WIDTH))}
    assert not found(specimen, write(tmp_path / "a", made))
    made[f"{name}.lora_b"] = mx.ones((RANK, ROWS))
    made[f"{LAYER.format(0)}.lora_a"] = mx.array(1.0)
    (finding,) = found(specimen, write(tmp_path / "b", made))
    assert finding.check == "adapter-fit" and len(finding.shown) == 2, "and a number is no matrix"


def test_an_adapter_of_another_model(specimen, tmp_path):
    (finding,) = found(specimen, write(tmp_path / "a", arrays(), "f" * 64))
    assert (finding.check, finding.severity) == ("adapter-base", "high") and finding.shown[0].text == "f" * 12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(specimen, tmp_path, value):
    (finding,) = found(specimen, write(tmp_path / "a", arrays(moved=value)))
    assert finding.check == "adapter-values" and "lora_b" in finding.shown[0].text


def test_an_adapter_that_was_never_moved(specimen, tmp_path):
    (finding,) = found(specimen, write(tmp_path / "a", arrays(moved=0.0)))
    assert finding.check == "adapter-unmoved"
    assert not found(specimen, write(tmp_path / "b", arrays(moved=0.0) | arrays(layer=1))), "one layer is enough"


def test_what_cannot_be_looked_at_is_an_input_error(specimen, tmp_path):
    with pytest.raises(ModelError, match="no adapter directory"):
        AdapterSubject(specimen, tmp_path)
    path = write(tmp_path / "a", arrays())
    with pytest.raises(ModelError, match="give its directory"):
        AdapterSubject(Specimen.of_text(specimen.template), path)
    (path / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="train the adapter again"):
        found(specimen, path)
