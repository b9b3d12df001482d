"""The manual says what the code does: messages, close codes, calls, problems, commands and links are compared."""

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer
from pydantic import BaseModel

from api import closes, problems
from api.app import create_app
from api.closes import Close
from api.telemetry import Telemetry
from epochcast.cli import app as command_line
from epochcast.events import Complete, Error, Log, Progress, decode, encode
from epochcast.jobs import TERMINAL, GpuMemory, JobError, TrainingJob, TrainingJobSpec
from epochcast.run import Run
from shared.settings import Settings
from shared.tokens import SCOPES
from tests import markdown

MESSAGES = (markdown.DOCS / "messages.md").read_text()
HTTP_API = (markdown.DOCS / "http-api.md").read_text()
OPERATING = (markdown.DOCS / "operating.md").read_text()
TRAINING = (markdown.DOCS / "training-scripts.md").read_text()
PAGES = {str(path.relative_to(markdown.CHECKOUT)): path.read_text() for path in markdown.pages()}


def fields_under(page: str, heading: str) -> list[str]:
    return [name for row in markdown.rows(markdown.section(page, heading)) for name in markdown.names(row[0])]


# --- pages


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    folder = (markdown.CHECKOUT / page).parent
    for link in markdown.links(PAGES[page]):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = folder / path if path else markdown.CHECKOUT / page
        assert target.exists(), f"{page} links to {link}, and {target} does not exist"
        if anchor:
            assert anchor in markdown.anchors(target.read_text()), f"{page} links to {link}, which no heading is"


def test_the_index_lists_every_page() -> None:
    listed = set(markdown.links((markdown.DOCS / "index.md").read_text()))
    assert {path.name for path in markdown.DOCS.glob("*.md")} - listed == {"index.md"}


# --- messages


COMMON = {*Log.model_fields} - {"level", "message"}


def test_fields_of_every_message_are_documented_and_no_other() -> None:
    assert sorted(fields_under(MESSAGES, "## Every message")) == sorted(COMMON)


@pytest.mark.parametrize(
    ("heading", "model"),
    [("## `progress`", Progress), ("## `log`", Log), ("## `complete`", Complete), ("## `error`", Error)],
)
def test_own_fields_of_a_message_type_are_documented_and_no_other(heading: str, model: type[BaseModel]) -> None:
    assert sorted(fields_under(MESSAGES, heading)) == sorted({*model.model_fields} - COMMON)


def test_fields_and_types_of_the_typed_error_are_documented_and_no_other() -> None:
    error_types = JobError.model_json_schema()["properties"]["type"]["enum"]
    documented = fields_under(MESSAGES, "### The typed error")
    assert sorted(documented) == sorted([*JobError.model_fields, *error_types, *GpuMemory.model_fields])


def json_examples() -> list[Any]:
    return [orjson.loads(block) for block in markdown.blocks(MESSAGES, "json")]


def test_every_message_type_has_an_example() -> None:
    assert {example["type"] for example in json_examples() if "id" in example} == {
        "progress",
        "log",
        "complete",
        "error",
    }


@pytest.mark.parametrize("example", json_examples(), ids=lambda example: example.get("id", example["type"]))
def test_example_is_what_the_code_would_send(example: dict[str, Any]) -> None:
    if "id" in example:
        assert orjson.loads(encode(decode(orjson.dumps(example)))) == example
    else:
        assert JobError.model_validate(example).model_dump(mode="json") == example


def test_close_codes_and_reasons_are_the_codes() -> None:
    rows = markdown.rows(markdown.section(MESSAGES, "## Close codes"))
    documented = [(int(row[0]), row[1].strip("`")) for row in rows]
    known = [close for close in vars(closes).values() if isinstance(close, Close)]
    known += [closes.finished(status) for status in TERMINAL]
    assert sorted(documented) == sorted((close.code, close.reason) for close in known)


# --- HTTP


@pytest.fixture(scope="module")
def openapi() -> dict[str, Any]:
    return create_app(Settings.model_validate({"auth": "none"})).openapi()


def documented_calls() -> dict[tuple[str, str], str]:
    """Method and path to the row that describes the call; paths as the gateway serves them."""
    found = {}
    for row in markdown.rows(markdown.section(HTTP_API, "## Calls")):
        method, path = row[0].strip("`").split()
        is_outside = len(row) == 2  # that table has no scopes
        found[method, path if is_outside else f"/api/v1{path}"] = " ".join(row)
    return found


def test_every_call_is_documented_and_no_other(openapi: dict[str, Any]) -> None:
    served = {(method.upper(), path) for path, methods in openapi["paths"].items() for method in methods}
    assert sorted(documented_calls()) == sorted(served | {("GET", "/metrics")})


