"""The device, its memory and disk; and, on Linux, the fast BLAS.

The CPU wheel of MLX links the reference BLAS (float32 matmul at about 3.4 GFLOP/s on two cores). Loading OpenBLAS
with global symbols *before* the first `import mlx.core` interposes its routines (70 GFLOP/s and more), which is why
`punie_mlx/__init__.py` imports this module before anything else.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import warnings
from pathlib import Path

from punie_mlx.errors import DiskError

OPENBLAS = "libopenblas.so.0"
REMEDY = "install it (Debian/Ubuntu: apt-get install libopenblas0-pthread) or set PUNIE_MLX_NO_BLAS_WARNING=1"


class SlowBlasWarning(UserWarning):
    """MLX's CPU backend will run on the reference BLAS, some 20 times slower than OpenBLAS."""


def load_fast_blas() -> bool:
    """Interpose OpenBLAS on Linux. Return whether it is loaded; warn with the remedy where it is missing."""
    if sys.platform != "linux":
        return False
    try:
        ctypes.CDLL(OPENBLAS, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        if not os.environ.get("PUNIE_MLX_NO_BLAS_WARNING"):
            warnings.warn(f"{OPENBLAS} was not found, so MLX is slow on this CPU: {REMEDY}", SlowBlasWarning, 2)
        return False
    return True


def on_cpu() -> bool:
    """Whether MLX computes on the CPU (no Metal and no CUDA device)."""
    import mlx.core as mx

    return mx.default_device() == mx.Device(mx.cpu) or not (mx.metal.is_available() or mx.cuda.is_available())


def memory_bytes() -> int:
    """Physical memory of this machine in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def device_memory() -> int:
    """Bytes that a model may take: what the GPU can use, or the machine's memory."""
    import mlx.core as mx

    info = {} if on_cpu() else mx.device_info()
    gpu = info.get("max_recommended_working_set_size") or info.get("total_memory") or 0
    return int(gpu) or memory_bytes()


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path` (or its nearest existing parent)."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def require_disk(path: Path, needed: int, what: str) -> None:
    """Raise `DiskError` unless `needed` bytes are free where `path` will be written."""
    free = free_disk(path)
    if free < needed:
        raise DiskError(
            f"{what} needs {needed / 1e6:,.1f} MB at {path}, and {free / 1e6:,.1f} MB are free: "
            "free some space or write elsewhere"
        )
