"""From how each host's part of an attempt ended to how the attempt did: the failure that came first is named."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from epochcast.jobs import JobError
from shared.gang_record import MemberState
from worker.first_failure import is_consequence
from worker.outcome import Cut, Ending


@dataclass(frozen=True, slots=True)
class Combined:
    """`consequences`: failures that followed from the one named, each with its host."""

    ending: Ending
    consequences: tuple[tuple[str, JobError], ...] = ()


@dataclass(frozen=True, slots=True)
class _Failed:
    at: float
    host: str
    error: JobError


def combine(own: Ending, own_failed_at: float, others: Sequence[MemberState]) -> Combined:
    """`own_failed_at` by the database's clock, as the members' moments are."""
    if own.cut in (Cut.STOPPED, Cut.LEASE_LOST, Cut.TIMEOUT, Cut.STALLED, Cut.DIVERGED):
        return Combined(own)
    all_well = own.exit_code == 0 and own.failure is None and all(other.exit_code == 0 for other in others)
    if own.cut is None and all_well and all(other.outcome == "succeeded" for other in others):
        return Combined(own)
    if own.cut is Cut.DRAINED or any(other.draining or other.outcome == Cut.DRAINED for other in others):
        # All may have been at their end anyway: then the job is done.
        return Combined(replace(own, cut=Cut.DRAINED, exit_code=0 if all_well else own.exit_code or 1))
    failed = sorted(_failures(own, own_failed_at, others), key=lambda one: one.at)
    lost = _loss(own, others)
    first = next((one for one in failed if _is_cause(one.error, lost is not None)), None)
    if first is None and lost is not None:
        return Combined(lost, _others_than(None, failed))
    first = first or (failed[0] if failed else None)
    if first is None:  # it was told to end by nobody who says why: such an attempt is lost
        return Combined(_platform(own, "its hosts ended without a reason"))
    error = first.error
    if error.host is None or error.epoch is None:
        known = own.failure or own.exit_error or own.cut_error
        error = error.model_copy(update={"host": error.host or first.host, "epoch": error.epoch or _epoch(known)})
    ending = replace(own, cut=None, cut_error=None, exit_code=own.exit_code or 1, failure=error)
    return Combined(ending, _others_than(first, failed))


def _failures(own: Ending, own_failed_at: float, others: Sequence[MemberState]) -> list[_Failed]:
    # An exit code counts only where the tree ended by itself; what a rank said of itself always does.
    error = own.failure or (own.exit_error if own.cut is None else None)
    found = [_Failed(own_failed_at, error.host or "", error)] if error is not None else []
    return found + [
        _Failed(other.failed_at, other.host, other.error)
        for other in others
        if other.error is not None and other.failed_at is not None
    ]


def _is_cause(error: JobError, a_host_is_lost: bool) -> bool:
    """A bare exit code says nothing: with a host lost it is taken for how a script leaves when it misses a rank."""
    return not is_consequence(error) and not (a_host_is_lost and error.exit_code is not None)


def _loss(own: Ending, others: Sequence[MemberState]) -> Ending | None:
    """The platform's part in it: a host that fell silent, a launcher that was killed, a store that is away."""
    if own.cut in (Cut.PLATFORM, Cut.LICENCE, Cut.STORE):
        return own
    for other in others:
        if other.outcome is None:
            return _platform(own, f"host {other.host} was lost: its lease ran out")
        if other.outcome == Cut.STORE:
            error = JobError(type="platform", message=f"host {other.host}: {other.reason}")
            return replace(own, cut=Cut.STORE, cut_error=error)
        if other.outcome == "lost":
            return _platform(own, f"host {other.host} was lost: {other.reason or 'its processes were gone'}")
    return None


def _platform(own: Ending, why: str) -> Ending:
    return replace(own, cut=Cut.PLATFORM, cut_error=JobError(type="platform", message=why))


def _others_than(first: _Failed | None, failed: Sequence[_Failed]) -> tuple[tuple[str, JobError], ...]:
    return tuple((one.host, one.error) for one in failed if one is not first)


def _epoch(known: JobError | None) -> int | None:
    return known.epoch if known is not None else None
