"""The owner's document works as written: its snippets run unmodified, host, port and job id apart."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.e2e.document import pointed_at, snippet
from tests.platform import Platform
from tests.waiting import wait_until

NODE = Path(sys.executable).parent / "node"
EPOCHS = 6


def submit(platform: Platform, **fields: object) -> int:
    body = {
        "recipe": "image-classifier",
        "hyperparameters": {"model": "mlp", "width": 8},
        "total_epochs": EPOCHS,
        **fields,
    }
    answer = httpx2.post(f"{platform.url}/api/v1/training-jobs", json=body, headers=bearer(platform), timeout=30)
    assert answer.status_code == 201, answer.text
    return int(answer.json()["job_id"])


def bearer(platform: Platform) -> dict[str, str]:
    return {"Authorization": f"Bearer {platform.token}"} if platform.token else {}


def status_of(platform: Platform, job_id: int) -> str:
    answer = httpx2.get(f"{platform.url}/api/v1/training-jobs/{job_id}", headers=bearer(platform), timeout=30)
    return str(answer.json()["status"])


def run(command: list[str | Path], code: str, folder: Path, suffix: str) -> "subprocess.CompletedProcess[str]":
    script = folder / f"snippet{suffix}"
    script.write_text(code)
    return subprocess.run([*command, script], capture_output=True, text=True, timeout=120, check=False)


@contextmanager
def held(platform: Platform) -> Iterator[Callable[[], None]]:
    """Nothing that is submitted begins until a subscriber is there, or the block has ended: a job's start is quicker
    than a snippet's. Yields what waits for the subscriber and then lets jobs begin."""
    hosts = httpx2.get(f"{platform.url}/api/v1/hosts", headers=bearer(platform), timeout=30).json()["items"]

    def turn(verb: str) -> None:
        for host in hosts:
            url = f"{platform.url}/api/v1/hosts/{host['name']}/{verb}"
            assert httpx2.post(url, headers=bearer(platform), timeout=30).status_code == 200

    def is_subscribed() -> bool:
        metrics = httpx2.get(f"{platform.url}/metrics", headers=bearer(platform), timeout=30).text
        return "epochcast_ws_subscribers 1.0" in metrics

    def begin() -> None:
        try:
            wait_until(is_subscribed, "the subscriber", timeout_s=60)
        finally:
            turn("resume")

    turn("drain")
    beginning = threading.Thread(target=begin)
    yield beginning.start
    beginning.join()


def node(code: str, folder: Path) -> str:
    """Runs a browser snippet under Node, which has the same `WebSocket` and `fetch`; returns what it logged."""
    done = run([NODE], code, folder, ".mjs")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_client_follows_a_whole_job_to_a_clean_end(platform: Platform, tmp_path: Path) -> None:
    with held(platform) as begin:
        job_id = submit(platform)
        begin()
        done = run([sys.executable], pointed_at(snippet("Python", "python"), platform.url, job_id), tmp_path, ".py")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "Progress: 0.0%"
    assert f"Epoch: {EPOCHS}/{EPOCHS}" in lines
    assert [line for line in lines if line.startswith("Progress")][-1] == "Progress: 100.0%"
    assert status_of(platform, job_id) == "succeeded"


def test_the_browser_snippet_sees_every_epoch_and_the_close(platform: Platform, tmp_path: Path) -> None:
    with held(platform) as begin:
        job_id = submit(platform)
        begin()
        output = node(pointed_at(snippet("JavaScript", "javascript"), platform.url, job_id), tmp_path)
    assert output.startswith("Connected to training job stream\n")
    assert output.endswith("Connection closed\n")
    for epoch in range(1, EPOCHS + 1):
        assert f"current_epoch: {epoch}," in output
    assert "type: 'complete'" in output


def test_the_polling_loop_ends_when_the_job_does(platform: Platform, tmp_path: Path) -> None:
    job_id = submit(platform)
    loop = pointed_at(snippet("Polling Alternative", "javascript"), platform.url, job_id)
    output = node(f"{loop}\npollTrainingStatus({job_id});\n", tmp_path)
    assert output.splitlines()[-1] == "Progress: 100%"


