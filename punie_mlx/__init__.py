"""punie-mlx: make a local MLX model call tools reliably, and prove it."""

from punie_mlx import hardware

hardware.load_fast_blas()  # before anything imports mlx

__version__ = "0.1.0"

__all__ = ["__version__", "hardware"]
