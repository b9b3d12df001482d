"""Every error is a problem that names the thing, the value and the way out."""

from collections.abc import Iterator

import httpx2
import pytest

from api.app import create_app
from api.gate import MAX_BODY_BYTES
from shared.settings import Settings
from tests.api.rest.served import DIGITS, Served, problem

JSON = {"Content-Type": "application/json"}
JOBS = "/api/v1/training-jobs"
NO_IDS = ["0", "-1", "abc", "1.0", "01", "1_0", "%201", str(2**63), "9" * 400, "1%00", "%F0%9F%92%A9", "1;2"]


def test_an_id_that_can_not_be_is_404(alice: httpx2.Client) -> None:
    for rest in ("", "/events", "/logs", "/metrics", "/attempts", "/artifacts", "/artifacts/1/file"):
        for job_id in NO_IDS:
            problem(alice.get(f"{JOBS}/{job_id}{rest}"), 404, "not_found")


def test_what_is_not_there_is_404(alice: httpx2.Client) -> None:
    for path in ("/models/x", "/models/0/file", f"/models/{2**63}", "/recipes/nope", "/nope", "/hosts/"):
        problem(alice.get(f"/api/v1{path}"), 404, "not_found")


def test_the_largest_id_is_looked_up(served_on_both: Served) -> None:
    answer = problem(served_on_both.client().get(f"{JOBS}/{2**63 - 1}"), 404, "not_found")
    assert answer["detail"] == f"job {2**63 - 1} does not exist"


def test_a_wrong_method_is_405_and_names_the_right_ones(alice: httpx2.Client) -> None:
    response = alice.put(f"{JOBS}/1")
    problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET"


def test_an_announced_body_over_1_mib_is_413(alice: httpx2.Client) -> None:
    problem(alice.post(JOBS, content=b" " * (MAX_BODY_BYTES + 1)), 413, "too_large")


def test_a_chunked_body_over_1_mib_is_413(alice: httpx2.Client) -> None:
    def blocks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    response = alice.post(JOBS, content=blocks(), headers={"Content-Type": "application/json"})
    problem(response, 413, "too_large")


def test_another_type_of_body_is_415(alice: httpx2.Client) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""):
        problem(alice.post(JOBS, content=b"{}", headers={"Content-Type": kind}), 415, "unsupported_media_type")


def test_what_is_not_json_is_422(alice: httpx2.Client) -> None:
    for body in (b"{", b'{"seed": NaN}', b"[" * 100_000, b"\xff\xfe", b'{"name": "\\ud800"}', b"Infinity"):
        problem(alice.post(JOBS, content=body, headers=JSON), 422, "invalid_json")


def test_a_body_that_is_no_object_is_422(alice: httpx2.Client) -> None:
    for body in (b"[]", b"null", b"1", b'"x"', b""):
        problem(alice.post(JOBS, content=body, headers=JSON), 422, "invalid")


