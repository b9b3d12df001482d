"""Every fault of the plan is proven by a test that exists."""

import re
from pathlib import Path

from tests import markdown

FOLDER = Path(__file__).parent
TABLE = markdown.rows((FOLDER / "README.md").read_text())


def test_each_fault_has_its_row() -> None:
    assert [row[0].split(" ")[0] for row in TABLE] == [f"F{number}" for number in range(1, 22)]


def test_each_test_that_a_row_names_is_there() -> None:
    for row in TABLE:
        named = re.findall(r"`((?:tests/[a-z_/]+/)?test_\w+\.py)(?:::(test_\w+))?`", row[1])
        assert named or "make soak" in row[1], f"{row[0]} names no test"
        for file, test in named:
            path = markdown.CHECKOUT / file if file.startswith("tests/") else FOLDER / file
            assert path.is_file(), f"{row[0]}: {file}"
            assert not test or f"def {test}(" in path.read_text(), f"{row[0]}: {file} has no {test}"
