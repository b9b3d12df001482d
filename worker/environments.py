"""Virtual environments for bundles with a `requirements.txt`: built once a host, then shared by attempts.

The build runs in the trainer's own process, below the launcher: what it prints is the job's log, a stop or a lost
lease ends it like any training, and a package's build script sees no credential of the platform.
"""

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import site
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

REQUIREMENTS = "requirements.txt"
LAST_LINES = 20
# uv looks at nothing outside the environment: without this it would install a torch of its own, of some GiB.
_SHARED = ("torch", "torchvision", "torchaudio")
_INCLUDED = re.compile(r"(?:-r|-c|--requirement|--constraint)[ =]*(.+)")


class EnvironmentFailed(Exception):
    """Raised when an environment can't be built; `detail`: the last lines of the tool that failed."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


def environment_for(bundle: Path, folder: Path, bundle_sha256: str) -> Path | None:
    """The Python for what `bundle` requires, built now if it isn't there; None when it requires nothing.

    `folder` holds this host's environments. Raises EnvironmentFailed, OSError.
    """
    requirements = bundle / REQUIREMENTS
    if not requirements.is_file():
        return None
    text = requirements.read_text(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not lines:
        return None
    _refuse_editable(lines)
    folder.mkdir(parents=True, exist_ok=True)
    name = _key(text, bundle_sha256 if _needs_bundle(lines) else "")
    environment, complete = folder / name, folder / name / ".complete"
    with _locked(folder / f"{name}.lock"):
        if not complete.exists():
            shutil.rmtree(environment, ignore_errors=True)
            _build(environment, bundle)
            complete.touch()
    return environment / "bin" / "python"


def is_inside(folder: Path) -> bool:
    """Whether this process runs in one of the environments in `folder`: then it is the one that was built for it."""
    return Path(sys.prefix).resolve().parent == folder.resolve()


def _refuse_editable(lines: Sequence[str]) -> None:
    editable = next((line for line in lines if line.startswith(("-e", "--editable"))), None)
    if editable is not None:
        raise EnvironmentFailed(f"{REQUIREMENTS}: {editable!r} can't be kept: name the folder without -e", editable)


def _needs_bundle(lines: Sequence[str]) -> bool:
    """Whether other files of the bundle may decide what is installed: then it is part of the environment's name."""
    return any(line.startswith((".", "-", "/")) or "file:" in line or "./" in line for line in lines)


def _key(text: str, bundle_sha256: str) -> str:
    parts = (text, platform.python_version(), sys.prefix, bundle_sha256, *_installed())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _installed() -> list[str]:
    """The worker's own packages with their versions: an environment leaves out what it needs of them, and so is right
    only as long as they are these."""
    folders = [Path(folder) for folder in site.getsitepackages()]
    return sorted(path.name for folder in folders for path in folder.glob("*.dist-info"))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two attempts with the same requirements build one environment; a killed builder lets go by itself."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another job that builds the same environment", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(environment: Path, bundle: Path) -> None:
    uv = shutil.which("uv")
    print(f"building an environment for {REQUIREMENTS} with {'uv' if uv else 'pip'}", flush=True)
    # The worker's pip rather than one of its own, with which an old setuptools comes that torch may not accept.
    has_pip = importlib.util.find_spec("pip") is not None
    _run([sys.executable, "-m", "venv", *(["--without-pip"] if uv or has_pip else []), str(environment)], bundle)
    _share_packages(environment)
    python = str(environment / "bin" / "python")
    if uv:
        overrides = environment / "shared-packages.txt"
        overrides.write_text("".join(f"{name}; python_version < '0'\n" for name in _shared_packages(bundle)))
        _run([uv, "pip", "install", "--python", python, "--override", str(overrides), "-r", REQUIREMENTS], bundle)
    else:
        pip = [sys.executable, "-m", "pip", "--python", python] if has_pip else [python, "-m", "pip"]
        quiet = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
        _run([*pip, "install", *quiet, "-r", REQUIREMENTS], bundle)


def _share_packages(environment: Path) -> None:
    """The worker's own packages stay visible behind the new ones. `--system-site-packages` would show those of the
    Python that the worker's environment was made from, where no torch is."""
    target = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    lines = [f"import site; site.addsitedir({folder!r})\n" for folder in site.getsitepackages()]
    (target / "epochcast-worker.pth").write_text("".join(lines))


def _shared_packages(bundle: Path) -> list[str]:
    """What of the worker's an environment by uv leaves out: those that the requirements allow as they are here."""
    from packaging.requirements import InvalidRequirement, Requirement

    wanted: dict[str, list[Requirement]] = {}
    for line in _all_lines(bundle / REQUIREMENTS, set()):
        try:
            requirement = Requirement(line.partition(" --")[0])  # without its hashes
        except InvalidRequirement:
            continue
        wanted.setdefault(requirement.name.lower(), []).append(requirement)
    found = []
    for name in _SHARED:
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if all(one.specifier.contains(installed, prereleases=True) for one in wanted.get(name, [])):
            found.append(name)
    return found


def _all_lines(file: Path, seen: set[Path]) -> Iterator[str]:
    """Those of a file of requirements and of the files that it names, each whole and without its comment; a file that
    isn't there is the tool's to name."""
    if file in seen or not file.is_file():
        return
    seen.add(file)
    for line in file.read_text(errors="replace").replace("\\\n", " ").splitlines():
        said = line.partition(" #")[0].strip()
        if included := _INCLUDED.fullmatch(said):
            yield from _all_lines(file.parent / included[1], seen)
        else:
            yield said


def _run(command: Sequence[str], folder: Path) -> None:
    """Runs a tool, shows what it says, and keeps its last lines. Raises EnvironmentFailed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "EPOCHCAST_"))}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    last: deque[str] = deque(maxlen=LAST_LINES)
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            print(line, end="", flush=True)
            last.append(line)
    if process.wait() != 0:
        tool = "uv" if Path(command[0]).name == "uv" else command[2]
        message = f"the environment for {REQUIREMENTS} could not be built: {tool} exited with {process.returncode}"
        raise EnvironmentFailed(message, "".join(last).strip())
