"""The command line: ``corelm``, which is ``python -m core``.

One file for each command. Importing it is cheap: what computes is imported by the command that runs.
"""

from core.cli.program import main

__all__ = ["main"]
