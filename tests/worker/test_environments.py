"""Environments of bundles: which is whose, and what of the worker's own packages they leave out."""

import site
from pathlib import Path

import pytest

from worker import environments
from worker.environments import REQUIREMENTS, environment_for


def test_a_worker_that_is_given_other_packages_builds_an_environment_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it left out because the worker had it may be another version now."""
    packages, bundle = tmp_path / "site-packages", tmp_path / "bundle"
    (packages / "torch-2.13.0.dist-info").mkdir(parents=True)
    bundle.mkdir()
    (bundle / REQUIREMENTS).write_text("torch==2.13.0\n")
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(packages)])
    monkeypatch.setattr(environments, "_build", lambda environment, _: environment.mkdir())
    first = environment_for(bundle, tmp_path / "venvs", "0" * 64)
    assert environment_for(bundle, tmp_path / "venvs", "0" * 64) == first
    (packages / "torch-2.13.0.dist-info").rename(packages / "torch-2.14.0.dist-info")
    assert environment_for(bundle, tmp_path / "venvs", "0" * 64) != first


@pytest.mark.parametrize(
    ("requirements", "leaves_torch_out"),
    [
        ("numpy\n", True),
        ("torch\n", True),
        ("Torch>=2  # any\n", True),
        ("torch==0.4.1\n", False),
        ("torch==0.4.1 --hash=sha256:00\n", False),
        ("torch==0.4.1 \\\n    --hash=sha256:00 \\\n    --hash=sha256:11\n", False),
        ("-r more.txt\n", False),
        ("torch\n--constraint=more.txt  # pins\n", False),
        ("-r none.txt\n-r requirements.txt\n", True),
    ],
)
def test_torch_is_shared_unless_another_version_is_required_wherever_that_stands(
    tmp_path: Path, requirements: str, leaves_torch_out: bool
) -> None:
    (tmp_path / REQUIREMENTS).write_text(requirements)
    (tmp_path / "more.txt").write_text("numpy\ntorch==0.4.1\n")
    assert ("torch" in environments._shared_packages(tmp_path)) is leaves_torch_out
