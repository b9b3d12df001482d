"""The training SDK: a stop ends a script in order, and its next attempt goes on from there."""

import os
import signal
import threading
from typing import Any

import torch

from tests.epochcast.training_run import Begin, Walk, loader, packet, stop
from tests.listening import Attempt
from tests.waiting import wait_until


def test_stop_between_epochs_checkpoints_the_state_and_ends(begin: Begin) -> None:
    run, attempt = begin()
    run.state(walk=Walk())
    trained = []
    for epoch in run.epochs():
        trained.append(epoch)
        stop()
        assert run.stopping
    assert trained == [1]
    assert not run.finished
    assert packet(attempt, "checkpoint")["epoch"] == 1


def test_stop_does_not_checkpoint_an_epoch_twice(begin: Begin) -> None:
    run, attempt = begin()
    run.state(walk=Walk())
    for _ in run.epochs():
        stop()
        run.checkpoint()
    run.log("end")
    packet(attempt, "log")
    assert len(attempt.said("checkpoint")) == 1


def test_epoch_cut_short_is_neither_reported_nor_checkpointed(begin: Begin) -> None:
    run, attempt = begin()
    walk = Walk()
    run.state(walk=walk)
    steps = 0
    for epoch in run.epochs():
        for (batch,) in run.batches(loader()):
            walk.step(batch)
            steps += 1
            if steps == 7:
                stop()
        run.report(epoch=epoch, loss=1.0)
        run.checkpoint()
    assert steps == 7
    assert "epoch 2 after 2 batches" in packet(attempt, "log")["message"]
    assert [said["epoch"] for said in attempt.said("report")] == [1]
    assert [said["epoch"] for said in attempt.said("checkpoint")] == [1]
    assert [said["epoch"] for said in attempt.said("epoch")] == [0, 1]


def test_stop_in_the_last_step_of_an_epoch_ends_it_whole(begin: Begin) -> None:
    run, attempt = begin()
    run.state(walk=Walk())
    for epoch in run.epochs():
        for number, _ in enumerate(run.batches(loader()), 1):
            if number == 5:
                stop()
        run.report(epoch=epoch, loss=1.0)
    assert packet(attempt, "checkpoint")["epoch"] == 1
    assert attempt.said("report")[0]["epoch"] == 1


def test_script_that_checkpoints_inside_epochs_resumes_at_the_next_batch_bit_for_bit(begin: Begin) -> None:
    def train(told: dict[str, Any], stop_at: int | None) -> tuple[Walk, int, Attempt]:
        run, attempt = begin(**told)
        walk, steps = Walk(), 0
        run.state(walk=walk)
        run.resume()
        for _ in run.epochs():
            for (batch,) in run.batches(loader()):
                walk.step(batch)
                steps += 1
                if steps == stop_at:
                    stop()
                if run.step == 1:
                    run.checkpoint()
        run.log("end")
        wait_until(lambda: "end" in [said["message"] for said in attempt.said("log")], "the end")
        return walk, steps, attempt

    whole, _, _ = train({}, None)
    _, _, stopped = train({}, 8)
    assert [(said["epoch"], said["step"]) for said in stopped.said("checkpoint")] == [(1, 1), (2, 1), (2, 3)]
    resumed, steps, _ = train({"checkpoints": stopped.checkpoints()}, None)
    assert steps == 2 + 5
    assert torch.equal(whole.place, resumed.place)


def test_forked_helper_of_a_script_still_dies_of_sigterm(begin: Begin) -> None:
    begin()
    ready, says_ready = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(says_ready, b"!")  # Python forgets signals that come between the fork and its own clean-up after it
        while True:
            pass
    os.read(ready, 1)
    os.close(ready)
    os.close(says_ready)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_init_in_another_thread_leaves_signals_alone(begin: Begin) -> None:
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