def test_every_parameter_of_a_call_stands_in_its_row(openapi: dict[str, Any]) -> None:
    for (method, path), row in documented_calls().items():
        for parameter in openapi["paths"].get(path, {}).get(method.lower(), {}).get("parameters", []):
            name = parameter["name"]
            assert re.search(rf"\b{name}\b", row), f"{method} {path} takes {name}, and its row doesn't say so"


def problem_codes() -> Iterator[tuple[int, str]]:
    """Status and code of every problem that the gateway makes, read from its source."""
    yield from ((status, code) for status, code, _ in problems._OF_EXCEPTION.values())
    for path in (markdown.CHECKOUT / "api").rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text())):
            match call:
                case ast.Call(
                    func=ast.Name(id="Problem"), args=[ast.Constant(int(status)), ast.Constant(str(code)), *_]
                ):
                    yield status, code
                case ast.Call(func=ast.Name(id="_unauthenticated"), args=[ast.Constant(str(code)), *_]):
                    yield 401, code


def test_every_problem_code_is_documented_and_no_other() -> None:
    documented = [(int(row[0]), row[1].strip("`")) for row in markdown.rows(markdown.section(HTTP_API, "## Errors"))]
    assert sorted(documented) == sorted(set(problem_codes()))


def test_every_field_of_submission_and_job_is_documented() -> None:
    assert sorted(fields_under(HTTP_API, "## Submitting")) == sorted(TrainingJobSpec.model_fields)
    assert sorted(fields_under(HTTP_API, "## The job")) == sorted(TrainingJob.model_fields)


def test_the_example_of_a_submission_is_one() -> None:
    example = orjson.loads(markdown.blocks(markdown.section(HTTP_API, "## Submitting"), "json")[0])
    assert TrainingJobSpec.model_validate(example).recipe == example["recipe"]


def test_every_metric_of_the_gateway_is_documented_and_no_other() -> None:
    exported = {family.name for family in Telemetry()._registry.collect()}
    assert sorted(fields_under(OPERATING, "## Metrics")) == sorted(exported)


def test_every_scope_is_documented_by_what_it_allows() -> None:
    table = markdown.rows(markdown.section((markdown.DOCS / "security.md").read_text(), "## Tokens"))
    allows = {row[0].strip("`"): row[1] for row in table if ":" in row[0]}
    assert allows.keys() == set(SCOPES)
    needed = {row[1].strip("`") for row in markdown.rows(markdown.section(HTTP_API, "## Calls")) if len(row) == 3}
    assert needed <= set(SCOPES)
    for scope in needed:
        assert not allows[scope].startswith("nothing"), f"docs/security.md says that {scope} allows nothing"


# --- commands


def shell_lines(page: str) -> Iterator[str]:
    for block in markdown.blocks(page, "bash"):
        yield from block.replace("\\\n", " ").splitlines()


def commands(page: str, name: str) -> Iterator[str]:
    """The arguments of each call of `name` in shell blocks and code spans, up to where the shell takes over."""
    for line in [*shell_lines(page), *markdown.code_spans(page)]:
        for found in re.finditer(rf"(?:^|[\s/(]){name} ([a-z-][^|>&;)]*)", line):
            yield found[1]


def all_commands(name: str) -> list[tuple[str, str]]:
    return sorted({(page, command) for page, text in PAGES.items() for command in commands(text, name)})


@pytest.mark.parametrize(("page", "command"), all_commands("epochcast"))
def test_command_line_parses(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    found: Any = typer.main.get_command(command_line)
    while (below := getattr(found, "commands", None)) and words and not words[0].startswith("-"):
        assert words[0] in below, f"{page}: there is no command `epochcast {command}`"
        found = below[words.pop(0)]
    if getattr(found, "commands", None) and words:  # not parsed: --install-completion would do it
        assert words[0] in {option for parameter in found.params for option in parameter.opts}
    elif words:  # a command's bare name is talked about, not shown
        found.make_context(found.name, words)


@pytest.mark.parametrize(("page", "command"), all_commands("make"))
def test_make_target_exists(page: str, command: str) -> None:
    targets = re.findall(r"^([a-z]+):", (markdown.CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert command.split()[0] in targets, f"{page} names `make {command}`"


@pytest.mark.parametrize("page", PAGES)
def test_named_python_modules_exist(page: str) -> None:
    for module in commands(PAGES[page], "python -m"):
        path = markdown.CHECKOUT / module.split()[0].replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"{page}: python -m {module}"


# --- the training SDK


def test_everything_a_run_offers_is_documented() -> None:
    for_the_trainer = {"fail", "close", "pass_on"}
    offered = {name for name in vars(Run) if not name.startswith("_")} - for_the_trainer
    assert {name for name in offered if f"run.{name}" not in TRAINING} == set()


def test_the_whole_script_trains_by_hand(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(markdown.blocks(TRAINING, "python")[0])
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    assert "[report] epoch 5/5 train_loss=" in ran.stdout
    assert (tmp_path / "epochcast-run" / "model.safetensors").is_file()
