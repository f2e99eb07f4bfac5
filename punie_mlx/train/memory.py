"""How much memory a run will need, told before it starts; and, where that is too much, the settings that fit.

What decides it is the largest group of sequences that is computed at once (`plan.Group`). A layer that learns keeps its
activations for the backward pass, about 1.3 times the inputs and outputs of its linear layers, and the scores of its
attention, which MLX writes out where gradients are taken, on Metal too. Over 56 steps of small Qwen3, Qwen3-MoE and
Llama models (lora, dora, full; float32, bfloat16, 4-bit; one row and several, checkpointed and not) on the CPU backend
the estimate was 0.85 to 1.26 of the peak that MLX reports. It was measured on no GPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from punie_mlx.errors import ConfigError
from punie_mlx.train.adapters import layer_count, trainable
from punie_mlx.train.config import TrainConfig
from punie_mlx.train.loss import LOGITS_AT_ONCE
from punie_mlx.train.optimizers import STATES
from punie_mlx.train.plan import Group

KEPT = 1.3  # values kept for each input and output of a linear layer: norms, rotations, products, LoRA's own
AT_WORK = 1.0  # layers' worth of activations that the backward pass works in
AT_WORK_ON_SCORES = 1.5
CHECKPOINTED = 2.5  # likewise where a layer's activations are computed again
LOGITS = 4  # copies: logits, exponentials, and their gradients
GRADIENTS = 2  # copies: one is added to, or clipped, while the other is held
HEADS = ("n_heads", "num_heads", "num_attention_heads")
EXPERTS_A_TOKEN = ("top_k", "num_experts_per_tok")
TOO_MUCH = 2.0  # times what is there: the estimate is not as wrong as that
LEAST_LENGTH = 256  # tokens of a sample; shorter is no advice


@dataclass(frozen=True)
class Shape:
    """What one group computes: `rows` sequences of `width` tokens behind one prefix, and logits of `targets` tokens."""

    rows: int
    width: int
    prefix: int = 0
    targets: int = 0

    @classmethod
    def of(cls, group: Group) -> Shape:
        rows, width = group.suffix.shape
        return cls(rows, width, group.prefix.size, group.targets.size)

    @property
    def tokens(self) -> int:
        return self.prefix + self.rows * self.width

    @property
    def pairs(self) -> int:
        """Pairs of query and key."""
        return self.prefix**2 + self.rows * self.width * (self.prefix + self.width)


@dataclass(frozen=True)
class Layer:
    """What a layer that learns costs, in bytes."""

    trained: int
    token: float  # activations of a token
    hidden: float  # its input alone
    pair: float  # scores of a query and a key
    dense: int  # weights that DoRA dequantizes, and keeps


@dataclass(frozen=True)
class Profile:
    """What of a model decides the memory of its training."""

    weights: int  # bytes of all parameters as they lie in memory
    layers: tuple[Layer, ...]  # those that learn
    states: float  # values that the optimizer keeps for each that is trained
    vocabulary: int
    gathers: bool  # whether logits are computed at the targets only


@dataclass(frozen=True)
class Estimate:
    """Bytes at the worst moment, by part; and what they were told from."""

    parts: Mapping[str, int]
    shape: Shape
    profile: Profile

    @property
    def bytes(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_gb(size)}" for name, size in self.parts.items() if size)
        return f"{_gb(self.bytes)} GB ({parts})"


def estimate(model: nn.Module, config: TrainConfig, shapes: Iterable[Shape], *, gathers: bool = True) -> Estimate:
    """What training `model`, which went through `adapters.attach`, will need for the costliest of `shapes`.

    `gathers`: whether the head runs at the targets only (`loss.Seam`).
    """
    profile = profile_of(model, config, gathers=gathers)
    found = [estimate_shape(profile, shape, config) for shape in set(shapes)]
    return max(found, key=lambda e: e.bytes, default=estimate_shape(profile, Shape(0, 0), config))


def estimate_shape(profile: Profile, shape: Shape, config: TrainConfig) -> Estimate:
    """The same for one shape and a model that is known already."""
    layers = profile.layers
    trained = sum(layer.trained for layer in layers)
    token, pair = max(layer.token for layer in layers), max(layer.pair for layer in layers)
    if config.grad_checkpoint:
        tokens = sum(layer.hidden for layer in layers) + CHECKPOINTED * token
        pairs = CHECKPOINTED * pair
        dense = max(layer.dense for layer in layers)
    else:
        tokens = sum(layer.token for layer in layers) + AT_WORK * token
        pairs = sum(layer.pair for layer in layers) + AT_WORK_ON_SCORES * pair
        dense = sum(layer.dense for layer in layers)
    logits = (shape.targets if profile.gathers else shape.tokens) * profile.vocabulary
    logits = min(logits, LOGITS_AT_ONCE) if profile.gathers else logits
    parts = {
        "weights": profile.weights,
        "gradients": GRADIENTS * trained,
        "optimizer": int(profile.states * trained),
        "activations": int(shape.tokens * tokens),
        "attention scores": int(shape.pairs * pairs),
        "logits": LOGITS * 4 * logits,
        "dequantized weights": dense,
    }
    return Estimate(parts, shape, profile)


def profile_of(model: Any, config: TrainConfig, *, gathers: bool = True) -> Profile:
    """What of `model`, which went through `adapters.attach`, decides the memory of its training."""
    flat: Any = tree_flatten(model.parameters())
    count = layer_count(model, config)
    learned = [_layer(layer, model, config) for layer in list(model.layers)[-count:]]
    return Profile(
        weights=sum(value.nbytes for _, value in flat),
        layers=tuple(learned),
        states=STATES[config.optimizer],
        vocabulary=_vocabulary(model),
        gathers=gathers,
    )


# ---- advice ----


def advice(estimate: Estimate, available: int, config: TrainConfig) -> list[str]:
    """What to tell the user: nothing where it fits, else what is needed and settings with which it would fit.

    Raises `ConfigError` where more than twice of what is there is needed: that would not run.
    """
    if estimate.bytes <= available:
        return []
    lines = [f"training needs about {estimate}, and there are {_gb(available)} GB"]
    fitting = [f"{told} (about {_gb(size)} GB; {price})" for told, price, size in _fitting(estimate, available, config)]
    if fitting:
        lines.append("it would fit with " + ", or with ".join(fitting))
    else:
        lines.append("no batch, length or number of layers makes it fit: choose a smaller base, or one in fewer bits")
    if estimate.bytes > TOO_MUCH * available:
        raise ConfigError(": ".join(lines))
    return lines


def _fitting(estimate: Estimate, available: int, config: TrainConfig) -> list[tuple[str, str, int]]:
    """Settings that fit, what each costs, and its bytes; the cheapest ways first, at most three."""
    same, other = "slower, with the same result", "which learns otherwise"
    again = {} if config.grad_checkpoint else {"grad_checkpoint": True}
    least = _fewer_rows(estimate.shape, 1).tokens
    batches = [{"max_batch_tokens": n} for n in _halves(estimate.shape.tokens, least)]
    ways: list[tuple[list[dict[str, Any]], str]] = [
        (batches, same),
        ([again], same),
        ([again | batch for batch in batches], same),
        ([again | {"layers": n} for n in _halves(len(estimate.profile.layers), 1)], other),
        ([again | {"max_seq_length": n} for n in _halves(least, LEAST_LENGTH)], other),
    ]
    found: dict[str, tuple[str, int]] = {}
    for tries, price in ways:
        for settings in filter(None, tries):
            size = _with(estimate, settings, config).bytes
            if size <= available:
                told = " and ".join(f"{k}: {str(v).lower()}" for k, v in settings.items())
                found.setdefault(told, (price, size))
                break
    return [(told, price, size) for told, (price, size) in found.items()][:3]


def _halves(largest: int, least: int) -> list[int]:
    """Half of `largest`, and half of that, down to `least`; none where it is no larger."""
    found, size = [], largest // 2
    while size > least:
        found.append(size)
        size //= 2
    return [*found, least] if largest > least else []


def _fewer_rows(shape: Shape, rows: int) -> Shape:
    rows = max(1, min(rows, shape.rows))
    return replace(shape, rows=rows, targets=-(-shape.targets * rows // max(shape.rows, 1)))


def _with(estimate: Estimate, settings: Mapping[str, Any], config: TrainConfig) -> Estimate:
    """`estimate` as it would be with other `settings`."""
    profile, shape = estimate.profile, estimate.shape
    if limit := settings.get("max_batch_tokens"):
        shape = _fewer_rows(shape, (limit - shape.prefix) // max(shape.width, 1))
    if length := settings.get("max_seq_length"):
        part = min(1.0, length / _fewer_rows(shape, 1).tokens)
        shape = replace(shape, prefix=int(shape.prefix * part), width=int(shape.width * part))
    if layers := settings.get("layers"):
        profile = replace(profile, layers=profile.layers[-layers:])
    again = settings.get("grad_checkpoint", config.grad_checkpoint)
    return estimate_shape(profile, shape, replace(config, grad_checkpoint=again))


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}" if size < 1e10 else f"{size / 1e9:.1f}"


# ---- what a layer costs ----


def _layer(layer: nn.Module, model: Any, config: TrainConfig) -> Layer:
    whole = config.method == "full"
    size = 4 if whole else _activation_size(model)
    modules = dict(layer.named_modules())
    token, dense, width = 0.0, 0, 0
    for name, module in modules.items():
        if (shape := _linear_shape(module)) is None:
            continue
        rows, columns = shape
        parent = modules.get(name.rpartition(".")[0], {})
        adapted, scaled = "lora_a" in parent, "m" in parent
        # LoRA works in float32: in half precision, half of what it touches is twice as wide.
        token += KEPT * (rows + columns) * _times(module, layer, model) * (size + (4 - size) / 2 * adapted)
        token += rows * size * scaled  # DoRA's rows before they are scaled
        dense += rows * columns * size * (scaled and "scales" in module)
        width = width or columns  # the first linear layer reads the layer's input
    heads = next((h for m in modules.values() if (h := _number(m, HEADS))), 0)
    trained = sum(value.nbytes for value in trainable(layer).values())
    return Layer(trained=trained, token=token, hidden=width * size, pair=heads * size, dense=dense)


def _linear_shape(module: Any) -> tuple[int, int] | None:
    """Outputs and inputs of a linear layer or an expert; None for other modules."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    if not isinstance(module, nn.Linear | nn.QuantizedLinear | SwitchLinear | QuantizedSwitchLinear):
        return None
    rows, columns = module.weight.shape[-2:]
    return rows, columns * 32 // module.bits if "scales" in module else columns


def _times(module: Any, layer: nn.Module, model: Any) -> int:
    """How often a token goes through `module`: once, or through as many experts as it is given to."""
    if module.weight.ndim < 3:
        return 1
    owners = [*layer.modules(), getattr(model, "args", None)]
    return next((n for owner in owners if (n := _number(owner, EXPERTS_A_TOKEN))), 1)


def _number(owner: Any, names: Iterable[str]) -> int:
    found = (getattr(owner, name, None) for name in names)
    return next((n for n in found if isinstance(n, int)), 0)


def _activation_size(model: Any) -> int:
    """Bytes of an activation: as wide as the frozen weights that are no packed bits and no adapter's."""
    flat: Any = tree_flatten(model.parameters())
    kinds = (v.dtype for k, v in flat if k.rpartition(".")[2] in ("weight", "scales"))
    return max((kind.size for kind in kinds if mx.issubdtype(kind, mx.floating)), default=2)


def _vocabulary(model: Any) -> int:
    inner = getattr(model, "model", model)
    head = model.lm_head if "lm_head" in model else getattr(inner, "embed_tokens", None)
    return head.weight.shape[0] if head is not None and "weight" in head else 0
