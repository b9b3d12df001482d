"""The client's verbs and types against the gateway's OpenAPI: the same calls, the same answers."""

import inspect
from typing import Any, get_args, get_type_hints

import pytest

import epochcast
from api.app import create_app
from epochcast.handles import Submission
from epochcast.jobs import Resources, TrainingJobSpec
from shared.settings import Settings
from tests import markdown

# Every call of the gateway: the verb that makes it, and what its answer is called in OpenAPI ("": no JSON, or columns).
VERBS = {
    ("post", "/api/v1/training-jobs"): ("submit", "TrainingJob"),
    ("get", "/api/v1/training-jobs"): ("jobs", "JobPage"),
    ("get", "/api/v1/training-jobs/{job_id}"): ("job", "TrainingJob"),
    ("post", "/api/v1/training-jobs/{job_id}/stop"): ("stop", "TrainingJob"),
    ("post", "/api/v1/training-jobs/{job_id}/restart"): ("restart", "TrainingJob"),
    ("get", "/api/v1/training-jobs/{job_id}/metrics"): ("metrics", ""),
    ("get", "/api/v1/training-jobs/metrics"): ("metrics_of", ""),
    ("get", "/api/v1/training-jobs/{job_id}/events"): ("events", "EventPage"),
    ("get", "/api/v1/training-jobs/{job_id}/logs"): ("logs", "LogPage"),
    ("get", "/api/v1/training-jobs/{job_id}/attempts"): ("attempts", "AttemptList"),
    ("get", "/api/v1/training-jobs/{job_id}/artifacts"): ("artifacts", "ArtifactList"),
    ("get", "/api/v1/training-jobs/{job_id}/artifacts/{artifact_id}/file"): ("download_artifact", ""),
    ("get", "/api/v1/models"): ("models", "ModelPage"),
    ("get", "/api/v1/models/{model_id}"): ("model", "ModelRecord"),
    ("get", "/api/v1/models/{model_id}/file"): ("download_model", ""),
    ("post", "/api/v1/code"): ("upload", "Bundle"),
    ("get", "/api/v1/recipes"): ("recipes", "RecipeList"),
    ("get", "/api/v1/recipes/{name}"): ("recipe", "Recipe"),
    ("get", "/api/v1/hosts"): ("hosts", "HostList"),
    ("post", "/api/v1/hosts/{name}/drain"): ("drain", "Host"),
    ("post", "/api/v1/hosts/{name}/resume"): ("resume", "Host"),
    ("get", "/readyz"): ("health", "Health"),
}
# Calls that the client makes in another way, or that are not for it.
WITHOUT_A_VERB = {
    (
        "get",
        "/api/v1/training-jobs/events",
    ): "the event stream of all jobs; watch_fleet() reads the socket with the same messages",
    ("get", "/healthz"): "for process managers; health() reads more",
}
# Verbs that are no call of their own.
MADE_OF_OTHERS = {"plan", "watch", "watch_fleet", "show", "close"}


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app(Settings.model_validate({"auth": "none"})).openapi()


def test_every_call_of_the_gateway_has_a_verb_and_every_verb_a_call(openapi: dict[str, Any]) -> None:
    served = {(method, path) for path, methods in openapi["paths"].items() for method in methods}
    assert served == VERBS.keys() | WITHOUT_A_VERB.keys()
    offered = {name for name in vars(epochcast.AsyncClient) if not name.startswith("_")}
    assert offered == {verb for verb, _ in VERBS.values()} | MADE_OF_OTHERS


def answer_of(openapi: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    """The schema of a call's own success: a submission's 200 is the plan of a dry run."""
    answers = openapi["paths"][path][method]["responses"]
    best = next(status for status in ("201", "202", "200") if status in answers)
    schema: dict[str, Any] = answers[best].get("content", {}).get("application/json", {}).get("schema", {})
    return schema


@pytest.mark.parametrize("call", VERBS, ids=" ".join)
def test_what_a_verb_gives_is_what_the_gateway_answers(openapi: dict[str, Any], call: tuple[str, str]) -> None:
    verb, name = VERBS[call]
    schema = answer_of(openapi, *call)
    if not name:
        assert "$ref" not in schema
        return
    assert schema["$ref"].rpartition("/")[2] == name
    found = openapi["components"]["schemas"][name]
    if "items" in found["properties"]:
        item = found["properties"]["items"]["items"]
        names = [one["$ref"].rpartition("/")[2] for one in item.get("oneOf", [item])]
    else:
        names = [name]
    given = get_type_hints(getattr(epochcast.Client, verb))["return"]
    types = [kind for part in get_args(given) or (given,) for kind in get_args(part) or (part,)]
    if verb == "upload":  # only its name
        assert given is str
        return
    for kind, ours in zip(types, names, strict=True):
        assert ours in {base.__name__ for base in kind.__mro__}


def test_a_dry_run_is_described_too(openapi: dict[str, Any]) -> None:
    answers = openapi["paths"]["/api/v1/training-jobs"]["post"]["responses"]
    assert answers["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Plan")
    assert get_type_hints(epochcast.Client.plan)["return"].__name__ == "Plan"


@pytest.mark.parametrize("call", VERBS, ids=" ".join)
def test_every_parameter_of_a_call_can_be_given(openapi: dict[str, Any], call: tuple[str, str]) -> None:
    verb, _ = VERBS[call]
    others = {"name": "host", "cursor": "limit", "job_id": "job_ids", "dry_run": "script"}
    # The client reads logs, events and hosts to their end, by pages of its own; it waits by `watch`, resumes by itself.
    its_own = {"If-None-Match", "Last-Event-ID", "wait"}
    its_own |= {"job": {"after"}, "events": {"limit"}, "logs": {"limit"}, "hosts": {"limit", "cursor"}}.get(verb, set())
    taken = inspect.signature(getattr(epochcast.AsyncClient, verb)).parameters
    for parameter in openapi["paths"][call[1]][call[0]].get("parameters", []):
        name = parameter["name"].lower().replace("-", "_")
        if parameter["name"] not in its_own:
            assert name in taken or others.get(name) in taken, f"{verb} doesn't take {parameter['name']}"


def test_blocking_and_asynchronous_verbs_take_the_same() -> None:
    def parameters(kind: type, verb: str) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(getattr(kind, verb)).parameters.values()
        return [(one.name, one.kind, str(one.annotation)) for one in found]

    for verb in {verb for verb, _ in VERBS.values()} | MADE_OF_OTHERS:
        assert parameters(epochcast.Client, verb) == parameters(epochcast.AsyncClient, verb), verb


def test_submit_takes_every_field_of_a_submission_by_name() -> None:
    of_the_script = {"bundle", "entrypoint"}
    fields = {*TrainingJobSpec.model_fields, *Resources.model_fields} - {"resources"} - of_the_script
    assert set(get_type_hints(Submission)) == fields


def test_every_verb_is_documented() -> None:
    page = (markdown.DOCS / "python-client.md").read_text()
    documented = " ".join(row[0] for row in markdown.rows(markdown.section(page, "## Verbs")))
    for verb in {verb for verb, _ in VERBS.values()} | MADE_OF_OTHERS:
        assert f"{verb}(" in documented, f"docs/python-client.md says nothing of {verb}"
