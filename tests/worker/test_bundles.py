"""A job of a user's own code on a real host: its files, arguments, environment, packages, and how it fails."""

import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from uv import find_uv_bin

from epochcast.events import Log
from epochcast.jobs import Status, TrainingJob, TrainingJobSpec
from shared.artifacts import ArtifactStore
from shared.bundle_archive import unpack
from shared.bundle_content import BundleContent, key_of, pack
from tests.shared import archives
from tests.waiting import wait_until
from tests.worker.host import Host


def keep(host: Host, folder: Path, files: Mapping[str, bytes]) -> BundleContent:
    """A bundle in the artifact store, as the gateway leaves it there."""
    folder.mkdir()
    (folder / "sent").write_bytes(archives.tar(files, executable=frozenset({"tool.sh"})))
    (folder / "content").mkdir()
    content = unpack(folder / "sent", "tar", folder / "content")
    pack(content, folder / "content", folder / "canonical")
    ArtifactStore(host.settings.artifacts_url).put(key_of(content.sha256), folder / "canonical")
    return content


def submit(host: Host, content: BundleContent, **fields: object) -> int:
    wanted = {"bundle": content.name, "entrypoint": "train.py", "name": "own", "total_epochs": 1, **fields}
    job, _ = host.store.create(TrainingJobSpec.model_validate(wanted), "alice")
    host.wait_placed(job.job_id)
    return job.job_id


def run(host: Host, content: BundleContent, **fields: object) -> TrainingJob:
    job_id = submit(host, content, **fields)
    host.wait_ended(host.attempt(job_id))
    return host.store.get(job_id)


SCRIPT = b"""
import os, subprocess, sys
from pathlib import Path
import api, shared.model, worker            # its own, not the platform's
print(sys.argv[1:], os.environ["DEBUG"], api.WHOSE, shared.model.WHOSE, worker.WHOSE)
print(Path(sys.argv[0]).name, Path(sys.path[0]) == Path(__file__).parent == Path.cwd(), __name__)
print(subprocess.run(["./tool.sh"], capture_output=True, text=True).stdout.strip())
Path("data.txt").write_text("changed")      # a copy of its own
import epochcast
run = epochcast.init({"width": 1})
for epoch in run.epochs():
    run.report(epoch=epoch, train_loss=run.params["width"])
"""
FILES = {
    "train.py": SCRIPT,
    "api.py": b"WHOSE = 'mine'",
    "shared/model.py": b"WHOSE = 'mine'",
    "worker/__init__.py": b"WHOSE = 'mine'",
    "tool.sh": b"#!/bin/sh\necho ran\n",
    "data.txt": b"as sent",
}


def test_a_bundle_runs_as_by_hand_with_its_files_arguments_and_environment(host: Host, tmp_path: Path) -> None:
    content = keep(host, tmp_path / "code", FILES)
    fields = {"args": ["--lr", "0.1 x", ""], "env": {"DEBUG": "1"}, "hyperparameters": {"width": 8}, "total_epochs": 2}
    job = run(host, content, **fields)
    assert job.status is Status.SUCCEEDED, job.error
    assert host.logs(job.job_id) == ["['--lr', '0.1 x', ''] 1 mine mine mine", "train.py True __main__", "ran"]
    assert (job.current_epoch, job.current_loss) == (2, 8.0)
    # What the first attempt changed is no part of the next one, and nothing was fetched again.
    [cached] = (host.settings.work_dir / "bundles").iterdir()
    fetched_at = cached.stat().st_mtime_ns
    assert (cached / "data.txt").read_bytes() == b"as sent"
    assert run(host, content, **fields).status is Status.SUCCEEDED
    assert cached.stat().st_mtime_ns == fetched_at


def test_a_shared_copy_that_somebody_changed_is_fetched_anew(host: Host, tmp_path: Path) -> None:
    content = keep(host, tmp_path / "code", {"train.py": b"print('as sent')"})
    cached = host.settings.work_dir / "bundles" / content.sha256
    cached.mkdir(parents=True)
    (cached / "train.py").write_text("print('somebody else')")
    job = run(host, content)
    assert (job.status, host.logs(job.job_id)) == (Status.SUCCEEDED, ["as sent"])


def test_a_script_in_a_folder_finds_the_modules_beside_it(host: Host, tmp_path: Path) -> None:
    files = {"src/main.py": b"import near; print(near.HERE)", "src/near.py": b"HERE = 'near'"}
    job = run(host, keep(host, tmp_path / "code", files), entrypoint="src/main.py")
    assert (job.status, host.logs(job.job_id)) == (Status.SUCCEEDED, ["near"])


@pytest.mark.parametrize(
    ("files", "message", "frame"),
    [
        (
            {"train.py": b"import model\nmodel.build()\n", "model.py": b"def build():\n  raise ValueError('no one')"},
            "ValueError: no one",
            'model.py", line 2, in build',
        ),
        ({"train.py": b"x = 1\ndef broken(:\n"}, "SyntaxError: invalid syntax (train.py, line 2)", 'train.py", line 2'),
        ({"train.py": b"import no_such\n"}, "ModuleNotFoundError: No module named 'no_such'", 'train.py", line 1'),
    ],
)  # fmt: skip
def test_a_failure_shows_the_users_own_frames(
    host: Host, tmp_path: Path, files: dict[str, bytes], message: str, frame: str
) -> None:
    job = run(host, keep(host, tmp_path / "code", files))
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.type, job.error_message) == ("user_error", message)
    assert frame in (job.error.traceback or "")
    for ours in ("trainer.py", "runpy"):
        assert ours not in (job.error.traceback or "")


