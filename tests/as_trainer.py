"""`python -m tests.as_trainer train.py …`: a script in a process that ends as a trainer does.

Not as Python does: a thread of gloo that asks for Python's lock while Python takes itself apart ends the process with
"terminate called without an active exception" (once in some hundred runs of FSDP, torch 2.13).
"""

import os
import runpy
import sys
import traceback

from worker.leaving import leave


def main() -> int:
    del sys.argv[0]
    sys.path[0] = os.getcwd()
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    leave(main(), os.getcwd())
