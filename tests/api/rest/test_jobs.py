"""Submitting, finding, stopping and restarting jobs, on both databases."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import redis

from epochcast.jobs import TrainingJob
from shared.database import Database
from shared.fleet import Fleet
from shared.placement import place
from shared.store import Store
from tests.api.rest.served import DIGITS, Served, problem, submit
from tests.api.training import Training
from tests.shared.records import add_host, claim_placed, host_state, spec
from tests.waiting import wait_until

JOBS = "/api/v1/training-jobs"


def test_a_submitted_job_is_resolved_stored_and_found(served_on_both: Served) -> None:
    client = served_on_both.client()
    response = client.post(JOBS, json=DIGITS | {"name": "first", "tags": ["demo", "demo"], "total_epochs": 3})
    assert response.status_code == 201
    job = TrainingJob.model_validate(response.json())
    assert response.headers["location"] == f"{JOBS}/{job.job_id}"
    assert (job.name, job.owner, job.status, job.progress, job.total_epochs) == ("first", "alice", "queued", 0.0, 3)
    assert job.queue_position == 1
    assert job.spec.hyperparameters["lr"] == 0.003
    found = client.get(f"{JOBS}/{job.job_id}").json()
    assert found["job_id"] == job.job_id
    assert found["spec"] == response.json()["spec"]


def test_defaults_come_from_the_recipe(alice: httpx2.Client) -> None:
    job = submit(alice)
    assert (job["name"], job["total_epochs"]) == ("image-classifier", 20)


def test_a_waiting_job_says_why(served: Served, alice: httpx2.Client) -> None:
    job_id = submit(alice, resources={"gpus": 4})["job_id"]
    reason = wait_until(lambda: alice.get(f"{JOBS}/{job_id}").json()["pending_reason"], "the reason")
    assert reason == "no host is ready"


def test_a_job_that_no_host_fits_is_accepted_and_says_so(served_on_both: Served, database_url: str) -> None:
    database = Database(database_url)
    add_host(database, host_state("small", gpus=2))
    database.close()
    client = served_on_both.client()
    too_large = {"gpus": 16, "gpu_memory_gib": 1000.0}
    wait = "needs 16 GPUs on one host of 1000 GiB; no host that is ready has that, even empty: none has one"
    assert client.post(f"{JOBS}?dry_run=true", json=DIGITS | {"resources": too_large}).json()["pending_reason"] == wait
    job_id = submit(client, resources=too_large)["job_id"]
    wait_until(lambda: client.get(f"{JOBS}/{job_id}").json()["pending_reason"] == wait, "the reason")
    job = client.get(f"{JOBS}/{job_id}").json()
    assert (job["status"], job["queue_position"], job["expected_start_at"]) == ("queued", 1, None)
    assert client.post(f"{JOBS}/{job_id}/stop").json()["status"] == "stopped"


def test_the_place_in_the_queue_moves_without_an_event(alice: httpx2.Client) -> None:
    first, second, urgent = submit(alice), submit(alice), submit(alice, priority=5)

    def place(job: dict[str, Any]) -> int:
        position: int = alice.get(f"{JOBS}/{job['job_id']}").json()["queue_position"]
        return position

    assert [place(job) for job in (urgent, first, second)] == [1, 2, 3]
    assert alice.post(f"{JOBS}/{urgent['job_id']}/stop").status_code == 202
    assert [place(job) for job in (first, second)] == [1, 2]


def test_on_oom_shrink_is_taken_and_a_micro_batch_resolved_as_it_is_given(alice: httpx2.Client) -> None:
    body = DIGITS | {"on_oom": "shrink", "hyperparameters": {"batch_size": 64, "micro_batch_size": 16}}
    job = alice.post(JOBS, json=body)
    assert job.status_code == 201, job.text
    spec = job.json()["spec"]
    assert (spec["on_oom"], spec["hyperparameters"]["micro_batch_size"]) == ("shrink", 16)


def test_a_dry_run_plans_and_stores_nothing(served_on_both: Served, database_url: str) -> None:
    client = served_on_both.client()
    submit(client)
    plan = client.post(f"{JOBS}?dry_run=true", json=DIGITS)
    assert plan.status_code == 200
    content = plan.json()
    assert content["spec"]["total_epochs"] == 20
    assert (content["hosts_that_fit"], content["queue_position"]) == ([], 2)
    assert content["pending_reason"] == "no host is ready"
    database = Database(database_url)
    add_host(database, host_state("big", slots=4))
    database.close()
    again = client.post(f"{JOBS}?dry_run=true", json=DIGITS).json()
    assert (again["hosts_that_fit"], again["pending_reason"]) == (["big"], None)
    assert again["expected_start_at"] is not None
    assert content["expected_start_at"] is None
    assert len(client.get(JOBS).json()["items"]) == 1


# --- idempotency


def test_the_same_key_and_body_give_the_same_job(served_on_both: Served) -> None:
    client = served_on_both.client()
    headers = {"Idempotency-Key": "once"}
    first = client.post(JOBS, json=DIGITS, headers=headers)
    # The same content in another order of its keys is the same body.
    again = client.post(JOBS, json=dict(reversed(DIGITS.items())), headers=headers)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json()["job_id"] == again.json()["job_id"]
    answer = problem(client.post(JOBS, json=DIGITS | {"seed": 1}, headers=headers), 422, "idempotency_conflict")
    assert "'once'" in answer["detail"]
    other = served_on_both.client("bob").post(JOBS, json=DIGITS, headers=headers)
    assert other.json()["job_id"] != first.json()["job_id"]


def test_simultaneous_requests_with_one_key_make_one_job(served_on_both: Served) -> None:
    count = 12
    clients = [served_on_both.client() for _ in range(count)]
    gate = threading.Barrier(count)

    def send(client: httpx2.Client) -> httpx2.Response:
        gate.wait(60)
        return client.post(JOBS, json=DIGITS, headers={"Idempotency-Key": "race"})

    with ThreadPoolExecutor(count) as pool:
        responses = list(pool.map(send, clients))
    assert {response.status_code for response in responses} == {201}
    assert len({response.json()["job_id"] for response in responses}) == 1
    assert len(clients[0].get(JOBS).json()["items"]) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\there", "\u00fcber"])
def test_an_unusable_key_is_422(alice: httpx2.Client, key: str) -> None:
    response = alice.post(JOBS, json=DIGITS, headers=[(b"Idempotency-Key", key.encode())])
    problem(response, 422, "invalid")


# --- lists


def test_a_list_is_newest_first_and_pages_to_the_end(served_on_both: Served) -> None:
    client = served_on_both.client()
    made = [submit(client)["job_id"] for _ in range(5)]
    found, cursor = [], None
    for expected in (2, 2, 1):
        page = client.get(JOBS, params={"limit": 2, **({"cursor": cursor} if cursor else {})}).json()
        assert len(page["items"]) == expected
        found += [job["job_id"] for job in page["items"]]
        cursor = page["next_cursor"]
    assert cursor is None
    assert found == made[::-1]


def test_a_list_is_filtered(served_on_both: Served) -> None:
    client = served_on_both.client()
    tagged = submit(client, tags=["nightly"])["job_id"]
    table = client.post(JOBS, json={"recipe": "tabular-classifier"}).json()["job_id"]
    client.post(f"{JOBS}/{table}/stop")

    def ids(**filters: str) -> list[int]:
        return [job["job_id"] for job in client.get(JOBS, params=filters).json()["items"]]

    assert ids(tag="nightly") == [tagged]
    assert ids(recipe="tabular-classifier") == [table]
    assert ids(status="stopped") == [table]
    assert ids(status="stopped", tag="nightly") == []
    assert ids(owner="alice") == [table, tagged]
    assert ids(owner="nobody") == []


# --- stop and restart


def test_a_queued_job_stops_at_once_and_again_is_no_error(served_on_both: Served) -> None:
    client = served_on_both.client()
    job_id = submit(client)["job_id"]
    for _ in range(2):
        response = client.post(f"{JOBS}/{job_id}/stop")
        assert (response.status_code, response.json()["status"]) == (202, "stopped")
    wait_until(lambda: client.get(f"{JOBS}/{job_id}").json()["status"] == "stopped", "the stop in GET")


def test_a_stopped_job_is_restarted_and_read_as_queued(served_on_both: Served) -> None:
    client = served_on_both.client()
    job_id = submit(client)["job_id"]
    client.post(f"{JOBS}/{job_id}/stop")
    response = client.post(f"{JOBS}/{job_id}/restart", json={"from_scratch": True})
    assert (response.status_code, response.json()["status"]) == (200, "queued")
    # The restart's event was announced before the answer.
    assert client.get(f"{JOBS}/{job_id}").json()["status"] == "queued"
    kinds = [event["status"] for event in client.get(f"{JOBS}/{job_id}/events").json()["items"]]
    assert kinds == ["queued", "stopped", "queued"]


def test_only_a_failed_or_stopped_job_is_restarted(served_on_both: Served) -> None:
    client = served_on_both.client()
    job_id = submit(client)["job_id"]
    answer = problem(client.post(f"{JOBS}/{job_id}/restart"), 409, "illegal_transition")
    assert answer["detail"] == f"job {job_id} is queued; only failed or stopped jobs can be restarted"


def test_a_running_and_a_finished_job_are_not_restarted_and_go_on_as_they_were(
    served: Served, database: Database
) -> None:
    client = served.client()
    served.app.state.gateway.dispatcher.stop()  # the test places
    training = Training(database, served.settings.events_redis_url)
    training.start().report(1)
    for status in ("running", "succeeded"):
        answer = problem(client.post(f"{JOBS}/{training.job_id}/restart"), 409, "illegal_transition")
        assert answer["detail"] == f"job {training.job_id} is {status}; only failed or stopped jobs can be restarted"
        if status == "running":
            training.report(2)  # not fenced off
            training.finish()
    training.close()


def test_a_wrong_restart_body_is_422(alice: httpx2.Client) -> None:
    job_id = submit(alice)["job_id"]
    for body in ({"scratch": True}, {"from_scratch": "yes"}, [1]):
        problem(alice.post(f"{JOBS}/{job_id}/restart", json=body), 422, "invalid")


def test_a_running_job_gets_the_flag_and_its_host_a_nudge(served: Served, database: Database) -> None:
    client = served.client()
    served.app.state.gateway.dispatcher.stop()  # the test places
    job_id = submit(client)["job_id"]
    add_host(database, host_state("host-1"))
    claim_placed(database, job_id)
    with redis.Redis.from_url(served.settings.events_redis_url) as connection:
        listener = connection.pubsub()
        listener.subscribe("ec:host:host-1:nudge")
        wait_until(lambda: listener.get_message(timeout=0.1), "the subscription")
        response = client.post(f"{JOBS}/{job_id}/stop")
        nudge = wait_until(lambda: listener.get_message(timeout=0.1), "the nudge")
        listener.close()
    assert response.status_code == 202
    assert (response.json()["status"], response.json()["stop_requested"]) == ("running", True)
    assert nudge["data"] == str(job_id).encode()


def test_a_finished_job_can_not_be_stopped(served: Served, database: Database) -> None:
    client = served.client()
    served.app.state.gateway.dispatcher.stop()
    training = Training(database, served.settings.events_redis_url)
    training.start().report(1)
    training.finish()
    training.close()
    answer = problem(client.post(f"{JOBS}/{training.job_id}/stop"), 409, "illegal_transition")
    assert "succeeded" in answer["detail"]


# --- hosts and recipes


def test_hosts_are_shown_drained_and_resumed(served: Served, database: Database) -> None:
    add_host(database, host_state("gpu-1", gpus=2))
    admin = served.client("alice", "jobs:read", "hosts:admin")
    (host,) = admin.get("/api/v1/hosts").json()["items"]
    assert (host["name"], host["status"], len(host["gpus"])) == ("gpu-1", "ready", 2)
    assert admin.post("/api/v1/hosts/gpu-1/drain").json()["status"] == "draining"
    assert Fleet(database).hosts()[0]["status"] == "draining"
    assert admin.post("/api/v1/hosts/gpu-1/resume").json()["status"] == "ready"


def test_the_fleet_comes_in_pages_and_by_the_job_that_is_there(served: Served, database: Database) -> None:
    served.app.state.gateway.dispatcher.stop()
    for number in range(3):
        add_host(database, host_state(f"gpu-{number}", gpus=1))
    job_id = Store(database).create(spec(gpus=1), "alice")[0].job_id
    [placed] = place(database)
    client = served.client()
    first = client.get("/api/v1/hosts?limit=2").json()
    assert ([host["name"] for host in first["items"]], first["next_cursor"]) == (["gpu-0", "gpu-1"], "gpu-1")
    last = client.get(f"/api/v1/hosts?limit=2&cursor={first['next_cursor']}").json()
    assert ([host["name"] for host in last["items"]], last["next_cursor"]) == (["gpu-2"], None)
    [holding] = client.get(f"/api/v1/hosts?job_id={job_id}").json()["items"]
    assert (holding["name"], holding["jobs"]) == (placed.host, [job_id])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", holding["heartbeat_at"])
    assert client.get("/api/v1/hosts?job_id=99").json() == {"items": [], "next_cursor": None}
    for wrong in ("limit=0", "limit=1001", "cursor=%00", "job_id=0", "job_id=1_0", f"job_id={2**63}"):
        problem(client.get(f"/api/v1/hosts?{wrong}"), 422, "invalid")


def test_a_host_that_never_registered_is_not_drained(served_on_both: Served) -> None:
    admin = served_on_both.client("alice", "jobs:read", "hosts:admin")
    for verb in ("drain", "resume"):
        answer = problem(admin.post(f"/api/v1/hosts/gpu-9/{verb}"), 404, "not_found")
        assert answer["detail"].startswith("host gpu-9 has never registered")
        assert admin.post(f"/api/v1/hosts/%00/{verb}").status_code == 404
    problem(served_on_both.client().post("/api/v1/hosts/gpu-9/drain"), 403, "missing_scope")


def test_recipes_come_with_the_schema_of_their_hyperparameters(alice: httpx2.Client) -> None:
    recipes = alice.get("/api/v1/recipes").json()["items"]
    assert [recipe["name"] for recipe in recipes] == ["image-classifier", "tabular-classifier", "language-model"]
    assert alice.get("/api/v1/recipes/image-classifier").json() == recipes[0]
    assert recipes[0]["hyperparameters"]["properties"]["lr"]["default"] == 0.003


def test_a_body_nested_too_deep_is_refused_and_not_an_error_of_ours(alice: httpx2.Client) -> None:
    deep = "[" * 300 + "]" * 300
    body = '{"recipe": "image-classifier", "hyperparameters": {"x": ' + deep + "}}"
    headers = {"Content-Type": "application/json", "Idempotency-Key": "deep"}
    problem(alice.post(JOBS, content=body, headers=headers), 422, "invalid_json")


def test_a_list_shows_each_queued_jobs_place(alice: httpx2.Client) -> None:
    ids = [alice.post(JOBS, json={"recipe": "image-classifier", "priority": p}).json()["job_id"] for p in (0, 5, 0)]
    places = {item["job_id"]: item["queue_position"] for item in alice.get(JOBS).json()["items"]}
    assert [places[job_id] for job_id in ids] == [2, 1, 3]
    single = [alice.get(f"{JOBS}/{job_id}").json()["queue_position"] for job_id in ids]
    assert single == [2, 1, 3]
