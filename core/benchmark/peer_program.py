"""A peer's process: ``python -P peer_program.py SIDE.py``; in SIDE.py, a class ``Side`` has a method for each task.

Reads one JSON object a line on stdin and answers each with one on what stdout was; whatever the peer prints goes to
stderr. Imports nothing of core, so that nothing of it is in the peer's process.
"""

import json
import os
import runpy
import sys


def main(path: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    side = runpy.run_path(path)["Side"]()
    for line in sys.stdin:
        task = json.loads(line)
        try:
            answer = getattr(side, task["do"])(task)
        except Exception as error:  # told to whoever asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