@pytest.mark.parametrize("part", [0, 1], ids=["subprotocol", "query"])
def test_the_ways_to_authenticate_from_a_browser(platform_with_auth: Platform, tmp_path: Path, part: int) -> None:
    platform = platform_with_auth
    with held(platform) as begin:
        job_id = submit(platform)
        sections = [
            snippet("Authentication", "javascript").replace("your_jwt_token", str(platform.token)),
            f"const token = {json.dumps(platform.token)};\n" + query_snippet(),
        ]
        code = f"const jobId = {job_id};\n{pointed_at(sections[part], platform.url, job_id)}"
        code += "ws.onmessage = (event) => console.log(JSON.parse(event.data).type);\n"
        code += "ws.onclose = (event) => console.log('closed', event.code, event.reason);\n"
        begin()
        output = node(code, tmp_path).splitlines()
    assert output[0] == "progress"
    assert output[-2:] == ["complete", "closed 1000 succeeded"]


def query_snippet() -> str:
    """The document's second authentication snippet stands below the first, after «Or via query parameter»."""
    from tests.e2e.document import DOCUMENT

    after = DOCUMENT.read_text().split("Or via query parameter:", 1)[1]
    return after.split("```javascript\n", 1)[1].split("```", 1)[0]


def test_a_missing_job_reaches_the_documents_handler_as_1008(platform: Platform, tmp_path: Path) -> None:
    url = platform.url.replace("http", "ws")
    code = f"const ws = new WebSocket('{url}/api/v1/training-jobs/999999/stream');\n"
    output = run([NODE], code + snippet("Job Not Found", "javascript"), tmp_path, ".mjs")
    assert output.stderr.strip() == "Training job not found"


def test_the_reconnecting_snippet_comes_back_to_a_job_that_goes_on(platform: Platform, tmp_path: Path) -> None:
    job_id = submit(platform, total_epochs=1)
    wait_until(lambda: status_of(platform, job_id) == "succeeded", "the job's end", timeout_s=60)
    code = pointed_at(snippet("Connection Lost", "javascript"), platform.url, job_id)
    output = node(f"{code}\nconnect({job_id});\n", tmp_path).splitlines()
    # The document's loop reconnects after every close, also the last: an ended job answers each time at once.
    assert output == [f"Reconnecting... ({attempt}/5)" for attempt in range(1, 6)]


MESSAGES = [("Progress Update", "progress"), ("Log Message", "log"), ("Completion", "complete")]


def test_messages_have_every_field_of_the_documents_examples(platform: Platform) -> None:
    seen = first_of_each_type(platform, submit(platform))
    for heading, kind in MESSAGES:
        assert_has_fields_of(json.loads(snippet(heading, "json")), seen[kind])


def test_a_failed_job_says_so_as_the_document_does(platform: Platform, tmp_path: Path) -> None:
    parameters = {"dataset": "npz", "data_dir": str(tmp_path / "nothing")}
    seen = first_of_each_type(platform, submit(platform, hyperparameters=parameters, total_epochs=1))
    assert_has_fields_of(json.loads(snippet("Error", "json")), seen["error"])
    assert "nothing" in seen["error"]["error_message"]


def first_of_each_type(platform: Platform, job_id: int) -> dict[str, dict[str, Any]]:
    async def follow() -> list[dict[str, Any]]:
        messages = []
        # From its beginning: a short job may be over before this connects.
        url = f"{platform.url.replace('http', 'ws')}/api/v1/training-jobs/{job_id}/ws?after=0"
        async with connect(url) as socket:
            try:
                while True:
                    messages.append(json.loads(await asyncio.wait_for(socket.recv(), 60)))
            except ConnectionClosed:
                assert socket.close_code == 1000
        return messages

    found: dict[str, dict[str, Any]] = {}
    for message in asyncio.run(follow()):
        assert {"id", "status", "progress", "current_epoch", "total_epochs"} <= message.keys()
        if message["type"] != "progress" or message["current_epoch"]:
            found.setdefault(message["type"], message)
    return found


def assert_has_fields_of(example: dict[str, Any], message: dict[str, Any]) -> None:
    kinds: dict[type, Callable[[Any], bool]] = {
        int: lambda value: type(value) is int,
        float: lambda value: isinstance(value, int | float),
        str: lambda value: isinstance(value, str),
        dict: lambda value: isinstance(value, dict),
    }
    for name, value in example.items():
        assert name in message, f"the document's {example['type']} has {name}"
        assert kinds[type(value)](message[name]), f"{name} is {message[name]!r}, in the document {value!r}"
