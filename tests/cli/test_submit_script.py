"""`submit train.py`: whose option is whose, and a folder of one's own trained on the real platform."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

import epochcast
from epochcast import packing
from epochcast.cli import app, run
from epochcast.cli.script_command import script_of
from epochcast.errors import Invalid
from epochcast.jobs import Status
from tests.platform import CHECKOUT, Platform


@pytest.mark.parametrize(
    ("line", "script", "own"),
    [
        ("train.py --lr 0.1 data -x", ["train.py", "--lr", "0.1", "data", "-x"], {}),
        ("train.py --gpus 2 --watch", ["train.py"], {"gpus": 2, "watch": True}),
        ("--gpus=2 train.py --lr 0.1 --epochs=5", ["train.py", "--lr", "0.1"], {"gpus": 2, "epochs": 5}),
        ("train.py -wd 0.1 -plr=3", ["train.py", "-wd", "0.1", "-plr=3"], {"watch": False, "param": []}),
        ("--gpus 1 train.py -- --gpus 2 -- --watch", ["train.py", "--gpus", "2", "--", "--watch"], {"gpus": 1}),
        ("-p lr=3 --env A=1 train.py -", ["train.py", "-"], {"param": ["lr=3"], "env": ["A=1"]}),
        ("--recipe r", [], {"recipe": "r"}),
    ],
)
def test_known_options_are_the_commands_wherever_they_stand(line: str, script: list[str], own: dict[str, Any]) -> None:
    command: Any = typer.main.get_command(app)
    context = command.commands["submit"].make_context("submit", line.split())
    assert script_of(context) == script
    for name, value in own.items():
        taken = context.params[name]
        assert (list(taken or []) if isinstance(value, list) else taken) == value, name


def test_the_example_trains_from_the_command_line_to_a_model(
    platform: Platform, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(CHECKOUT / "examples" / "own-script", folder, ignore=shutil.ignore_patterns("__pycache__"))
    line = ["submit", str(folder / "train.py"), "--lr", "0.05", "--epochs", "3", "--watch", "--json"]
    assert run([*line, "--url", platform.url]) == 0
    printed = capsys.readouterr()
    assert "sending 2 files" in printed.err
    assert "network.py" in printed.err
    assert "runs: python train.py --lr 0.05" in printed.err
    submitted, *messages = [json.loads(text) for text in printed.out.splitlines()]
    assert submitted["spec"]["args"] == ["--lr", "0.05"]
    assert messages[-1]["type"] == "complete"
    assert messages[-1]["final_metrics"]["val_accuracy"] > 0.5
    with epochcast.Client(platform.url) as client:
        model = client.model(messages[-1]["model_id"])
        assert model.lineage["bundle"] == submitted["spec"]["bundle"]
        assert model.download(tmp_path / "model.safetensors").stat().st_size > 0
        # The same folder from Python is the same bundle; a change makes another.
        job = client.submit(folder / "train.py", args=["--lr", "0.1"], total_epochs=1)
        assert job.spec.bundle == submitted["spec"]["bundle"]
        *_, last = job.watch()
        assert last.status is Status.SUCCEEDED
        (folder / "notes.txt").write_text("new")
        assert client.upload(packing.choose(folder / "train.py")) != job.spec.bundle
        with pytest.raises(Invalid, match=r"env\.PYTHONPATH"):
            client.submit(folder / "train.py", env={"PYTHONPATH": "/x"})


def test_a_dry_run_shows_what_would_be_sent_and_submits_nothing(
    platform: Platform, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "train.py").write_text("print(1)\n")
    with epochcast.Client(platform.url) as client:
        before = [job.job_id for job in client.jobs()]
        assert run(["submit", str(tmp_path / "train.py"), "--dry-run", "--url", platform.url]) == 0
        assert "sending 1 file, 9 B" in capsys.readouterr().out
        assert run(["submit", str(tmp_path / "train.py"), "--dry-run", "--url", platform.url, "--", "x" * 10_000]) == 0
        printed = capsys.readouterr().out
        assert "characters more" in printed
        assert len(printed) < 2_000
        assert [job.job_id for job in client.jobs()] == before


async def _submitted(url: str, script: Path) -> Status:
    async with epochcast.AsyncClient(url) as client:
        job = await client.submit(script)
        async for _ in job.watch():
            pass
        return (await job.refreshed()).status


def test_the_asynchronous_client_submits_a_script_too(platform: Platform, tmp_path: Path) -> None:
    import asyncio

    (tmp_path / "train.py").write_text("print('trained')\n")
    assert asyncio.run(_submitted(platform.url, tmp_path / "train.py")) is Status.SUCCEEDED
