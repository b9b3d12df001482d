"""What ended an attempt on several hosts, from how each host's part ended."""

from epochcast.jobs import JobError, Status
from shared.gang_record import MemberState
from tests.shared.records import spec
from worker.gang_ending import combine
from worker.outcome import Cut, Ending, Finish, Lost, Requeue, decide

BUG = JobError(type="user_error", message="ValueError: bad shard", rank=2)
GONE = JobError(type="user_error", message="RuntimeError: Connection closed by peer [10.0.0.2]:4242", rank=0)
LEFT = JobError(type="user_error", message="the script exited with code 1", exit_code=1, rank=0)


def own(exit_code: int | None = 0, cut: Cut | None = None, failure: JobError | None = None) -> Ending:
    exit_error = LEFT if exit_code else None
    located = failure.model_copy(update={"host": "a", "epoch": 3}) if failure else None
    return Ending(exit_code, cut, None, located, exit_error, finished_all_epochs=True)


def other(
    outcome: str | None = "succeeded",
    error: JobError | None = None,
    failed_at: float = 10.0,
    exit_code: int | None = 0,
    *,
    draining: bool = False,
    has_lease: bool = False,
) -> MemberState:
    at = failed_at if error else None
    return MemberState(1, "b", has_lease, draining, error, at, outcome, None, exit_code)


def outcome_of(ending: Ending, *others: MemberState, failed_at: float = 11.0) -> object:
    return decide(combine(ending, failed_at, others).ending, spec(), 0)


def test_it_succeeds_when_every_host_did() -> None:
    assert outcome_of(own(), other()) == Finish(Status.SUCCEEDED)


def test_a_failure_elsewhere_is_named_over_its_consequence_here_whichever_came_first() -> None:
    for failed_at in (9.0, 11.0):
        combined = combine(own(1, None, GONE), failed_at, [other("failed", BUG, exit_code=1)])
        error = combined.ending.failure
        assert error is not None
        assert (error.message, error.rank, error.host, error.epoch) == (BUG.message, 2, "b", 3)
        assert [error.message for _, error in combined.consequences] == [GONE.message]


def test_among_equals_the_earliest_is_named() -> None:
    late = JobError(type="user_error", message="KeyError: 'x'", rank=0)
    first = combine(own(1, None, late), 11.0, [other("failed", BUG, 10.0, 1)]).ending.failure
    assert first is not None
    assert first.rank == 2
    first = combine(own(1, None, late), 9.0, [other("failed", BUG, 10.0, 1)]).ending.failure
    assert first is not None
    assert first.rank == 0


def test_a_rank_that_had_failed_before_it_was_told_to_end_is_named() -> None:
    assert outcome_of(own(None, Cut.GANG), other("failed", BUG, exit_code=1)) == Finish(
        Status.FAILED, BUG.model_copy(update={"host": "b"})
    )


def test_a_host_that_fell_silent_makes_the_attempt_lost_though_ranks_failed_of_it() -> None:
    silent = other(None, exit_code=None)
    assert outcome_of(own(1, None, GONE), silent) == Lost("host b was lost: its lease ran out")
    assert outcome_of(own(1), silent) == Lost("host b was lost: its lease ran out"), "a bare exit code says nothing"


def test_a_bug_is_the_bugs_fault_even_when_a_host_is_lost_too() -> None:
    outcome = outcome_of(own(1, None, BUG), other(None, exit_code=None))
    assert isinstance(outcome, Finish)
    assert outcome.error is not None
    assert outcome.error.message == BUG.message


def test_only_consequences_known_names_the_first_of_them() -> None:
    outcome = outcome_of(own(1, None, GONE), other("killed", exit_code=-9))
    assert isinstance(outcome, Finish)
    assert outcome.error is not None
    assert outcome.error.message == GONE.message


def test_a_draining_host_drains_the_attempt_whatever_its_ranks_made_of_it() -> None:
    drained = Requeue("drained", "the worker was shut down")
    assert outcome_of(own(1, None, GONE), other("drained", exit_code=-15)) == drained
    assert outcome_of(own(1, Cut.DRAINED), other("killed", exit_code=-9)) == drained
    assert outcome_of(own(), other("drained", exit_code=-15, draining=True)) == drained
    assert outcome_of(own(), other("drained", draining=True)) == Finish(Status.SUCCEEDED), "all were at their end"


def test_a_stop_and_a_limit_of_the_job_stay_what_they_are() -> None:
    assert outcome_of(own(1, Cut.STOPPED), other("failed", BUG, exit_code=1)) == Finish(Status.STOPPED)
    timeout = JobError(type="timeout", message="too long")
    ending = Ending(-9, Cut.TIMEOUT, timeout, None, LEFT, finished_all_epochs=False)
    assert outcome_of(ending, other("killed", exit_code=-9)) == Finish(Status.FAILED, timeout)


def test_what_the_platform_did_elsewhere_is_the_platforms() -> None:
    assert outcome_of(own(None, Cut.GANG), other("lost", exit_code=None)) == Lost(
        "host b was lost: its processes were gone"
    )
    outcome = outcome_of(own(None, Cut.GANG), other("store", exit_code=None))
    assert isinstance(outcome, Requeue)
    assert outcome.outcome == "platform"
