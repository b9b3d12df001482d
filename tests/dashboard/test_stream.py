"""The stream library by itself: its unit tests, and its class against sockets that close, stall and lose messages."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests import markdown
from tests.dashboard.building import SOURCE, installed, node
from tests.epochcast.scripted import ScriptedGateway, message, says

LIBRARY = (SOURCE / "src" / "stream" / "index.ts").as_uri()

# Follows job 42 until the stream is over for good, and prints what it got.
FOLLOW = """
import { TrainingJobStream } from '%(library)s';
const messages = [];
const phases = [];
const options = { url: '%(url)s', after: %(after)s, onMessage: (message) => messages.push(message.id) };
const stream = new TrainingJobStream(42, options);
stream.subscribe(() => {
  const { phase, close } = stream.connection;
  if (phases.at(-1) !== phase) phases.push(phase);
  if (!['ended', 'refused'].includes(phase)) return;
  const { completed, progress, epochs, resyncs } = stream.state;
  console.log(JSON.stringify({ messages, phases, close, completed, progress, epochs: epochs.length, resyncs }));
  stream.close();
});
"""


def follow(gateway: ScriptedGateway, *, after: str | None = None) -> dict[str, Any]:
    words = {
        "library": LIBRARY,
        "url": gateway.url,
        "after": json.dumps(after) if after else "undefined",
    }
    answer: dict[str, Any] = json.loads(node("--input-type=module", "--eval", FOLLOW % words))
    return answer


def progress(seq: int, **fields: Any) -> dict[str, Any]:
    extras = {"metrics": {"loss": 0.5}, "eta_s": None, "attempt": 1, "stop_requested": False}
    return message(seq, **{**extras, **fields})


END = message(10, "complete", duration_s=1.0)


def test_the_librarys_unit_tests_pass() -> None:
    tests = sorted(str(path) for path in (SOURCE / "tests").glob("*.test.ts"))
    assert tests
    node("--test", *tests)


def test_completed_stays_when_the_socket_closes_after_the_end() -> None:
    with ScriptedGateway(says(progress(9), END, close=1000, reason="succeeded")) as gateway:
        seen = follow(gateway)
    assert (seen["completed"], seen["progress"], seen["phases"][-1]) == (True, 1, "ended")
    assert seen["close"] == {"code": 1000, "reason": "succeeded"}
    assert len(gateway.handshakes) == 1


@pytest.mark.parametrize("reason", ["job not found", "invalid token", "token expired", "invalid cursor"])
def test_a_refusal_is_never_tried_again(reason: str) -> None:
    with ScriptedGateway(says(close=1008, reason=reason)) as gateway:
        seen = follow(gateway)
    assert (seen["phases"][-1], seen["close"]["reason"]) == ("refused", reason)
    assert len(gateway.handshakes) == 1


@pytest.mark.parametrize(
    "close", [(1012, "service restart"), (1013, "slow consumer"), (4408, "idle timeout"), (1011, "internal error")]
)
def test_a_lost_connection_comes_back_with_its_cursor_and_each_message_once(close: tuple[int, str]) -> None:
    first = says(progress(7), progress(8), close=close[0], reason=close[1])
    # The gateway's own order, and a repetition, as from a twin that was behind.
    second = says(progress(8), progress(9), END, close=1000, reason="succeeded")
    with ScriptedGateway(first, second) as gateway:
        seen = follow(gateway, after="1-6")
    assert seen["messages"] == ["1-7", "1-8", "1-9", "1-10"]
    assert gateway.afters() == ["1-6", "1-8"]


def test_a_broken_connection_comes_back_with_the_cursor_that_it_had() -> None:
    second = says(progress(7), progress(8), progress(9), END, close=1000, reason="succeeded")
    with ScriptedGateway(says(close=None), says(close=None), second) as gateway:
        seen = follow(gateway, after="1-6")
    assert seen["messages"] == ["1-7", "1-8", "1-9", "1-10"]
    assert gateway.afters() == ["1-6", "1-6", "1-6"]


def test_a_hole_in_the_ids_is_asked_for_again() -> None:
    first = says(progress(7), progress(9), close=1000, reason="succeeded")
    second = says(progress(8), progress(9), END, close=1000, reason="succeeded")
    with ScriptedGateway(first, second) as gateway:
        seen = follow(gateway, after="1-6")
    assert seen["messages"] == ["1-7", "1-8", "1-9", "1-10"]
    assert gateway.afters() == ["1-6", "1-7"]


def test_an_announced_hole_is_taken_as_it_is() -> None:
    with ScriptedGateway(says(progress(9, resync=True), END, close=1000, reason="succeeded")) as gateway:
        seen = follow(gateway, after="1-2")
    assert (seen["messages"], seen["resyncs"]) == (["1-9", "1-10"], 1)
    assert len(gateway.handshakes) == 1


# --- all places taken: the 11th of a job is told nothing, and asks

CROWDED = says(close=1013, reason="too many connections")
JOB = "/api/v1/training-jobs/42"


def snapshot(seq: int, **fields: Any) -> dict[str, Any]:
    """What `GET` says of job 42 after its event `seq`."""
    ended = {"model_id": None, "final_metrics": None, "error_message": None, "error": None}
    job = {**progress(seq), **ended, "last_event_id": f"1-{seq}", **fields}
    return {name: value for name, value in job.items() if name not in ("type", "id")}


def page(*items: dict[str, Any], after: str, resync: bool = False) -> dict[str, Any]:
    return {"items": list(items), "next_after": items[-1]["id"] if items else after, "resync": resync}


def test_who_finds_no_place_asks_for_the_messages_to_the_end() -> None:
    pages: dict[str, list[Any]] = {
        f"{JOB}/events": [
            page(progress(7), progress(8), after="1-6"),
            503,
            page(progress(9), END, after="1-8"),
            page(after="1-10"),
        ],
        JOB: [snapshot(10, status="succeeded")],
    }
    with ScriptedGateway(CROWDED, pages=pages) as gateway:
        seen = follow(gateway, after="1-6")
    assert seen["messages"] == ["1-7", "1-8", "1-9", "1-10"]
    assert (seen["completed"], seen["close"]) == (True, {"code": 1000, "reason": "succeeded"})
    assert "polling" in seen["phases"]
    assert seen["phases"][-1] == "ended"
    asked = [path for path in gateway.gets if "/events" in path]
    assert [path.partition("after=")[2].partition("&")[0] for path in asked] == ["1-6", "1-8", "1-8", "1-10"]
    # What there is already comes at once; after that a call is held back until there is something.
    assert [path.partition("wait=")[2] for path in asked] == ["0", "20", "20", "20"]


def test_who_asks_without_a_cursor_begins_with_the_state_now() -> None:
    pages = {
        f"{JOB}/events": [page(progress(9), END, after="1-8"), page(after="1-10")],
        JOB: [snapshot(8), snapshot(10, status="succeeded")],
    }
    with ScriptedGateway(CROWDED, pages=pages) as gateway:
        seen = follow(gateway)
    assert seen["messages"] == ["1-8", "1-9", "1-10"]


def test_who_asks_is_told_of_a_hole_too() -> None:
    pages = {
        f"{JOB}/events": [page(progress(9), END, after="1-2", resync=True), page(after="1-10")],
        JOB: [snapshot(10, status="succeeded")],
    }
    with ScriptedGateway(CROWDED, pages=pages) as gateway:
        seen = follow(gateway, after="1-2")
    assert (seen["messages"], seen["resyncs"]) == (["1-2", "1-9", "1-10"], 1)


def test_as_soon_as_a_place_is_free_the_socket_goes_on_where_the_asking_was() -> None:
    pages = {f"{JOB}/events": [page(progress(7), after="1-6"), page(after="1-7")], JOB: [snapshot(7)]}
    placed = says(progress(8), progress(9), END, close=1000, reason="succeeded")
    with ScriptedGateway(CROWDED, placed, pages=pages) as gateway:
        seen = follow(gateway, after="1-6")
    assert seen["messages"] == ["1-7", "1-8", "1-9", "1-10"]
    assert gateway.afters() == ["1-6", "1-7"]
    assert seen["phases"][-1] == "ended"


def test_the_manuals_snippet_follows_a_job_to_its_end_and_lets_the_program_go() -> None:
    page = (markdown.DOCS / "dashboard.md").read_text()
    (code, _hook) = markdown.blocks(page, "typescript")
    with ScriptedGateway(says(progress(9), END, close=1000, reason="succeeded")) as gateway:
        code = code.replace("http://localhost:8000", gateway.url).replace("epochcast-stream", LIBRARY)
        output = node("--input-type=module", "--eval", f"const token = null;\n{code}")
    assert output.splitlines()[-1] == "succeeded 1 1 undefined ended"


def test_the_package_builds_with_types_and_runs_under_node(tmp_path: Path) -> None:
    installed()
    tsc = SOURCE / "node_modules" / "typescript" / "bin" / "tsc"
    out = tmp_path / "epochcast-stream"
    node(tsc, "--project", SOURCE / "src" / "stream" / "tsconfig.json", "--outDir", out)
    exports = json.loads((SOURCE / "src" / "stream" / "package.json").read_text())["exports"]
    for entry in exports.values():
        for path in entry.values():
            assert (out / path).exists(), path
    code = f"import * as library from '{(out / 'index.js').as_uri()}'; console.log(Object.keys(library).join());"
    assert "TrainingJobStream" in node("--input-type=module", "--eval", code)