def test_a_bundle_that_is_gone_or_damaged_is_refused_without_another_try(host: Host, tmp_path: Path) -> None:
    content = keep(host, tmp_path / "code", {"train.py": b""})
    other = keep(host, tmp_path / "other", {"train.py": b"print('not this one')"})
    path = Path(urlsplit(host.settings.artifacts_url).path) / key_of(content.sha256)
    for damage, says in (
        ((tmp_path / "other" / "canonical").read_bytes(), "another SHA-256"),
        (b"\x1f\x8b junk", "is damaged"),
        (None, "is gone"),
    ):
        path.unlink()
        if damage is not None:
            path.write_bytes(damage)
        job = run(host, content, max_restarts=3)
        assert job.status is Status.FAILED
        assert job.error is not None
        assert (job.error.type, job.attempt) == ("code_rejected", 1)
        assert says in (job.error_message or "")
        if damage is None:
            break
    assert run(host, other).status is Status.SUCCEEDED
    assert [folder.name for folder in (host.settings.work_dir / "bundles").iterdir()] == [other.sha256]


def wheel(folder: Path, name: str = "mypackage", version: str = "1.0") -> bytes:
    """A package as pip installs it, made here: no network."""
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = {version!r}\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path.read_bytes()


NEEDY = b"""
import sys, mypackage, torch, epochcast
print(mypackage.VERSION, sys.prefix != sys.base_prefix, torch.__file__.startswith(sys.prefix))
print(sys.prefix)
"""


REQUIREMENTS = b"--no-index\n--find-links wheels\nmypackage==1.0\ntorch\n"


def needy(folder: Path) -> dict[str, bytes]:
    name = "wheels/mypackage-1.0-py3-none-any.whl"
    return {"train.py": NEEDY, "requirements.txt": REQUIREMENTS, name: wheel(folder)}


@pytest.fixture(params=["pip", "uv"])
def installer(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tool that hosts find, whatever there is on this machine."""
    others = [folder for folder in os.get_exec_path() if not Path(folder, "uv").exists()]
    if request.param == "uv":
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "uv").symlink_to(find_uv_bin())
        others.insert(0, str(tmp_path / "bin"))
    monkeypatch.setenv("PATH", os.pathsep.join(others))
    return str(request.param)


def test_requirements_become_one_environment_that_attempts_share_and_torch_is_not_installed_again(
    installer: str, make_host: Callable[..., Host], tmp_path: Path
) -> None:
    host = make_host(slots=2)
    content = keep(host, tmp_path / "code", needy(tmp_path))
    jobs = [submit(host, content), submit(host, content)]
    for process in [host.attempt(job_id) for job_id in jobs]:
        host.wait_ended(process, timeout_s=150)
    prefixes = set()
    for job_id in jobs:
        assert host.store.get(job_id).status is Status.SUCCEEDED, host.logs(job_id)
        *_, facts, prefix = host.logs(job_id)
        assert facts == "1.0 True False"
        prefixes.add(prefix)
    [environment] = [path for path in (host.settings.work_dir / "venvs").iterdir() if path.is_dir()]
    assert prefixes == {str(environment)}
    built = [line for job_id in jobs for line in host.logs(job_id) if line.startswith("building an environment")]
    assert built == [f"building an environment for requirements.txt with {installer}"], "two attempts at once built two"


def test_a_failing_install_is_an_environment_error_with_the_tools_own_words(
    installer: str, host: Host, tmp_path: Path
) -> None:
    files = {"train.py": b"", "requirements.txt": b"--no-index\nno-such-package-anywhere==7\n"}
    job = run(host, keep(host, tmp_path / "code", files))
    assert job.status is Status.FAILED
    assert job.error is not None
    assert (job.error.type, job.error.retryable) == ("environment", True)
    assert job.error_message == f"the environment for requirements.txt could not be built: {installer} exited with 1"
    assert "no-such-package-anywhere==7" in (job.error.detail or "")
    said = {"pip": "No matching distribution found", "uv": "No solution found"}[installer]
    assert any(said in line for line in host.logs(job.job_id))


def test_a_stop_ends_the_building_of_an_environment(host: Host, tmp_path: Path) -> None:
    setup = b"import time\nprint('building for ever', flush=True)\ntime.sleep(600)\n"
    project = b"[build-system]\nrequires = []\nbuild-backend = 'slow'\nbackend-path = ['.']\n"
    files = {
        "train.py": b"",
        "requirements.txt": b"--no-index\n./slow\n",
        "slow/pyproject.toml": project,
        "slow/slow.py": setup,
    }
    job_id = submit(host, keep(host, tmp_path / "code", files))
    supervisor = host.attempt(job_id)

    def processing() -> bool:
        return any("Preparing metadata" in line or "./slow" in line for line in host.logs(job_id))

    wait_until(processing, "the build", timeout_s=60)
    tree = host.tree(job_id)
    host.store.request_stop(job_id, None)
    host.wait_ended(supervisor)  # the next heartbeat sees the stop; the build would go on for ten minutes
    assert host.store.get(job_id).status is Status.STOPPED
    assert not [pid for pid in tree if Path(f"/proc/{pid}").exists()]
    assert all(isinstance(message.message, str) for message in host.messages(job_id) if isinstance(message, Log))
