"""Model weights in memory: a directory's model loaded lazily, its quantized layers made dense, tensors written.

What `train`, `export` and `serve` share. Weights stay lazy until they are used or written.

mlx_lm touch points (pinned by tests/contracts/test_mlx_lm_train.py):

| name                                             | used for                                 |
|--------------------------------------------------|------------------------------------------|
| `utils.load_model`                               | the model of a directory, lazily         |
| `utils.get_total_parameters`                     | how large it would be without quantization |
| `models.switch_layers.{SwitchLinear, QuantizedSwitchLinear}` | the expert layers of a mixture |
"""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from punie_mlx import hardware
from punie_mlx.errors import ModelError
from punie_mlx.identity import model_files


def load_lazily(model: Path) -> nn.Module:
    """The model of a directory, its weights not yet read. Raises `ModelError`."""
    from mlx_lm.utils import load_model

    model_files(model)  # a clear message where files are missing
    try:
        loaded, _ = load_model(Path(model), lazy=True)
    except Exception as e:
        raise ModelError(f"the model in {model} cannot be loaded: {e}") from e
    return loaded


def parameter_count(model: nn.Module) -> int:
    """How many weights `model` has, quantized ones counted one by one."""
    from mlx_lm.utils import get_total_parameters

    return get_total_parameters(model)


def densify(model: nn.Module) -> int:
    """Replace the quantized layers of `model` by dense float32 ones, lazily; return how many there were."""
    layers = [(n, dense(m)) for n, m in model.named_modules() if hasattr(m, "scales")]
    model.update_modules(tree_unflatten(layers))
    return len(layers)


def compute_in_float32(model: nn.Module) -> None:
    """The same weights, computed in float32: half precision is up to 2,500 times slower on MLX's CPU backend.

    Quantized layers become dense where that fits in a quarter of the memory, and keep their bits elsewhere.
    """
    if parameter_count(model) * 4 <= hardware.memory_bytes() // 4:
        densify(model)
    model.set_dtype(mx.float32)  # scales and biases of quantized layers too


def dense(layer: Any, delta: mx.array | None = None) -> nn.Module:
    """`layer` without quantization and with `delta` added, in float32; its bias as it is. Raises `ModelError`."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    if isinstance(layer, nn.Embedding | nn.QuantizedEmbedding):
        made: Any = nn.Embedding(1, 1)
    elif isinstance(layer, SwitchLinear | QuantizedSwitchLinear):
        made = SwitchLinear(1, 1, 1, bias="bias" in layer)
    elif isinstance(layer, nn.Linear | nn.QuantizedLinear):
        made = nn.Linear(1, 1, bias="bias" in layer)
    else:
        raise ModelError(f"a {type(layer).__name__} cannot be dequantized: use the unquantized model")
    weight = _float32_weight(layer)
    made.weight = weight if delta is None else weight + delta
    if "bias" in layer:
        made.bias = layer.bias
    return made


def _float32_weight(layer: Any) -> mx.array:
    if not hasattr(layer, "scales"):
        return layer.weight.astype(mx.float32)
    affine = layer.mode == "affine"
    scales = layer.scales.astype(mx.float32) if affine else layer.scales  # other modes pack their scales in uint8
    biases = layer.biases.astype(mx.float32) if affine else None
    extra = {"global_scale": layer.global_scale} if "global_scale" in layer else {}
    weight = mx.dequantize(layer.weight, scales, biases, layer.group_size, layer.bits, layer.mode, **extra)
    return weight.astype(mx.float32)


@contextmanager
def naming_a_full_disk(path: Path) -> Generator[None]:
    """Make the bare RuntimeError that mlx raises where a disk is full an OSError with ENOSPC."""
    try:
        yield
    except RuntimeError as e:
        if "Unable to write" in str(e):
            raise OSError(errno.ENOSPC, "No space left on device", str(path)) from e
        raise
