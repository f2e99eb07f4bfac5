"""`punie-mlx fuse` and `quantize`: an adapter and its model → float16 → few bits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def fuse(
    model: Annotated[str, typer.Option(help="The model that the adapter was trained on: a directory or a Hub name.")],
    adapter: Annotated[Path, typer.Option(help="Adapter directory, as `train` writes it.")],
    out: Annotated[Path, typer.Option(help="Directory of the float16 model to write.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Add an adapter to its model: one float16 model, which any MLX program loads.

    A quantized model is dequantized first, since the adapter would be lost on its 4-bit grid: mind the disk.
    Example: `punie-mlx fuse --model data/tiny-base --adapter runs/adapter --out runs/fused`
    """
    from punie_mlx.export.fuse import fuse as run
    from punie_mlx.export.hub import resolve

    made = run(resolve(model), adapter, out, overwrite=overwrite)
    print(f"{made.out}: {made.layers} layers changed, {made.bytes / 1e6:,.1f} MB, fingerprint {made.fingerprint}")


def quantize(
    model: Annotated[str, typer.Option(help="Model in 16 bits, as `fuse` writes it: a directory or a Hub name.")],
    out: Annotated[Path, typer.Option(help="Directory of the quantized model to write.")],
    bits: Annotated[int, typer.Option(help="Bits a weight: 2, 3, 4, 5, 6 or 8. Fewer lose more of the adapter.")] = 5,
    group_size: Annotated[
        int, typer.Option(help="Weights that share a scale: 32, 64 or 128. Smaller is finer and larger on disk.")
    ] = 64,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Quantize a model to few bits; says which layers had to be left out, and the bits a weight in the end.

    Example: `punie-mlx quantize --model runs/fused --out runs/5bit --bits 5 --group-size 64`
    """
    from punie_mlx.export.hub import resolve
    from punie_mlx.export.quantize import check_settings
    from punie_mlx.export.quantize import quantize as run

    check_settings(bits, group_size)
    made = run(resolve(model), out, bits=bits, group_size=group_size, overwrite=overwrite)
    for name, why in made.skipped.items():
        print(f"skipped {name}: {why}")
    print(
        f"{made.out}: {made.layers} layers in {made.bits} bits, {made.bits_per_weight:.3f} bits a weight, "
        f"{made.bytes / 1e6:,.1f} MB, fingerprint {made.fingerprint}"
    )
