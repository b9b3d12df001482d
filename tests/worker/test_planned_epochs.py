"""A script that knows better than its submission how many epochs it trains: events, record and outcome follow it."""

from epochcast.events import Progress
from epochcast.jobs import Status
from tests.worker.host import Host

SCRIPT = """
from epochcast.integrations.link import link
link().epoch_ended(0, {total})
for epoch in range(1, 5):
    link().report(epoch, {{"train_loss": 1 / epoch}})
    link().epoch_ended(epoch)
"""


def test_the_scripts_number_of_epochs_wins_over_the_submitted_one(host: Host) -> None:
    job = host.run(SCRIPT.format(total=4), total_epochs=1)
    progress = [one for one in host.messages(job.job_id) if isinstance(one, Progress) and one.current_epoch]
    assert [(one.current_epoch, one.total_epochs, one.progress) for one in progress] == [
        (1, 4, 0.25), (2, 4, 0.5), (3, 4, 0.75), (4, 4, 1.0),
    ]  # fmt: skip
    assert (job.status, job.current_epoch, job.total_epochs) == (Status.SUCCEEDED, 4, 4)
    assert host.messages(job.job_id)[-1].total_epochs == 4


def test_a_number_that_is_none_is_passed_over_and_said(host: Host) -> None:
    job = host.run(SCRIPT.format(total=0), total_epochs=4)
    assert (job.status, job.current_epoch, job.total_epochs) == (Status.SUCCEEDED, 4, 4)
    assert any("total_epochs" in line for line in host.logs(job.job_id))
