"""What of a folder is sent with a script, and what is left out and said."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from epochcast import packing
from epochcast.errors import UsageError
from epochcast.packing import Package, choose


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")


def paths(package: Package) -> list[str]:
    return [file.path for file in package.files]


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True)


SENT = ["data/small.csv", "model.py", "train.py"]
NEVER = [".venv/lib/x.py", "__pycache__/train.pyc", "sub/__pycache__/a.pyc", "node_modules/a.js", "epochcast-run/m.pt"]


def test_outside_git_everything_goes_but_what_tools_leave_behind(tmp_path: Path) -> None:
    make(tmp_path, *SENT, *NEVER, ".git-not/kept.py")
    package = choose(tmp_path / "train.py")
    assert (paths(package), package.entrypoint) == ([".git-not/kept.py", *SENT], "train.py")
    assert package.bytes == sum((tmp_path / path).stat().st_size for path in paths(package))


def test_in_git_what_it_ignores_stays_and_what_is_new_goes(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    make(tmp_path, *SENT, *NEVER, "secret.env", "big/data.bin", "gone.py", "ümlaut.py")
    (tmp_path / ".gitignore").write_text("*.env\nbig/\n")
    git(tmp_path, "add", "train.py", "gone.py")
    (tmp_path / "gone.py").unlink()
    assert paths(choose(tmp_path / "train.py")) == [".gitignore", *SENT, "ümlaut.py"]
    # A script in a folder takes that folder, with the rules from above; --folder takes more.
    make(tmp_path, "scripts/run.py", "scripts/a.env")
    assert paths(choose(tmp_path / "scripts/run.py")) == ["run.py"]
    wider = choose(tmp_path / "scripts/run.py", tmp_path)
    assert (wider.entrypoint, "train.py" in paths(wider)) == ("scripts/run.py", True)


def test_gitignore_counts_where_git_has_no_work_tree_it_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, *SENT, "secret.env", "sub/big.bin")
    (tmp_path / ".gitignore").write_text("*.env\n")
    (tmp_path / "sub/.gitignore").write_text("*.bin\n")
    sent = [".gitignore", *SENT[:2], "sub/.gitignore", "train.py"]
    assert paths(choose(tmp_path / "train.py")) == sent
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")  # as where it refuses another user's folder
    assert paths(choose(tmp_path / "train.py")) == sent
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UsageError, match=r"\.gitignore, and git is needed to read it"):
        choose(tmp_path / "train.py")


def test_an_ignored_script_is_sent_all_the_same(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    make(tmp_path, "train.py")
    (tmp_path / ".gitignore").write_text("*.py\n")
    assert paths(choose(tmp_path / "train.py")) == [".gitignore", "train.py"]


def test_links_and_large_files_are_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_FILE_BYTES", 2**20)
    make(tmp_path, "train.py")
    (tmp_path / "link.py").symlink_to("/etc/passwd")
    (tmp_path / "folder").symlink_to("/etc")
    (tmp_path / "large.bin").write_bytes(bytes(2**21))
    package = choose(tmp_path / "train.py")
    assert paths(package) == ["train.py"]
    assert dict(package.left_out) == {
        "folder": "a symbolic link",
        "link.py": "a symbolic link",
        "large.bin": "2 MiB, over the limit of 1 MiB a file",
    }


def test_a_folder_that_is_too_large_is_refused_before_it_is_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, "train.py", "a", "b", "c")
    monkeypatch.setattr(packing, "MAX_FILES", 3)
    with pytest.raises(UsageError, match="--folder"):
        choose(tmp_path / "train.py")


@pytest.mark.parametrize(
    ("script", "folder", "says"),
    [
        ("none.py", None, "no such file"),
        (".", None, "is a folder; name the script"),
        ("notes.md", None, r"\.py"),
        ("train.py", "sub", "is not in"),
    ],
)
def test_a_wrong_script_is_named(tmp_path: Path, script: str, folder: str | None, says: str) -> None:
    make(tmp_path, "train.py", "notes.md", "sub/a.py")
    with pytest.raises(UsageError, match=says):
        choose(tmp_path / script, tmp_path / folder if folder else None)


def test_the_archive_holds_plain_files_only_and_nothing_about_who_packed_them(tmp_path: Path) -> None:
    make(tmp_path, "train.py", "src/a.py")
    (tmp_path / "train.py").chmod(0o755)
    os.link(tmp_path / "src/a.py", tmp_path / "src/b.py")
    target = io.BytesIO()
    packing.write(choose(tmp_path / "train.py"), target)
    target.seek(0)
    with tarfile.open(fileobj=target) as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == ["src/a.py", "src/b.py", "train.py"]
    assert all(member.isreg() and (member.uid, member.uname, member.mtime) == (0, "", 0) for member in members)
    assert members[2].mode & 0o111
