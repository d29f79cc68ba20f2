"""Runs a command of this package with messages and exit codes instead of tracebacks.

0: done; 1: something is wrong; 2: wrong usage; 130: interrupted.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable

from core.errors import CoreError, UsageError


def guarded(action: Callable[[], int], *, debug: bool) -> int:
    """Runs ``action`` and returns its exit code, or that of its error, which is printed."""
    try:
        return action()
    except KeyboardInterrupt:
        return 130
    except CoreError as error:
        return _say(str(error), 2 if isinstance(error, UsageError) else 1, debug)
    except Exception as error:
        return _say(f"{type(error).__name__}: {error}", 1, debug)


def _say(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    return code