SCRIPT = {"bundle": f"sha256:{'0' * 64}", "entrypoint": "a.py"}
WRONG = [
    ({"hyperparameters": {"lr": -1}}, "hyperparameters.lr"),
    ({"hyperparameters": {"learning_rate": 1}}, "hyperparameters.learning_rate"),
    ({"hyperparameters": {"dataset": "npz"}}, "hyperparameters"),
    ({"hyperparameters": {"lr": "0.1"}}, "hyperparameters.lr"),
    ({"unknown": 1}, "unknown"),
    ({"recipe": "nope"}, "recipe"),
    ({"recipe": None}, "body"),
    ({"total_epochs": 0}, "total_epochs"),
    ({"total_epochs": 10**30}, "total_epochs"),
    ({"resources": {"gpus": -1}}, "resources.gpus"),
    ({"resources": {"nodes": 0}}, "resources.nodes"),
    ({"resources": {"procs_per_node": 65}}, "resources.procs_per_node"),
    ({"resources": {"gpus": 65}}, "resources.gpus"),
    ({"resources": {"gpus": 10**30}}, "resources.gpus"),
    ({"resources": {"gpus": 1.5}}, "resources.gpus"),
    ({"resources": {"gpus": True}}, "resources.gpus"),
    ({"resources": {"nodes": -1}}, "resources.nodes"),
    ({"resources": {"nodes": 10_001}}, "resources.nodes"),
    ({"resources": {"procs_per_node": 0}}, "resources.procs_per_node"),
    ({"resources": {"gpu_memory_gib": 0}}, "resources.gpu_memory_gib"),
    ({"resources": {"gpu_memory_gib": -1}}, "resources.gpu_memory_gib"),
    ({"resources": {"gpu_memory_gib": 1e7}}, "resources.gpu_memory_gib"),
    ({"resources": {"cpus": 4}}, "resources.cpus"),
    ({"resources": None}, "resources"),
    ({"priority": 10**20}, "priority"),
    ({"max_runtime_s": -1}, "max_runtime_s"),
    ({"on_oom": "explode"}, "on_oom"),
    ({"on_oom": "shrink", "recipe": None, "hyperparameters": {"batch_size": 8}, **SCRIPT}, "on_oom"),
    ({"on_oom": "shrink", "recipe": None, "hyperparameters": {"micro_batch_size": "8"}, **SCRIPT}, "on_oom"),
    ({"hyperparameters": {"batch_size": 10, "micro_batch_size": 4}}, "hyperparameters"),
    ({"tags": ["ok", ""]}, "tags[1]"),
    ({"name": "a\x00b"}, "name"),
    ({"bundle": f"sha256:{'0' * 64}", "recipe": None, "hyperparameters": {}, "entrypoint": "a.py"}, "bundle"),
]


@pytest.mark.parametrize(("fields", "named"), WRONG)
def test_a_wrong_field_is_422_and_named(alice: httpx2.Client, fields: dict[str, object], named: str) -> None:
    answer = problem(alice.post(JOBS, json=DIGITS | fields), 422, "invalid")
    assert answer["errors"][0]["field"] == named
    assert answer["errors"][0]["message"]
    assert answer["detail"].startswith(f"{named}: ")


def test_an_unknown_recipe_names_those_there_are(alice: httpx2.Client) -> None:
    answer = problem(alice.post(JOBS, json={"recipe": "nope"}), 422, "invalid")
    assert "image-classifier" in answer["detail"]


def test_a_wrong_filter_is_422(served_on_both: Served) -> None:
    client = served_on_both.client()
    wrong = ("limit=0", "limit=201", "limit=x", "status=done", "tag=", "owner=%00", "recipe=a%00", f"tag={'x' * 300}")
    for query in wrong:
        answer = problem(client.get(f"{JOBS}?{query}"), 422, "invalid")
        assert answer["errors"][0]["field"] == query.partition("=")[0]


def test_a_foreign_list_cursor_is_422(alice: httpx2.Client) -> None:
    for cursor in ("x", "\u00fc", "YmVmb3JlOjA", "a" * 90):
        problem(alice.get(JOBS, params={"cursor": cursor}), 422, "invalid_cursor")


def test_an_error_of_ours_is_a_500_with_an_id_and_no_details(sqlite_settings: Settings) -> None:
    app = create_app(sqlite_settings)

    @app.get("/broken")
    async def broken() -> None:
        raise ZeroDivisionError("something secret")

    with Served(sqlite_settings, app) as served:
        answer = problem(served.client().get("/broken"), 500, "internal")
    assert "secret" not in str(answer)


def test_openapi_lists_what_there_is(served: Served) -> None:
    schema = served.client(None).get("/api/v1/openapi.json").json()
    assert "/api/v1/training-jobs/{job_id}/restart" in schema["paths"]
    problem(served.client(None).get("/docs"), 404, "not_found")
