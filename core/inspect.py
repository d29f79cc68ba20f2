"""``python -m core.inspect SOURCE``: the same as ``corelm inspect SOURCE``.

No other module imports this one, so that ``python -m`` does not find it loaded already.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs ``corelm inspect`` with these arguments; returns the exit code."""
    from core.cli import main as corelm

    return corelm(["inspect", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
