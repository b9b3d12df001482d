"""`python -m tests.worker.attempt JOB_ID [COMMAND…]`: one supervisor as the pool would run it, for tests to kill."""

import sys

from shared import logs
from shared.processes import end_with_parent
from shared.settings import from_environment
from worker.tasks import train
from worker.workspace import TRAINER

if __name__ == "__main__":
    end_with_parent()
    logs.configure("supervisor")
    train(from_environment(), int(sys.argv[1]), sys.argv[2:] or TRAINER)
