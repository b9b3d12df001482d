"""`python -m tests.faults.hurt WHAT MODULE…`: runs a module of the platform whose process has one thing broken.

`clock=SECONDS`: it believes that it is so much later. `disk=BYTES`: no file of it grows beyond that, as on a full disk.
`fence=off`, `licence=off`: a guard is switched off, for the negative controls. Nothing else can switch one off.
"""

import os
import resource
import runpy
import sys
import time


def shift_clock(ahead_s: float) -> None:
    """Before anything else is imported: a default argument may hold the function itself."""
    true_time = time.time
    time.time = lambda: true_time() + ahead_s


def fill_disk(limit_bytes: int) -> None:
    """The log of this process would be too long at once: it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))


def drop_fence() -> None:
    """A write asks only for the job, not whose it is by now."""
    import sqlalchemy as sa

    from shared.tables import jobs
    from shared.transitions import Fence

    def believes_anything(fence: Fence) -> sa.ColumnElement[bool]:
        return jobs.c.id == fence.job_id

    Fence.condition = property(believes_anything)  # type: ignore[assignment,method-assign]


def drop_licence() -> None:
    """A trainer may compute for ever, whoever has its job. What the settings themselves refuse is put past them."""
    from shared import settings

    as_set = settings.from_environment
    settings.from_environment = lambda: as_set().model_copy(update={"licence_s": 1e6})


def main() -> None:
    what, module, *arguments = sys.argv[1:]
    match what.split("="):
        case ["clock", ahead_s]:
            shift_clock(float(ahead_s))
        case ["disk", limit_bytes]:
            fill_disk(int(limit_bytes))
        case ["fence", "off"]:
            drop_fence()
        case ["licence", "off"]:
            drop_licence()
        case _:
            raise SystemExit(f"nothing is known to hurt by {what!r}")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
