"""`punie-mlx fuse` and `quantize`: an adapter and its model → float16 → few bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from punie_mlx.export.quantize import QuantizeReport

_WIDTH = 140  # columns where the output is no terminal: a log should not wrap as one


def fuse(
    model: Annotated[str, typer.Option(help="The model that the adapter was trained on: a directory or a Hub name.")],
    adapter: Annotated[Path, typer.Option(help="Adapter directory, as `train` writes it.")],
    out: Annotated[Path, typer.Option(help="Directory of the float16 model to write.")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="ORIGINAL",
            help="The 16-bit model that a quantized --model was made from: the adapter goes onto that instead.",
        ),
    ] = None,
    force_base: Annotated[
        bool, typer.Option("--force-base", help="Go on where --base does not look like the original.")
    ] = False,
    retention: Annotated[
        bool, typer.Option(help="Measure what is left of the adapter in each layer; costs one pass for each width.")
    ] = True,
    retention_bits: Annotated[str, typer.Option(metavar="LIST", help="Bits to measure it at.")] = "8,6,5,4",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON instead.")] = False,
) -> None:
    """Add an adapter to its model: one float16 model, which any MLX program loads.

    A quantized model is dequantized first, since the adapter would be lost on its 4-bit grid: mind the disk. The table
    says what is left of the adapter at fewer bits (part kept / cosine), and a warning where it is about to be lost.
    Example: `punie-mlx fuse --model data/tiny-base --adapter runs/adapter --out runs/fused`
    """
    from punie_mlx.errors import ConfigError
    from punie_mlx.export.fuse import fuse as run
    from punie_mlx.export.hub import resolve

    if force_base and base is None:
        raise ConfigError("--force-base goes with --base ORIGINAL")
    made = run(
        resolve(model),
        adapter,
        out,
        base=resolve(base) if base else None,
        force_base=force_base,
        retention=_bits(retention_bits) if retention else None,
        overwrite=overwrite,
    )
    told = {"out": str(made.out), "layers": made.layers, "bytes": made.bytes, "fingerprint": made.fingerprint}
    if as_json:
        print(json.dumps(told | {"retention": made.retention, "original": made.original}, indent=2, ensure_ascii=False))
        return
    if made.retention:
        _show_retention(made.retention)
    if made.original:
        print(_original(made.original))
    print(f"{made.out}: {made.layers} layers changed, {made.bytes / 1e6:,.1f} MB, fingerprint {made.fingerprint}")


def _bits(text: str) -> tuple[int, ...]:
    """`8,6,5` → (8, 6, 5). Raises `ConfigError`."""
    from punie_mlx.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--retention-bits {text}: give whole numbers with commas between them, say 8,6,5,4"
        ) from None


def _show_retention(found: dict[str, Any]) -> None:
    from rich.console import Console

    from punie_mlx.export.retention import table

    console = Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(table(found))
    for line in found["warnings"]:
        print(f"warning: {line}")


def _original(told: dict[str, Any]) -> str:
    said = (
        f"fused onto the 16-bit original: rounding that again gives at least {told['least_same_codes']:.1%} of the "
        f"model's codes in each layer, error {told['median_error']:.2%} (expected {told['median_expected']:.2%})"
    )
    return f"{said}; it was forced, for it does not look like the original" if told["forced"] else said


def quantize(
    model: Annotated[str, typer.Option(help="Model in 16 bits, as `fuse` writes it: a directory or a Hub name.")],
    out: Annotated[Path, typer.Option(help="Directory of the quantized model to write.")],
    bits: Annotated[int, typer.Option(help="Bits a weight: 2, 3, 4, 5, 6 or 8. Fewer lose more of the adapter.")] = 5,
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale: 32, 64 or 128. Smaller is finer and larger on disk.")
    ] = 64,
    recipe: Annotated[
        str, typer.Option(help="uniform, or mixed: more bits for embedding, output and the layers that lose most.")
    ] = "uniform",
    dwq: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Tune the scales on these rows, with --model as teacher (6 bits or less)."),
    ] = None,
    drop_intermediate: Annotated[
        bool,
        typer.Option(
            "--drop-intermediate",
            help="Delete --model in the end, if `fuse` wrote it and the quantized model reads back from the disk. "
            "Where OUT was made of it before, it is not made again.",
        ),
    ] = False,
    if_passed: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Delete only if this result of `eval --json` on OUT passes its check:"),
    ] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(metavar="X", help="which is an accuracy of at least X, a part of 1,")
    ] = None,
    not_worse_than: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="or not to be significantly worse than this result of --model (McNemar)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON instead.")] = False,
) -> None:
    """Quantize a model to few bits; says which layers had to be left out, and the bits a weight in the end.

    Example: `punie-mlx quantize --model runs/fused --out runs/5bit --bits 5 --group-size 64`
    Then, scored: the same with `--drop-intermediate --if-passed 5bit.json --not-worse-than fused.json`
    """
    from punie_mlx.errors import ConfigError
    from punie_mlx.export import intermediate
    from punie_mlx.export.hub import resolve
    from punie_mlx.export.quantize import check_settings
    from punie_mlx.export.quantize import quantize as run
    from punie_mlx.passed import Check

    check_settings(bits, group_size, recipe)
    conditions = (if_passed, min_accuracy, not_worse_than)
    if not drop_intermediate and any(c is not None for c in conditions):
        raise ConfigError("--if-passed and its checks go with --drop-intermediate")
    if if_passed is None and any(c is not None for c in conditions):
        raise ConfigError("--min-accuracy and --not-worse-than go with --if-passed RUN.json, a result of OUT")
    check = Check(if_passed, min_accuracy, not_worse_than) if if_passed else None
    source = resolve(model)
    if drop_intermediate:
        intermediate.check_intermediate(source)
    again = drop_intermediate and not overwrite and out.exists()
    if check and not again:
        raise ConfigError(f"--if-passed {if_passed} scored {out}, and that is to be made only now: score it afterwards")
    if again:
        wanted = {"bits": bits, "group_size": group_size, "recipe": recipe}
        intermediate.check_settings(out, wanted, tuned=dwq is not None)
    told: dict[str, Any] = {"bits": bits, "group_size": group_size, "recipe": recipe, "overwrite": overwrite}
    made = None if again else _distill(source, out, dwq, told, quiet=as_json) if dwq else run(source, out, **told)
    if made and not as_json:
        _show_quantized(made)
    dropped = _drop(source, out, check, quiet=as_json) if drop_intermediate else None
    if as_json:
        print(json.dumps({**(_told(made) if made else {"out": str(out)}), "dropped_bytes": dropped}, indent=2))
    if drop_intermediate and dropped is None:
        raise typer.Exit(1)


def _distill(source: Path, out: Path, data: Path, told: dict[str, Any], *, quiet: bool) -> QuantizeReport:
    """Quantize with scales that are tuned on the rows of `data`, and say what that brought."""
    from punie_mlx.export.dwq import distill
    from punie_mlx.stages import bar

    with bar("asking the float16 model", "tuning, KL {:.2g}") as step:
        made, tuning = distill(source, out, data=data, progress=step, **told)
    if not quiet:
        print(tuning.words())
    return made


def _drop(source: Path, out: Path, check: Any, *, quiet: bool) -> int | None:
    """Delete the float16 model if it may be: the bytes that are free again, None where its check has not passed."""
    from punie_mlx import identity
    from punie_mlx.export import intermediate
    from punie_mlx.passed import passed

    intermediate.check_pair(source, out)
    if check:
        well, said = passed(check, identity.fingerprint(out), identity.fingerprint(source))
        if not quiet:
            print(said)
        if not well:
            typer.echo(f"{source} was kept: {out} has not passed its check", err=True)
            return None
    size = intermediate.drop(source, out)
    if not quiet:
        print(f"{source} was deleted: {size / 1e6:,.1f} MB are free again")
    return size


def _told(made: QuantizeReport) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(made) | {"out": str(made.out)}


def _show_quantized(made: QuantizeReport) -> None:
    for name, why in made.skipped.items():
        print(f"skipped {name}: {why}")
    for name, width in (made.wider or {}).items():
        print(f"{name}: {width} bits")
    print(
        f"{made.out}: {made.layers} layers in {made.bits} bits, {made.bits_per_weight:.3f} bits a weight, "
        f"{made.bytes / 1e6:,.1f} MB, fingerprint {made.fingerprint}"
    )
