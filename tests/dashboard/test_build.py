"""What the build leaves, and what the source says of the gateway's answers."""

import gzip
import json
import re
from types import NoneType
from typing import get_args

import pytest
from pydantic import BaseModel

from api.page import STATIC
from epochcast import answers
from epochcast.jobs import GpuMemory, HostPlacement, JobError, Resources, TrainingJob, TrainingJobSpec
from tests.dashboard.building import SOURCE, installed

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


def fields_of(interface: str, text: str) -> dict[str, bool]:
    """By name: whether it can be null."""
    found = re.search(rf"interface {interface} (?:extends \w+ )?\{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert found is not None, interface
    fields = re.findall(r"^  readonly (\w+)\??: (.*);$", found[1], re.MULTILINE)
    return {name: "null" in kind.split(" | ") for name, kind in fields}


@pytest.mark.parametrize(
    ("interface", "text", "model"),
    [
        ("Job", TYPES, TrainingJob),
        ("Spec", TYPES, TrainingJobSpec),
        ("Resources", TYPES, Resources),
        ("Placement", TYPES, HostPlacement),
        ("Attempt", TYPES, answers.Attempt),
        ("Artifact", TYPES, answers.Artifact),
        ("Model", TYPES, answers.ModelRecord),
        ("Host", TYPES, answers.Host),
        ("Gpu", TYPES, answers.Gpu),
        ("Memory", TYPES, answers.Memory),
        ("Training", TYPES, answers.Training),
        ("Recipe", TYPES, answers.Recipe),
        ("Plan", TYPES, answers.Plan),
        ("JobError", MESSAGES, JobError),
        ("GpuMemory", MESSAGES, GpuMemory),
    ],
)
def test_a_type_has_the_fields_of_the_gateways_own_model(interface: str, text: str, model: type[BaseModel]) -> None:
    can_be_null = {name: NoneType in get_args(field.annotation) for name, field in model.model_fields.items()}
    assert fields_of(interface, text) == can_be_null
