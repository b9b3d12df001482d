"""Whose job is whose, remembered: an owner never changes, and every poll has to know."""

from collections import OrderedDict

from shared.errors import JobNotFound


class Owners:
    """The owners of the jobs that were asked for most recently."""

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._known: OrderedDict[int, str] = OrderedDict()

    def get(self, job_id: int) -> str | None:
        return self._known.get(job_id)

    def remember(self, job_id: int, owner: str) -> None:
        self._known[job_id] = owner
        if len(self._known) > self._limit:
            self._known.popitem(last=False)

    @staticmethod
    def check(job_id: int, owner: str, visible_to: str | None) -> None:
        """Raises JobNotFound when the job belongs to somebody that `visible_to` may not see."""
        if visible_to is not None and owner != visible_to:
            raise JobNotFound(job_id)
