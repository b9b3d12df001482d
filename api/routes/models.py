"""The registry of models, and the artifacts of a job: what is kept after training, and its files."""

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from api.auth import Reader, visible_to
from api.files import file_response
from api.gateway import Here
from api.routes.parameters import ArtifactId, Cursor, JobId, Limit, ModelId
from epochcast.answers import Artifact, ModelRecord
from shared.manifest import is_manifest
from shared.rows import moment

router = APIRouter(tags=["models and artifacts"])

_SUFFIX = {"checkpoint": "pt", "model": "safetensors", "log": "txt", "oom_snapshot": "pickle"}


class ModelPage(BaseModel):
    items: list[ModelRecord]
    next_cursor: str | None


class ArtifactList(BaseModel):
    items: list[Artifact]


@router.get("/models")
async def list_models(gateway: Here, identity: Reader, limit: Limit = 50, cursor: Cursor = None) -> ModelPage:
    """Newest first."""
    rows, next_cursor = await gateway.record(gateway.queries.models, visible_to(identity), limit, cursor)
    return ModelPage(items=[_model(row) for row in rows], next_cursor=next_cursor)


@router.get("/models/{model_id}")
async def get_model(gateway: Here, identity: Reader, model_id: ModelId) -> ModelRecord:
    """The model with its metrics and where it comes from."""
    return _model(await gateway.record(gateway.queries.model, model_id, visible_to(identity)))


@router.head("/models/{model_id}/file", include_in_schema=False)
@router.get("/models/{model_id}/file", response_class=Response)
async def model_file(request: Request, gateway: Here, identity: Reader, model_id: ModelId) -> Response:
    """The safetensors file; `Range` resumes a download."""
    row = await gateway.record(gateway.queries.model, model_id, visible_to(identity))
    filename = f"{row['name']}-{model_id}.safetensors"
    return await file_response(
        request, gateway, key=row["key"], size=row["bytes"], sha256=row["sha256"], filename=filename
    )


def _model(row: dict[str, Any]) -> ModelRecord:
    return ModelRecord.model_validate({**row, "created_at": moment(row["created_at"])})


@router.get("/training-jobs/{job_id}/artifacts")
async def list_artifacts(gateway: Here, identity: Reader, job_id: JobId) -> ArtifactList:
    """Oldest first."""
    await gateway.check_owner(job_id, identity)
    rows = await gateway.record(gateway.queries.artifacts, job_id)
    return ArtifactList(items=[_artifact(row) for row in rows])


def _artifact(row: dict[str, Any]) -> Artifact:
    return Artifact.model_validate({**row, "artifact_id": row["id"], "created_at": moment(row["created_at"])})


@router.head("/training-jobs/{job_id}/artifacts/{artifact_id}/file", include_in_schema=False)
@router.get("/training-jobs/{job_id}/artifacts/{artifact_id}/file", response_class=Response)
async def artifact_file(
    request: Request, gateway: Here, identity: Reader, job_id: JobId, artifact_id: ArtifactId
) -> Response:
    await gateway.check_owner(job_id, identity)
    file = await gateway.record(gateway.queries.artifact, job_id, artifact_id)
    suffix, size = _SUFFIX[file.kind], file.bytes
    if is_manifest(file.key):  # `bytes` counts all the files that it names
        suffix, size = "json", await gateway.in_thread(gateway.artifacts.size, file.key)
    filename = f"job-{job_id}-{file.kind}-{artifact_id}.{suffix}"
    return await file_response(request, gateway, key=file.key, size=size, sha256=file.sha256, filename=filename)
