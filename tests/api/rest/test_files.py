"""Model and artifact files: whole, in ranges, and missing."""

import hashlib
from pathlib import Path

import httpx2
import pytest

from epochcast.events import Complete, EventId
from epochcast.jobs import Status, TrainingJob
from shared.artifacts import ArtifactStore
from shared.attempt import NewModel, StoredFile
from shared.database import Database
from tests.api.rest.served import Served, problem
from tests.api.training import Training

CONTENT = bytes(range(256)) * 10_000  # more than two blocks of the store
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def model(served: Served, database: Database, tmp_path: Path) -> int:
    """A model of alice, its file in the store."""
    served.app.state.gateway.dispatcher.stop()
    (tmp_path / "upload").write_bytes(CONTENT)
    ArtifactStore(served.settings.artifacts_url).put("jobs/1/model.safetensors", tmp_path / "upload")
    training = Training(database, served.settings.events_redis_url).start()
    training.report(1)

    def complete(job: TrainingJob, identifier: EventId) -> Complete:
        return Complete(**training._common(identifier) | {"status": job.status})

    job, _ = training.record.finish(
        Status.SUCCEEDED,
        seq=3,
        prev=EventId(2, 2),
        make_event=complete,
        lease_s=0,
        outcome="succeeded",
        model=NewModel(
            StoredFile("model", "jobs/1/model.safetensors", len(CONTENT), SHA256), {"val_loss": 0.5}, {"torch": "2"}
        ),
    )
    training.close()
    assert job.model_id is not None
    return job.model_id


def test_the_registry_shows_the_model(alice: httpx2.Client, bob: httpx2.Client, model: int) -> None:
    (shown,) = alice.get("/api/v1/models").json()["items"]
    assert alice.get(f"/api/v1/models/{model}").json() == shown
    assert (shown["bytes"], shown["sha256"], shown["metrics"]) == (len(CONTENT), SHA256, {"val_loss": 0.5})
    assert bob.get("/api/v1/models").json() == {"items": [], "next_cursor": None}
    problem(bob.get(f"/api/v1/models/{model}"), 404, "not_found")
    problem(bob.get(f"/api/v1/models/{model}/file"), 404, "not_found")


def test_a_model_file_is_downloaded_whole(alice: httpx2.Client, model: int) -> None:
    response = alice.get(f"/api/v1/models/{model}/file")
    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["etag"] == f'"{SHA256}"'
    assert response.headers["content-disposition"] == f'attachment; filename="test-{model}.safetensors"'
    assert response.headers["accept-ranges"] == "bytes"
    head = alice.head(f"/api/v1/models/{model}/file")
    assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(CONTENT)), b"")
    again = alice.get(f"/api/v1/models/{model}/file", headers={"If-None-Match": response.headers["etag"]})
    assert again.status_code == 304


def test_ranges(alice: httpx2.Client, model: int) -> None:
    size = len(CONTENT)
    for wanted, start, end in (
        ("bytes=0-0", 0, 1),
        ("bytes=100-", 100, size),
        ("bytes=-5", size - 5, size),
        ("bytes=5-99999999999", 5, size),
        (f"bytes=-{size * 2}", 0, size),
        (f"bytes={size - 1}-{size - 1}", size - 1, size),
    ):
        response = alice.get(f"/api/v1/models/{model}/file", headers={"Range": wanted})
        assert (response.status_code, response.content == CONTENT[start:end]) == (206, True), wanted
        assert response.headers["content-range"] == f"bytes {start}-{end - 1}/{size}"


def test_a_range_outside_the_file_is_416(alice: httpx2.Client, model: int) -> None:
    size = len(CONTENT)
    for wanted in (f"bytes={size}-", "bytes=9-5", "bytes=-0"):
        response = alice.get(f"/api/v1/models/{model}/file", headers={"Range": wanted})
        problem(response, 416, "range_not_satisfiable")
        assert response.headers["content-range"] == f"bytes */{size}"


def test_what_is_no_single_range_gets_the_whole_file(alice: httpx2.Client, model: int) -> None:
    for headers in (
        {"Range": "bytes=0-1,5-6"},
        {"Range": "lines=1-2"},
        {"Range": "bytes=-"},
        {"Range": "bytes=0-1", "If-Range": '"old"'},
    ):
        response = alice.get(f"/api/v1/models/{model}/file", headers=headers)
        assert (response.status_code, len(response.content)) == (200, len(CONTENT)), headers


def test_artifacts_are_listed_and_downloaded(alice: httpx2.Client, model: int) -> None:
    job_id = alice.get(f"/api/v1/models/{model}").json()["job_id"]
    (artifact,) = alice.get(f"/api/v1/training-jobs/{job_id}/artifacts").json()["items"]
    assert (artifact["kind"], artifact["sha256"]) == ("model", SHA256)
    path = f"/api/v1/training-jobs/{job_id}/artifacts"
    assert alice.get(f"{path}/{artifact['artifact_id']}/file").content == CONTENT
    problem(alice.get(f"{path}/{artifact['artifact_id'] + 1}/file"), 404, "not_found")


def test_file_of_a_sharded_checkpoint_is_its_manifest(alice: httpx2.Client, served: Served, database: Database) -> None:
    served.app.state.gateway.dispatcher.stop()
    training = Training(database, served.settings.events_redis_url).start()
    manifest = b'{"world":2,"epoch":1,"step":null,"files":[]}'
    key = f"jobs/{training.job_id}/checkpoints/000002/ckpt-000001/manifest.json"
    ArtifactStore(served.settings.artifacts_url).write(key, manifest)
    sha256 = hashlib.sha256(manifest).hexdigest()
    training.record.commit_checkpoint(StoredFile("checkpoint", key, 10**6, sha256, epoch=1))
    training.close()
    path = f"/api/v1/training-jobs/{training.job_id}/artifacts"
    (artifact,) = alice.get(path).json()["items"]
    assert artifact["bytes"] == 10**6
    response = alice.get(f"{path}/{artifact['artifact_id']}/file")
    assert (response.status_code, response.content) == (200, manifest)
    assert response.headers["content-disposition"].endswith('.json"')


def test_a_file_that_the_store_lost_is_a_503_and_not_half_an_answer(
    served: Served, alice: httpx2.Client, model: int
) -> None:
    ArtifactStore(served.settings.artifacts_url).delete("jobs/1/model.safetensors")
    problem(alice.get(f"/api/v1/models/{model}/file"), 503, "file_missing")
