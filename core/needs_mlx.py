"""Imports MLX, or says how to install it: what plugins import from ``core`` imports this module first."""

try:
    import mlx.core  # noqa: F401
except ImportError:
    from core.installation import check_mlx

    check_mlx()
    raise

from core.blas import bind

bind()
