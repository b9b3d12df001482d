"""Uploading code and submitting it: what is kept, what is refused, and whose it is."""

import re
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from api import gate
from api.routes import code
from shared.reserved_names import why_refused
from shared.settings import Settings
from tests.api.rest.served import Served, problem
from tests.shared import archives
from tests.shared.archives import TRAIN, UNSAFE

CODE, JOBS = "/api/v1/code", "/api/v1/training-jobs"
SCOPES = ("jobs:read", "jobs:write", "code:write")
GZIP, ZIP = {"Content-Type": "application/gzip"}, {"Content-Type": "application/zip"}
FILES = {"train.py": TRAIN, "src/model.py": b"x = 1\n", "src/data.csv": b"1,2\n"}


def stored(settings: Settings) -> list[str]:
    """Every file in the artifact store."""
    folder = Path(urlsplit(settings.artifacts_url).path)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def uploaded(client: httpx2.Client, files: dict[str, bytes] = FILES) -> str:
    response = client.post(CODE, content=archives.tar(files), headers=GZIP)
    assert response.status_code in (200, 201), response.text
    bundle: str = response.json()["bundle"]
    return bundle


def submission(bundle: str, **fields: Any) -> dict[str, Any]:
    return {"bundle": bundle, "entrypoint": "train.py", **fields}


def test_the_same_code_is_one_bundle_by_tar_or_zip_and_is_kept_once(served_on_both: Served) -> None:
    alice = served_on_both.client("alice", *SCOPES)
    first = alice.post(CODE, content=archives.tar(FILES), headers=GZIP)
    assert first.status_code == 201
    answer = first.json()
    assert (answer["files"], answer["bytes"]) == (3, sum(map(len, FILES.values())))
    again = alice.post(CODE, content=archives.zipped(dict(reversed(FILES.items()))), headers=ZIP)
    assert (again.status_code, again.json()) == (200, answer)
    assert stored(served_on_both.settings) == [f"bundles/{answer['bundle'].removeprefix('sha256:')}.tar.gz"]


def test_a_bundle_that_others_have_is_new_to_whoever_sends_it(served: Served) -> None:
    assert served.client("alice", *SCOPES).post(CODE, content=archives.tar(FILES), headers=GZIP).status_code == 201
    assert served.client("bob", *SCOPES).post(CODE, content=archives.tar(FILES), headers=GZIP).status_code == 201


def test_an_unsafe_archive_is_a_problem_and_nothing_is_stored(served: Served) -> None:
    client = served.client("alice", *SCOPES)
    for what, (kind, make, reason) in UNSAFE.items():
        response = client.post(CODE, content=make(), headers=GZIP if kind == "tar" else ZIP)
        refused = problem(response, 422, "bundle_refused")
        assert reason in refused["detail"], what
        assert refused["errors"][0]["message"], what
        assert stored(served.settings) == [], what


def test_the_problem_names_the_member(served: Served) -> None:
    response = served.client("alice", *SCOPES).post(CODE, content=archives.named("ok.py", "../evil.py"), headers=GZIP)
    [error] = problem(response, 422, "bundle_refused")["errors"]
    assert error == {"field": "../evil.py", "message": "leads out of the bundle (..)"}


def test_a_body_over_the_limit_is_refused_announced_or_not(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    client = served.client("alice", *SCOPES)
    with socket.create_connection(("127.0.0.1", client.base_url.port or 0), timeout=20) as connection:
        length = gate.MAX_BUNDLE_BYTES + 1
        head = f"POST {CODE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 "), "refused before anything is sent"
    monkeypatch.setattr(code, "MAX_BUNDLE_BYTES", 100_000)
    chunked = client.post(CODE, content=(bytes(10_000) for _ in range(100)), headers=GZIP)
    assert "100000 bytes" in problem(chunked, 413, "too_large")["detail"]
    # Elsewhere the limit is what it was.
    other = client.post(JOBS, content=b" " * (gate.MAX_BODY_BYTES + 1), headers={"Content-Type": "application/json"})
    problem(other, 413, "too_large")
    assert stored(served.settings) == []


