"""What the build leaves, and what the source says of the gateway's answers."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from api.page import STATIC
from epochcast.jobs import GpuMemory, JobError, Resources, TrainingJob, TrainingJobSpec
from tests.api.rest.served import submit
from tests.dashboard.building import SOURCE, installed
from tests.platform import Platform
from tests.waiting import wait_until

MOST_BYTES = 150_000
TYPES = (SOURCE / "src" / "rest" / "types.ts").read_text()
MESSAGES = (SOURCE / "src" / "stream" / "messages.ts").read_text()


@pytest.fixture(scope="module")
def document() -> str:
    installed()
    return (STATIC / "index.html").read_text()


def test_everything_together_is_under_150_kb_of_compressed_javascript(document: str) -> None:
    scripts = list((STATIC / "assets").glob("*.js"))
    assert scripts
    assert sum(len(gzip.compress(path.read_bytes())) for path in scripts) < MOST_BYTES
    for path in scripts:
        assert gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes()) == path.read_bytes()


def test_the_build_has_no_inline_code_and_names_no_other_site(document: str) -> None:
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", document)
    assert set(re.findall(r"(?:src|href)=\"([^\"]+)\"", document)) == {
        f"/assets/{path.name}" for path in (STATIC / "assets").iterdir() if path.name in document
    }
    for path in (STATIC / "assets").glob("*.css"):
        assert not re.search(r"url\((https?:)?//|@import", path.read_text()), path
    for path in (STATIC / "assets").glob("*.js"):
        assert not re.search(r"\beval\(|new Function\(|import\(`?[\"'](https?:)?//", path.read_text()), path


def test_packages_are_pinned_and_name_no_host_but_the_public_registry() -> None:
    package = json.loads((SOURCE / "package.json").read_text())
    for version in [*package["dependencies"].values(), *package["devDependencies"].values()]:
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    lock = json.loads((SOURCE / "package-lock.json").read_text())
    for name, one in lock["packages"].items():
        assert one.get("resolved", "https://registry.npmjs.org/").startswith("https://registry.npmjs.org/"), name
        assert name == "" or one["integrity"], name


# --- types


def fields_of(interface: str, text: str) -> set[str]:
    found = re.search(rf"interface {interface} (?:extends \w+ )?\{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert found is not None, interface
    return set(re.findall(r"^  readonly (\w+)\??:", found[1], re.MULTILINE))


@pytest.mark.parametrize(
    ("interface", "text", "model"),
    [
        ("Job", TYPES, TrainingJob),
        ("Spec", TYPES, TrainingJobSpec),
        ("Resources", TYPES, Resources),
        ("JobError", MESSAGES, JobError),
        ("GpuMemory", MESSAGES, GpuMemory),
    ],
)
def test_a_type_has_the_fields_of_its_model(interface: str, text: str, model: type[BaseModel]) -> None:
    assert fields_of(interface, text) == set(model.model_fields)


def test_the_other_types_have_the_fields_of_real_answers(platform: Platform) -> None:
    with httpx2.Client(base_url=platform.url, trust_env=False, timeout=30) as client:
        job_id = submit(client, total_epochs=2)["job_id"]

        def get(path: str) -> Any:
            return client.get(f"/api/v1{path}").json()

        wait_until(lambda: get(f"/training-jobs/{job_id}")["status"] == "succeeded", "the job's end", timeout_s=120)
        job = get(f"/training-jobs/{job_id}")
        host = get("/hosts")["items"][0]
        plan = client.post("/api/v1/training-jobs?dry_run=true", json={"recipe": "image-classifier"}).json()
        answers = {
            "Attempt": get(f"/training-jobs/{job_id}/attempts")["items"][0],
            "Artifact": get(f"/training-jobs/{job_id}/artifacts")["items"][0],
            "Model": get(f"/models/{job['model_id']}"),
            "Host": host,
            "Memory": host["memory"],
            "Recipe": get("/recipes")["items"][0],
            "Plan": plan,
        }
    for interface, answer in answers.items():
        assert fields_of(interface, TYPES) == set(answer), interface


def test_the_type_of_a_gpu_has_the_fields_that_the_gateway_shows() -> None:
    shown = re.search(r"def _gpu\(.*?return \{(.*?)\n    \}", Path("shared/fleet.py").read_text(), re.DOTALL)
    assert shown is not None
    assert fields_of("Gpu", TYPES) == set(re.findall(r"^        \"(\w+)\":", shown[1], re.MULTILINE))
