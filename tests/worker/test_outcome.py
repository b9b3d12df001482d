"""The table from how an attempt ended to what becomes of the job (execution rules 25-27)."""

import pytest

from epochcast.jobs import ErrorType, JobError, Status
from tests.shared.records import spec
from worker.outcome import Abandon, Cut, Ending, Finish, Lost, Outcome, Requeue, decide


def ending(
    exit_code: int | None = 0,
    cut: Cut | None = None,
    failure: ErrorType | None = None,
    cut_error: ErrorType | None = None,
    *,
    all_epochs: bool = True,
) -> Ending:
    def error(kind: ErrorType | None) -> JobError | None:
        return JobError(type=kind, message=kind) if kind else None

    return Ending(
        exit_code, cut, error(cut_error), error(failure), error("user_error" if exit_code else None), all_epochs
    )


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (ending(), Finish(Status.SUCCEEDED)),
        (ending(0, Cut.STOPPED), Finish(Status.STOPPED)),
        (ending(-9, Cut.STOPPED, "user_error"), Finish(Status.STOPPED)),
        (ending(0, Cut.LEASE_LOST), Abandon()),
        (ending(-9, Cut.LICENCE), Lost("SQL was away for longer than the licence")),
        (ending(None, Cut.PLATFORM, cut_error="platform"), Lost("platform")),
        (ending(0, Cut.DRAINED, all_epochs=False), Requeue("drained", "the worker was shut down")),
        (ending(0, Cut.DRAINED), Finish(Status.SUCCEEDED)),
        (
            ending(-9, Cut.TIMEOUT, cut_error="timeout"),
            Finish(Status.FAILED, JobError(type="timeout", message="timeout")),
        ),
        (ending(1, failure="cuda_oom"), Finish(Status.FAILED, JobError(type="cuda_oom", message="cuda_oom"))),
        (ending(1), Finish(Status.FAILED, JobError(type="user_error", message="user_error"))),
        (ending(0, failure="diverged"), Finish(Status.FAILED, JobError(type="diverged", message="diverged"))),
    ],
)
def test_what_follows(facts: Ending, expected: Outcome) -> None:
    assert decide(facts, spec(), 0) == expected


def test_only_chargeable_failures_are_tried_again_with_growing_pauses() -> None:
    patient = spec(max_restarts=3)
    delays = []
    for used in range(3):
        outcome = decide(ending(1, failure="host_oom"), patient, used)
        assert isinstance(outcome, Requeue)
        assert outcome.charged
        delays.append(outcome.delay_s)
    assert delays == [5.0, 10.0, 20.0]
    assert isinstance(decide(ending(1, failure="host_oom"), patient, 3), Finish)
    for kind in ("cuda_oom", "diverged", "code_rejected"):
        assert isinstance(decide(ending(1, failure=kind), patient, 0), Finish)


def test_cuda_oom_with_shrink_goes_on_with_half_the_micro_batch_uncharged() -> None:
    shrinking = spec(on_oom="shrink", hyperparameters={"batch_size": 64, "micro_batch_size": None, "lr": 0.1})
    outcome = decide(ending(1, failure="cuda_oom"), shrinking, 0)
    assert outcome == Requeue(
        "failed",
        "cuda_oom: micro_batch_size 64 -> 32, accumulation_steps 1 -> 2",
        error=JobError(type="cuda_oom", message="cuda_oom"),
        hyperparameters={"batch_size": 64, "micro_batch_size": 32, "accumulation_steps": 2, "lr": 0.1},
    )


@pytest.mark.parametrize("hyperparameters", [{"micro_batch_size": 1, "accumulation_steps": 64}, {"lr": 0.1}])
def test_cuda_oom_with_nothing_left_to_shrink_is_the_end(hyperparameters: dict[str, object]) -> None:
    outcome = decide(ending(1, failure="cuda_oom"), spec(on_oom="shrink", hyperparameters=hyperparameters), 0)
    assert outcome == Finish(Status.FAILED, JobError(type="cuda_oom", message="cuda_oom"))


def test_a_recipe_shrinks_no_further_than_a_row_for_each_rank() -> None:
    hyperparameters = {"batch_size": 8, "micro_batch_size": 4}
    on_two = spec(on_oom="shrink", hyperparameters=hyperparameters, procs_per_node=2)
    assert isinstance(decide(ending(1, failure="cuda_oom"), on_two, 0), Requeue)
    on_four = spec(on_oom="shrink", hyperparameters=hyperparameters, procs_per_node=2, nodes=2)
    assert isinstance(decide(ending(1, failure="cuda_oom"), on_four, 0), Finish)


def test_shrink_changes_nothing_about_other_failures_and_stops() -> None:
    shrinking = spec(on_oom="shrink", hyperparameters={"micro_batch_size": 8})
    assert isinstance(decide(ending(1, failure="host_oom"), shrinking, 0), Finish)
    assert decide(ending(1, Cut.STOPPED, "cuda_oom"), shrinking, 0) == Finish(Status.STOPPED)
