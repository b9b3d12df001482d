"""A job in a notebook: a real IPython kernel runs the cells, and what it displays is read as a front end would."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import orjson
import pytest
from jupyter_client.manager import KernelManager

import epochcast
from epochcast.cli.board import Board, apply, with_history
from epochcast.events import decode
from epochcast.jobs import Status
from epochcast.notebook import picture
from tests.epochcast.scripted import ScriptedGateway, job, message, says, stays
from tests.waiting import wait_until

PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def manager() -> Iterator[KernelManager]:
    started = KernelManager(kernel_name="python3")
    started.start_kernel()
    try:
        yield started
    finally:
        started.shutdown_kernel(now=True)


@pytest.fixture(scope="module")
def kernel(manager: KernelManager) -> Iterator[Any]:
    """A kernel as Jupyter starts it, with epochcast imported."""
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=PATIENCE_S)
        run(client, "import epochcast")
        yield client
    finally:
        client.stop_channels()


def run(client: Any, cell: str) -> list[dict[str, Any]]:
    """The messages that a front end gets while the cell runs, in order. Raises what the cell raised."""
    found: list[dict[str, Any]] = []
    reply = client.execute_interactive(cell, timeout=PATIENCE_S, output_hook=found.append)
    assert reply["content"]["status"] == "ok", "\n".join(reply["content"].get("traceback", []))
    return found


def pictures(outputs: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What is painted: first `display_data`, then its updates; with the display's id and its HTML."""
    kinds = ("display_data", "update_display_data")
    painted = [one for one in outputs if one["msg_type"] in kinds]
    return [
        (one["msg_type"], one["content"]["transient"]["display_id"], one["content"]["data"]["text/html"])
        for one in painted
    ]


ENDED = {"/api/v1/training-jobs/42": [job(), job("succeeded", model_id=7, progress=1.0)]}
WHOLE = says(*(message(seq, metrics={"val_loss": 0.5}) for seq in range(2, 9)), message(9, "complete"))


@pytest.mark.parametrize(
    "cell",
    [
        "with epochcast.Client({url!r}) as client:\n    ended = client.job(42).show()\n",
        "async with epochcast.AsyncClient({url!r}) as client:\n    ended = await (await client.job(42)).show()\n",
    ],
    ids=["blocking", "asynchronous"],
)
def test_show_paints_one_picture_below_the_cell_and_repaints_it_to_the_end(kernel: Any, cell: str) -> None:
    with ScriptedGateway(WHOLE, pages={"/api/v1/training-jobs/42": [job()]}) as gateway:
        outputs = run(kernel, cell.format(url=gateway.url))
    painted = pictures(outputs)
    assert painted[0][0] == "display_data"
    assert {kind for kind, _, _ in painted[1:]} == {"update_display_data"}
    assert len({display for _, display, _ in painted}) == 1
    last = painted[-1][2]
    for part in ("job 42", "succeeded", "100%", "<svg", "model 7", "val_loss"):
        assert part in last
    assert [one for one in outputs if one["msg_type"] in ("stream", "error")] == []


def test_a_job_that_is_a_cells_value_is_shown_as_it_was(kernel: Any) -> None:
    failed = job("failed", error_message="CUDA out of memory", name="<b>bold</b>")
    with ScriptedGateway(says(), pages={"/api/v1/training-jobs/42": [failed]}) as gateway:
        outputs = run(kernel, f"epochcast.Client({gateway.url!r}).job(42)")
    [value] = [one for one in outputs if one["msg_type"] == "execute_result"]
    shown = value["content"]["data"]["text/html"]
    assert "CUDA out of memory" in shown
    assert "&lt;b&gt;bold&lt;/b&gt;" in shown


def test_without_a_notebook_the_same_call_writes_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with ScriptedGateway(WHOLE, pages=ENDED) as gateway, epochcast.Client(gateway.url) as client:
        assert client.show(42).status is Status.SUCCEEDED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("running  epoch 2/10")
    assert "job 42 succeeded" in "\n".join(lines)


def test_an_interrupted_cell_leaves_the_job_and_the_client_working(kernel: Any, manager: KernelManager) -> None:
    with ScriptedGateway(stays(message(2)), pages={"/api/v1/training-jobs/42": [job()]}) as gateway:
        run(kernel, f"client = epochcast.Client({gateway.url!r})")
        asked = kernel.execute("client.show(42)", stop_on_error=False)  # else the next cell may be aborted with it
        wait_until(lambda: bool(gateway.handshakes), "the cell's socket", timeout_s=PATIENCE_S)
        manager.interrupt_kernel()
        reply = kernel.get_shell_msg(timeout=PATIENCE_S)
        assert (reply["parent_header"]["msg_id"], reply["content"]["ename"]) == (asked, "KeyboardInterrupt")
        run(kernel, "assert client.job(42).status == 'running'; client.close()")
        assert not any("/stop" in path for path in gateway.gets)


# --- the picture


class Tags(HTMLParser):
    """Fails on a tag that is closed by another, and knows which were there."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def painted(*messages: dict[str, Any]) -> tuple[str, Tags]:
    board = Board(42, "digits")
    for content in messages:
        board = apply(board, decode(orjson.dumps(content)))
    found = picture(board)
    tags = Tags()
    tags.feed(found)
    assert tags.open == []
    return found, tags


def test_nothing_that_a_job_says_can_become_markup_or_code() -> None:
    evil = "<script>alert(1)</script>\x1b[31m & \"'"
    found, tags = painted(
        message(1, metrics={evil: 1.0}),
        message(2, "log", message=evil),
        message(3, "error", error_message=evil, error={"type": "user_error", "message": evil, "verdict": evil}),
    )
    assert tags.seen <= {"div", "b", "progress", "svg", "polyline", "pre"}
    assert "\x1b" not in found
    assert found.count("&lt;script&gt;") == 4


def test_the_curve_of_a_hundred_thousand_epochs_is_a_small_picture() -> None:
    losses: list[float | None] = [1.0 / epoch for epoch in range(1, 100_001)]
    columns: dict[str, list[float | None]] = {"epoch": [*range(1, 100_001)], "train_loss": losses}
    found = picture(with_history(Board(42, "long"), columns))
    assert len(found) < 8_000
    points = re.findall(r'points="([^"]+)"', found)[0].split()
    assert (points[0].split(",")[1], points[-1].split(",")[1]) == ("2.0", "46.0")


@pytest.mark.parametrize("losses", [[1.0], [1.0, 1.0], [None, 2.0], []])
def test_a_curve_of_any_length_is_drawn(losses: list[float | None]) -> None:
    columns: dict[str, list[float | None]] = {"epoch": [*range(1, len(losses) + 1)], "loss": losses}
    assert "nan" not in picture(with_history(Board(42, "x"), columns)).lower()
