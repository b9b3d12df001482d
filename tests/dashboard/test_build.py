"""What the build leaves."""

import gzip
import json
import re

import pytest

from api.page import STATIC
from tests.dashboard.building import SOURCE, installed

MOST_BYTES = 150_000


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
