"""docs/settings.md describes every setting, with the default that the code has, and no other."""

import re
from pathlib import Path

from pydantic import SecretStr
from pydantic_core import PydanticUndefined

from shared.settings import Settings

CHECKOUT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `(EPOCHCAST_[A-Z_]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", re.MULTILINE)


def documented() -> dict[str, list[str]]:
    """Variable name to its cells: unit, default, who reads it, is."""
    text = (CHECKOUT / "docs" / "settings.md").read_text()
    return {row[0]: [cell.strip() for cell in row[1:]] for row in ROW.findall(text)}


def test_every_setting_is_documented_and_no_other() -> None:
    assert sorted(documented()) == sorted(f"EPOCHCAST_{name.upper()}" for name in Settings.model_fields)


def test_every_cell_says_something() -> None:
    assert {name: cells for name, cells in documented().items() if not all(cells)} == {}


def test_documented_defaults_are_the_codes() -> None:
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=False)
        if default in (None, PydanticUndefined):
            continue  # "none", or made at start; the table says so in words
        shown = documented()[f"EPOCHCAST_{name.upper()}"][1].strip("`")
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        value = (
            ",".join(default) or "none"
            if isinstance(default, tuple)
            else f"{default:g}"
            if isinstance(default, float)
            else str(default)
        )
        assert shown == value, f"docs/settings.md says {shown!r} for {name}; the code says {value!r}"


def test_readers_are_processes_that_exist() -> None:
    known = {"gateway", "worker", "migrations", "`epochcast token`"}
    for name, cells in documented().items():
        assert set(cells[2].split(", ")) <= known, name