def test_code_needs_its_scope_and_a_type_that_can_be_read(served: Served) -> None:
    without = served.client("alice").post(CODE, content=archives.tar(FILES), headers=GZIP)
    problem(without, 403, "missing_scope")
    response = served.client("alice", *SCOPES).post(CODE, content=b"{}", headers={"Content-Type": "application/json"})
    problem(response, 415, "unsupported_media_type")
    assert stored(served.settings) == []


def test_a_job_of_a_bundle_is_resolved_and_stored(served_on_both: Served) -> None:
    client = served_on_both.client("alice", *SCOPES)
    bundle = uploaded(client)
    body = submission(bundle, args=["--lr", "0.1"], env={"DEBUG": "1"}, hyperparameters={"width": 2})
    response = client.post(JOBS, json=body)
    assert response.status_code == 201, response.text
    job = response.json()
    assert (job["name"], job["total_epochs"]) == ("train", 1)
    spec = job["spec"]
    assert (spec["bundle"], spec["entrypoint"], spec["args"]) == (bundle, "train.py", ["--lr", "0.1"])
    assert (spec["env"], spec["hyperparameters"]) == ({"DEBUG": "1"}, {"width": 2})
    assert client.get(f"{JOBS}/{job['job_id']}").json()["spec"]["bundle"] == bundle
    plan = client.post(f"{JOBS}?dry_run=true", json=body)
    assert (plan.status_code, plan.json()["spec"]["entrypoint"]) == (200, "train.py")


def test_another_owners_bundle_is_an_unknown_one(served: Served) -> None:
    bundle = uploaded(served.client("alice", *SCOPES))
    foreign = served.client("bob", *SCOPES).post(JOBS, json=submission(bundle))
    missing = served.client("bob", *SCOPES).post(JOBS, json=submission(f"sha256:{'0' * 64}"))
    [error] = problem(foreign, 422, "invalid")["errors"]
    assert error["field"] == "bundle"
    assert error["message"] == problem(missing, 422, "invalid")["errors"][0]["message"]


@pytest.mark.parametrize(
    ("entrypoint", "says"),
    [
        ("tran.py", "it has train.py"),
        ("src/modell.py", "it has src/model.py"),
        ("nothing-like-it", "it has src/model.py, train.py"),
        ("../train.py", "is no file of the bundle"),
        ("src/data.csv", "is no Python script"),
    ],
)
def test_a_wrong_entrypoint_is_named_with_what_is_near(served: Served, entrypoint: str, says: str) -> None:
    client = served.client("alice", *SCOPES)
    response = client.post(JOBS, json=submission(uploaded(client), entrypoint=entrypoint))
    [error] = problem(response, 422, "invalid")["errors"]
    assert (error["field"], error["value"]) == ("entrypoint", entrypoint)
    assert says in error["message"]


PLATFORMS_NAMES = (
    *("EPOCHCAST_SECRET", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "PYTHONHOME", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    *("OMP_NUM_THREADS", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "TMPDIR"),
)
WRONG: list[tuple[dict[str, Any], str]] = [
    *(({"env": {name: "1"}}, f"env.{name}") for name in (*PLATFORMS_NAMES, "1A", "A=B", "A B", "")),
    ({"env": {"A": "x\0y"}}, "env.A"),
    ({"env": {"A": "x" * 40_000}}, "env.A"),
    ({"env": {"A": 1}}, "env.A"),
    ({"env": ["A"]}, "env"),
    ({"args": [1]}, "args[0]"),
    ({"args": ["ok", "a\0b"]}, "args[1]"),
    ({"args": "--lr"}, "args"),
]


def test_args_and_env_that_no_job_may_have_are_named(served: Served) -> None:
    client = served.client("alice", *SCOPES)
    bundle = uploaded(client)
    for fields, field in WRONG:
        response = client.post(JOBS, json=submission(bundle, **fields))
        assert problem(response, 422, "invalid")["errors"][0]["field"] == field


def test_every_name_that_a_trainer_is_given_is_the_platforms() -> None:
    source = (Path(__file__).parents[3] / "worker" / "workspace.py").read_text()
    body = source[source.index("def host_environment") : source.index("def template_environment")]
    given = re.findall(r'^        "([A-Z_]+)":', body, re.MULTILINE)
    assert len(given) > 5
    assert [name for name in given if why_refused(name, "1") is None] == []
