"""Text and JSON columns for what scripts and error messages say: characters that SQL can't hold are replaced."""

import re
from typing import Any

import sqlalchemy as sa

# PostgreSQL's text has no NUL, and no database's UTF-8 has half a surrogate pair (as in undecodable file names).
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def plain(value: Any) -> Any:
    """`value` with U+FFFD where SQL has no such character, at any depth, in keys too."""
    match value:
        case str():
            return _UNSTORABLE.sub("\ufffd", value)
        case dict():
            return {plain(key): plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [plain(inner) for inner in value]
    return value


class PlainText(sa.TypeDecorator[str]):
    """TEXT that takes any string."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(plain(value))


class PlainJson(sa.TypeDecorator[Any]):
    """JSON that takes any strings; None is SQL's NULL."""

    impl = sa.JSON(none_as_null=True)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return plain(value)
