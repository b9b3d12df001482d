"""Reads our Markdown pages as the tests of the manual need them: fenced blocks, code spans, tables, links, anchors."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
DOCS = CHECKOUT / "docs"
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every page of the manual, and those at the top of the checkout."""
    return sorted([*CHECKOUT.glob("*.md"), *DOCS.glob("*.md")])


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fenced blocks of one language."""
    return [content for name, content in _FENCE.findall(text) if name == language]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def section(text: str, heading: str) -> str:
    """What stands under the heading (`## Errors`), up to the next one of any level."""
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no heading {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of every table row, heads and rules left out."""
    lines = re.findall(r"^\|(.*)\|$", prose(text), re.MULTILINE)
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines]
    rules = [place for place, row in enumerate(cells) if all(re.fullmatch(r"-+", cell) for cell in row)]
    dropped = {*rules, *(place - 1 for place in rules)}
    return [row for place, row in enumerate(cells) if place not in dropped]


def names(cell: str) -> list[str]:
    """The code spans of a cell: "`epoch`, `step`" gives both."""
    return re.findall(r"`([^`]+)`", cell)


def links(text: str) -> list[str]:
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(text))


def anchors(text: str) -> set[str]:
    """What headings can be linked by, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
