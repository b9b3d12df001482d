"""`on_oom: shrink` over whole attempts: real recipes meet a GPU's out-of-memory error and go on in smaller parts."""

from typing import Any

import pytest

from epochcast.events import BEFORE_ALL, Progress
from epochcast.jobs import Status
from shared import recipes
from tests.worker.host import Host, assert_gapless

# The recipe, on a device that has no room for a backward pass over more than `limit` rows, from the second epoch on.
CROWDED = """
    import sys
    import torch
    from torch.nn import functional as F
    from epochcast.training import current_run
    from worker.trainer import main

    compute = F.cross_entropy

    def cross_entropy(scores, targets, **options):
        if torch.is_grad_enabled() and current_run().epoch >= {epoch} and len(targets) > {limit}:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return compute(scores, targets, **options)

    F.cross_entropy = cross_entropy
    sys.exit(main())
"""
TABLE = {"dataset": "breast-cancer", "batch_size": 32, "dropout": 0.0}
IMAGES = {"dataset": "digits", "width": 4, "batch_size": 64, "dropout": 0.0}
TEXT = {"layers": 1, "width": 16, "heads": 1, "context": 16, "micro_batch_size": 8, "steps_per_epoch": 10}


def submit(host: Host, recipe: str, hyperparameters: dict[str, Any]) -> int:
    resolved = recipes.validate(recipe, hyperparameters)
    return host.submit(recipe=recipe, hyperparameters=resolved, total_epochs=3, on_oom="shrink")


def attempt(host: Host, job_id: int, limit: int, epoch: int = 2) -> None:
    host.wait_placed(job_id)
    host.wait_ended(host.attempt(job_id, CROWDED.format(limit=limit, epoch=epoch)))


@pytest.mark.parametrize(
    ("recipe", "hyperparameters", "limit", "before", "after"),
    [
        ("tabular-classifier", TABLE, 16, 32, 16),
        ("image-classifier", IMAGES, 32, 64, 32),
        ("language-model", TEXT, 4 * 16, 8, 4),
    ],
)
def test_recipe_goes_on_from_its_checkpoint_with_half_the_micro_batch(
    host: Host, recipe: str, hyperparameters: dict[str, Any], limit: int, before: int, after: int
) -> None:
    job_id = submit(host, recipe, hyperparameters)
    attempt(host, job_id, limit)
    job = host.store.get(job_id)
    assert (job.status, job.current_epoch, job.error) == (Status.QUEUED, 1, None)
    changed = job.spec.hyperparameters
    assert (changed["micro_batch_size"], changed["accumulation_steps"]) == (after, 2)
    assert changed.get("batch_size") == hyperparameters.get("batch_size")

    attempt(host, job_id, limit)
    job = host.store.get(job_id)
    assert (job.status, job.attempt, job.current_epoch) == (Status.SUCCEEDED, 2, 3)
    reason = f"cuda_oom: micro_batch_size {before} -> {after}, accumulation_steps 1 -> 2"
    first, second = host.queries.attempts(job_id)
    assert (first["outcome"], first["reason"], first["error"]["type"]) == ("failed", reason, "cuda_oom")
    assert (second["outcome"], second["resumed_epoch"]) == ("succeeded", 1)
    assert f"{reason}; trying again from the last checkpoint" in host.logs(job_id)
    statuses = [message.status for message in host.messages(job_id) if isinstance(message, Progress)]
    assert Status.QUEUED in statuses[statuses.index(Status.RUNNING) :]
    assert_gapless(host.entries(job_id))


def test_loss_goes_the_way_it_would_have_gone_with_the_memory(host: Host) -> None:
    roomy = submit(host, "tabular-classifier", TABLE)
    host.wait_ended(host.attempt(roomy))
    crowded = submit(host, "tabular-classifier", TABLE)
    attempt(host, crowded, 16)
    attempt(host, crowded, 16)
    losses = [host.queries.metrics(job_id)["train_loss"] for job_id in (roomy, crowded)]
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_job_that_fits_in_no_part_fails_with_the_error_at_micro_batch_one(host: Host) -> None:
    job_id = submit(host, "tabular-classifier", {**TABLE, "batch_size": 2})
    attempt(host, job_id, 0, epoch=1)
    assert host.store.get(job_id).status is Status.QUEUED
    attempt(host, job_id, 0, epoch=1)
    job = host.store.get(job_id)
    assert (job.status, job.error_message) == (Status.FAILED, "CUDA out of memory")
    assert job.spec.hyperparameters["micro_batch_size"] == 1
    assert [row["outcome"] for row in host.queries.attempts(job_id)] == ["failed", "failed"]
    assert [line for line in host.logs(job_id) if line.startswith("cuda_oom")] == [
        "cuda_oom: micro_batch_size 2 -> 1, accumulation_steps 1 -> 2; trying again from the last checkpoint"
    ]


def test_without_shrink_the_error_is_the_end(host: Host) -> None:
    job = host.run(
        CROWDED.format(limit=16, epoch=1),
        recipe="tabular-classifier",
        hyperparameters=recipes.validate("tabular-classifier", TABLE),
        total_epochs=1,
    )
    assert (job.status, job.attempt, job.error_message) == (Status.FAILED, 1, "CUDA out of memory")


def test_line_that_says_so_is_in_the_archive_too(host: Host) -> None:
    """Who asks for the log when Redis has lost its stream is told as well."""
    job_id = submit(host, "tabular-classifier", TABLE)
    attempt(host, job_id, 16)
    archived = [entry.payload for entry in host.queries.archived(job_id, BEFORE_ALL)]
    assert any(b"micro_batch_size 32 -> 16" in payload for payload in archived)
