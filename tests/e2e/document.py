"""The owner's document, cut into its snippets."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "websocket-api.md"


def snippet(heading: str, language: str) -> str:
    """The first code block of `language` below the heading, exactly as the document has it."""
    text = DOCUMENT.read_text()
    section = re.search(rf"^#+ {re.escape(heading)}$(.*?)(?=^#+ |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None, f"the document has no section {heading!r}"
    block = re.search(rf"^```{language}\n(.*?)^```$", section[1], re.MULTILINE | re.DOTALL)
    assert block is not None, f"the section {heading!r} has no {language} snippet"
    return block[1]


def pointed_at(code: str, url: str, job_id: int) -> str:
    """The snippet with another host, port and job id, and nothing else changed."""
    address = url.removeprefix("http://")
    return re.sub(r"\b42\b", str(job_id), code.replace("localhost:8000", address))
