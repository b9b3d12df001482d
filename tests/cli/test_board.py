"""The board of a watcher: a value that messages change, and its pictures."""

from typing import Any

import orjson
import pytest
from rich.console import Console

from epochcast.cli.board import BARS, Board, apply, levels, sparkline
from epochcast.cli.live import picture
from epochcast.cli.output import duration, plain
from epochcast.cli.watch import outcome
from epochcast.events import decode
from epochcast.following import Message
from epochcast.jobs import Status
from tests.epochcast.scripted import message


def event(seq: int, kind: str = "progress", **fields: Any) -> Message:
    return decode(orjson.dumps(message(seq, kind, **fields)))


def board_after(*events: Message) -> Board:
    board = Board(42, "digits")
    for each in events:
        board = apply(board, each)
    return board


def test_an_epoch_moves_bar_loss_and_metrics() -> None:
    board = board_after(event(1), event(2, metrics={"val_loss": 0.5}, eta_s=61.5))
    assert (board.current_epoch, board.progress, board.eta_s) == (2, 0.2, 61.5)
    assert board.losses == (1 / 2, 1 / 3)
    assert board.metrics == {"val_loss": 0.5}


def test_an_epoch_that_a_resumed_attempt_repeats_replaces_its_first_showing() -> None:
    board = board_after(event(1), event(2), event(3), event(2, current_loss=0.9, attempt=2), event(3, current_loss=0.8))
    assert board.loss_epochs == (1, 2, 3)
    assert board.losses == (1 / 2, 0.9, 0.8)


def test_a_loss_that_is_not_a_number_leaves_the_line_as_it_was() -> None:
    assert board_after(event(1), event(2, current_loss=None, non_finite=["train_loss"])).losses == (1 / 2,)


def test_log_lines_change_nothing_else() -> None:
    board = board_after(event(1), event(2, "log", message="one\ntwo", level="WARNING", status="queued"))
    assert board.lines == (("WARNING", "one"), ("WARNING", "two"))
    assert board.status is Status.RUNNING


OOM = {
    "type": "cuda_oom",
    "message": "CUDA out of memory",
    "detail": "CUDA out of memory. Tried to allocate 20.00 GiB. …",
    "verdict": "batch too large by about 1.1x: try batch_size <= 96",
    "rank": 0,
    "host": "gpu-3",
    "gpu": "NVIDIA H200",
    "epoch": 3,
    "step": 17,
    "memory": {"requested_gib": 20.0, "free_gib": 0.5, "allocated_gib": 130.1, "total_gib": 139.8},
    "traceback": "Traceback (most recent call last):\n"
    + "".join(f'  File "train.py", line {n}, in f{n}\n    call{n}()\n' for n in range(9))
    + '  File "/venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 7, in _call_impl\n    call()\n'
    + "torch.OutOfMemoryError: \x1b[31mCUDA out of memory. …\n",
}


def test_a_failure_is_shown_with_advice_numbers_and_the_last_frames() -> None:
    shown = outcome(board_after(event(1, "error", error_message="CUDA out of memory", error=OOM))).splitlines()
    assert shown[0] == "job 42 failed: CUDA out of memory"
    assert shown[1:4] == [
        "  batch too large by about 1.1x: try batch_size <= 96",
        "  rank 0 on gpu-3 (NVIDIA H200), epoch 3, step 17",
        "  memory: requested 20.0 GiB, free 512 MiB, allocated 130.1 GiB, total 139.8 GiB",
    ]
    assert shown[4:10] == [
        part for n in (6, 7, 8) for part in (f'    File "train.py", line {n}, in f{n}', f"      call{n}()")
    ]
    assert shown[10].startswith("all of it: epochcast show 42")
    assert "\x1b" not in "".join(shown)


def test_outcomes_say_what_to_do_next() -> None:
    assert "epochcast models download 7" in outcome(board_after(event(1, "complete")))
    failed = outcome(board_after(event(1, "error")))
    assert failed.startswith("job 42 failed: CUDA out of memory")
    assert "epochcast logs 42" in failed
    assert "epochcast restart 42" in outcome(board_after(event(1, status="stopped")))


@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_picture_fits_the_terminal_and_shows_everything(width: int) -> None:
    events = [event(epoch, metrics={"val_loss": 0.5}, eta_s=90) for epoch in range(1, 11)]
    board = board_after(*events, event(11, "log", message="a very long line " * 20))
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(picture(board, width))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    if width >= 80:
        text = "\n".join(lines)
        for part in ("job 42", "digits", "running", "100%", "epoch 10/10", "ETA 1 min 30 s", "val_loss 0.5", BARS[-1]):
            assert part in text


def test_log_lines_cannot_steer_the_terminal() -> None:
    board = board_after(event(1, "log", message="\x1b[2J\x1b]0;title\x07red [bold]x[/bold]"))
    console = Console(width=80, force_terminal=True, color_system=None)
    with console.capture() as capture:
        console.print(picture(board, 80))
    assert "\x1b" not in capture.get().replace("\x1b[?25l", "")
    assert "[bold]x[/bold]" in capture.get()


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ((), 10, ""),
        ((1.0,), 10, "▁"),
        ((1.0, 1.0), 10, "▁▁"),
        ((0.0, 7.0), 10, "▁█"),
        ((0.0, 0.0, 7.0, 7.0), 2, "▁█"),
        ((5.0,), 0, ""),
    ],
)
def test_sparklines(values: tuple[float, ...], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_a_loss_that_falls_by_decades_is_drawn_by_its_logarithm_and_any_other_as_it_is() -> None:
    assert sparkline(levels((1.0, 0.1, 0.01, 0.001)), 8) == "█▆▃▁"
    for losses in ((1.0, 0.5, 0.1), (1.0, 0.0), (-1.0, 100.0), ()):
        assert levels(losses) == losses


def test_long_histories_keep_the_width() -> None:
    assert len(sparkline(tuple(float(value) for value in range(9_999)), 60)) == 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.6, "1 min"), (125, "2 min 5 s"), (3600, "1 h"), (12_000, "3 h 20 min"), (187_200, "2 d 4 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_plain_text_keeps_tabs_and_letters() -> None:
    assert plain("a\tb\x1b[31mred\x1b[0m é\r\x00") == "a\tbred é"
