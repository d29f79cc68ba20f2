"""Imports MLX, or raises an error that says how to install it. Public packages of ``core`` import this module first."""

try:
    import mlx.core  # noqa: F401
except ImportError:
    from core.installation import check_mlx

    check_mlx()
    raise

from core.blas import bind

bind()
