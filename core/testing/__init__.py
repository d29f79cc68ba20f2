"""What plugin authors test with: the kit, references made by transformers, and a layer-by-layer comparison.

    from core.testing import ArchitectureTests

    class TestOlmo2(ArchitectureTests):
        config = {"model_type": "olmo2", "hidden_size": 64, ...}
        reference = Path(__file__).parent / "reference"

pytest runs that as named checks. ``python -m core.testing.reference`` makes such a directory, and
``python -m core.testing.diff`` says which block departs from it. Names are imported at their first use, so both
commands start without pytest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.testing.kit import ArchitectureTests
    from core.testing.reference_data import Reference
    from core.testing.subject import Subject

_HOMES = {
    "ArchitectureTests": "core.testing.kit",
    "Reference": "core.testing.reference_data",
    "Subject": "core.testing.subject",
}

__all__ = ["ArchitectureTests", "Reference", "Subject"]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'core.testing' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(home), name)
    except ImportError:
        from core.installation import check_mlx

        check_mlx()  # raises an error that says what to do if MLX cannot be imported
        raise


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
