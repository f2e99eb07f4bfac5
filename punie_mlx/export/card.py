"""The model card: a README.md for the hub, written from manifests and run files, not by hand.

Everything in it is read from what the stages recorded: base and fingerprints, the data's hash, settings, what is left
of the adapter, the quantization, the suites with their intervals, and the commands that make and serve the model. What
somebody wrote by hand stays: text between the two markers, or a whole README that was not written here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from punie_mlx.errors import DataError
from punie_mlx.export import retention

BEGIN, END = "<!-- by hand: kept when the card is written again -->", "<!-- end of by hand -->"
WRITTEN = "<!-- written by punie-mlx from the manifests -->"
EMPTY = "Write here what the manifests cannot say: what the model is for, and what it is not."
FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What a card says of one run file."""

    label: str
    fingerprint: str
    suites: Mapping[str, Json]
    suite_hash: str


def read_run(path: Path) -> Run:
    """The figures of a result of `punie-mlx eval --json`. Raises `DataError`."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["kind"] != "evaluation":
            raise DataError(f"{path} is a {content['kind']}: give a result of `punie-mlx eval --json`")
        model, suites = content["model"], content["summary"]["by_suite"]
        for rate in suites.values():
            _ = rate["passed"], rate["n"], rate["accuracy"], *rate["interval"]
        label = Path(str(model.get("label") or model["name"])).name
        return Run(label, model["fingerprint"], suites, content["suite"]["hash"])
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror}): give a result of `punie-mlx eval --json`") from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path} is no result of `punie-mlx eval --json` ({e!r}): score the model again") from e


def by_hand(readme: str | None) -> str | None:
    """What of an existing README was written by hand: between the markers, or all of one that has none."""
    if not readme:
        return None
    if BEGIN in readme and END in readme:
        return readme.split(BEGIN, 1)[1].split(END, 1)[0].strip("\n")
    if WRITTEN in readme:
        return None
    return FRONT.sub("", readme).strip("\n") or None


def write(manifest: Json, repo: str, *, runs: Sequence[Run] = (), licence: str | None = None, hand: str | None) -> str:
    """The card of the model that `manifest` (already without paths) describes."""
    road = list(_road(manifest))
    parts = [
        _front(road, licence),
        f"# {repo.split('/')[-1]}\n",
        WRITTEN,
        _opening(road),
        f"{BEGIN}\n{hand or EMPTY}\n{END}",
        _identity(road),
        _results(runs, road),
        _training(road),
        _rounding(manifest),
        _retention(road),
        _commands(road, repo),
        _versions(manifest),
    ]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


# ---- the manifests, from the model back to its base ----


@dataclass(frozen=True)
class Stage:
    """One manifest on the road: as what it was used, by which name."""

    role: str
    name: str
    manifest: Json


def _road(manifest: Json, role: str = "this", name: str = "") -> Iterator[Stage]:
    yield Stage(role, name, manifest)
    for key, source in (manifest.get("sources") or {}).items():
        yield from _road(source.get("manifest") or {}, key, source.get("name") or key)


def _kind(road: Sequence[Stage], kind: str) -> Stage | None:
    return next((stage for stage in road if stage.manifest.get("kind") == kind), None)


def _base(road: Sequence[Stage]) -> tuple[str | None, str | None]:
    """Name and fingerprint of the model that the adapter went onto."""
    fused = _kind(road, "fused")
    if fused is None:  # quantized from what has no manifest, or by an earlier version
        source = (road[0].manifest.get("sources") or {}).get("model") or {}
        return source.get("name"), (road[0].manifest.get("inputs") or {}).get("model")
    sources, inputs = fused.manifest.get("sources") or {}, fused.manifest.get("inputs") or {}
    role = "base" if "base" in inputs else "model"
    return (sources.get(role) or {}).get("name"), inputs.get(role)


def _front(road: Sequence[Stage], licence: str | None) -> str:
    """YAML front matter. A base is named where the hub has it; a licence where somebody said one."""
    base = (_base(road)[0] or "").partition("@")[0]
    front: dict[str, Any] = {"library_name": "mlx", "pipeline_tag": "text-generation"}
    if HUB_NAME.fullmatch(base):
        front["base_model"] = base
        front["base_model_relation"] = "quantized" if road[0].manifest.get("kind") == "quantized" else "finetune"
    if licence:
        front["license"] = licence
    front["tags"] = ["mlx", "punie-mlx", "tool-calling"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---"


def _opening(road: Sequence[Stage]) -> str:
    base = _base(road)[0]
    settings = road[0].manifest.get("settings") or {}
    form = f"in {settings['bits']} bits" if "bits" in settings else "in float16"
    tuned = ", trained to call tools," if _kind(road, "adapter") or _kind(road, "fused") else ""
    return f"{base or 'A model'}{tuned} {form}. Made with punie-mlx, for MLX on Apple silicon, CUDA and CPU."


def _identity(road: Sequence[Stage]) -> str:
    name, fingerprint = _base(road)
    fused, adapter = _kind(road, "fused"), _kind(road, "adapter")
    inputs = (fused.manifest.get("inputs") or {}) if fused else {}
    what = "base" if fused else "16-bit model that was quantized"
    rows = [("this model", road[0].manifest.get("fingerprint")), (f"{what}: {name or 'unnamed'}", fingerprint)]
    if "base" in inputs:
        trained_on = ((fused.manifest.get("sources") or {}).get("model") or {}).get("name") if fused else None
        rows.append((f"quantized base that the adapter was trained on: {trained_on or 'unnamed'}", inputs["model"]))
    rows.append(("adapter", inputs.get("adapter")))
    if adapter:
        rows.append(("training data", (adapter.manifest.get("inputs") or {}).get("data")))
    if fused and road[0] is not fused:
        rows.append(("float16 model before quantization", fused.manifest.get("fingerprint")))
    return "## What it is made of\n\n" + _table(("", "SHA-256"), [(k, f"`{v}`") for k, v in rows if v])


def _results(runs: Sequence[Run], road: Sequence[Stage]) -> str:
    if not runs:
        return "## Results\n\nIt was published without results of a suite."
    known = {road[0].manifest.get("fingerprint"): "this model"}
    if fused := _kind(road, "fused"):
        known.setdefault(_base(road)[1], "base")
        known.setdefault(fused.manifest.get("fingerprint"), "float16, before quantization")
    rows = [
        (known.get(run.fingerprint, run.label), suite, f"{rate['passed']}/{rate['n']}", *_rate(rate), _short(run))
        for run in runs
        for suite, rate in run.suites.items()
    ]
    head = ("model", "suite", "passed", "accuracy", "95% interval (Wilson)", "fingerprint")
    return f"## Results\n\n{_table(head, rows)}\n\nSuite: `{', '.join(sorted({r.suite_hash for r in runs}))}`"


def _rate(rate: Json) -> tuple[str, str]:
    low, high = rate["interval"]
    return ("–" if rate["accuracy"] is None else f"{rate['accuracy']:.1%}"), f"{low:.1%} to {high:.1%}"


def _short(run: Run) -> str:
    return f"`{run.fingerprint[:12]}`"


def _training(road: Sequence[Stage]) -> str:
    adapter = _kind(road, "adapter")
    if adapter is None:
        return ""
    losses = {k: adapter.manifest.get(k) for k in ("first_val_loss", "last_val_loss")}
    said = ", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in losses.items() if isinstance(v, int | float))
    settings = yaml.safe_dump(dict(adapter.manifest.get("settings") or {}), sort_keys=False, allow_unicode=True)
    return f"## Training\n\n{said or 'The recipe:'}\n\n```yaml\n{settings}```"


def _rounding(manifest: Json) -> str:
    if manifest.get("kind") != "quantized":
        return ""
    settings = {**(manifest.get("settings") or {}), "bits a weight": manifest.get("bits_per_weight")}
    flat = {f"{key}: {k}": v for key, m in settings.items() if isinstance(m, Mapping) for k, v in m.items()}
    flat = {k: v for k, v in settings.items() if not isinstance(v, Mapping)} | flat
    rows = [(k.replace("_", " "), str(v)) for k, v in flat.items() if v is not None]
    for name, bits in (manifest.get("wider") or {}).items():
        rows.append((f"`{name}`", f"{bits} bits"))
    for name, why in (manifest.get("skipped") or {}).items():
        rows.append((f"`{name}`", f"not quantized: {why}"))
    return "## Quantization\n\n" + _table(("", ""), rows)


def _retention(road: Sequence[Stage]) -> str:
    fused = _kind(road, "fused")
    found = fused.manifest.get("retention") if fused else None
    if not found or not found.get("layers"):
        return ""
    keys = (retention.FLOAT16, *map(str, found["bits"]))
    rows = [
        (
            f"`{layer['name']}`",
            f"{layer['ratio']:.2%}",
            *(f"{layer[k]['kept']:.2f} / {layer[k]['cosine']:.2f}" for k in keys),
        )
        for layer in (retention.summary(found), *retention.worst(found, 3))
    ]
    head = ("layer", "‖Δ‖/‖W‖", *map(retention.label, keys))
    return (
        "## What is left of the adapter\n\nPart of the adapter's change that is kept / cosine with it, after rounding "
        f"in groups of {found['group_size']}: the median of {len(found['layers'])} layers, and the worst.\n\n"
        + _table(head, rows)
    )


def _commands(road: Sequence[Stage], repo: str) -> str:
    serve = (
        f"punie-mlx pull {repo} --out {repo.split('/')[-1]}\npunie-mlx serve --model {repo.split('/')[-1]} --port 8080"
    )
    text = f"## Use\n\n```bash\n{serve}\n```"
    made = list(_made(road))
    if made:
        lines = "\n".join(made)
        text += f"\n\n## Make it again\n\nWith the data whose hash is above in `data/`:\n\n```bash\n{lines}\n```"
    return text


def _made(road: Sequence[Stage]) -> Iterator[str]:
    fused, adapter, settings = _kind(road, "fused"), _kind(road, "adapter"), road[0].manifest.get("settings") or {}
    if fused is None:
        return
    sources = fused.manifest.get("sources") or {}
    model = (sources.get("model") or {}).get("name") or "BASE"
    if adapter:
        yield f"punie-mlx train --model {model} --data data --recipe recipe.yaml --out adapter  # the settings above"
    onto = f" --base {sources['base']['name']}" if "base" in sources else ""
    yield f"punie-mlx fuse --model {model} --adapter adapter{onto} --out fused"
    if "bits" in settings:
        recipe = settings.get("recipe", "uniform")
        more = "" if recipe == "uniform" else f" --recipe {recipe}"
        more += " --dwq data" if settings.get("dwq") else ""
        yield (
            f"punie-mlx quantize --model fused --out model --bits {settings['bits']} "
            f"--group-size {settings.get('group_size', 64)}{more}"
        )


def _versions(manifest: Json) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in (manifest.get("versions") or {}).items())
    return f"## Versions\n\n{versions}" if versions else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
