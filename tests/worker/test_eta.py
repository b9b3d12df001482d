"""How long a job has left, by what its recent epochs took."""

import pytest

from epochcast.jobs import TrainingJob
from tests.epochcast.scripted import job
from worker.job_state import JobState


def eta_s(*durations_s: float, total_epochs: int) -> float | None:
    now = 0.0
    state = JobState(TrainingJob.model_validate(job(total_epochs=total_epochs)), clock=lambda: now)
    for epoch, duration_s in enumerate(durations_s, 1):
        state.begin_epoch()
        now += duration_s
        state.report(epoch, {"loss": 1.0}, [])
        state.close_epoch()
    return state.job.eta_s


@pytest.mark.parametrize(("durations_s", "left_s"), [([3.0], 36.0), ([2.0, 2.0], 22.0), ([2.0, 2.0, 2.0], 20.0)])
def test_even_epochs_are_multiplied(durations_s: list[float], left_s: float) -> None:
    assert eta_s(*durations_s, total_epochs=13) == left_s


def test_a_validation_in_every_fifth_epoch_counts() -> None:
    assert eta_s(*[1.0, 1.0, 1.0, 1.0, 6.0] * 4, total_epochs=40) == 20 * 2.0


def test_one_epoch_that_a_laptop_slept_through_does_not() -> None:
    assert eta_s(1.0, 1.0, 3600.0, 1.0, 1.0, total_epochs=10) == 5.0
