"""Which file names a bundle may hold: those that mean one file, and the same one, on every machine."""

import re
import unicodedata

MAX_PART_BYTES = 255
MAX_PATH_BYTES = 1024
MAX_DEPTH = 32


class UnsafeName(ValueError):
    """Raised for a name that no bundle may hold; the text is the reason."""


class Names:
    """The names of one archive so far: checks each alone and against the others."""

    def __init__(self) -> None:
        # By its folded form, which is all that a disk that ignores case keeps apart: the spelling, and what it names.
        self._known: dict[str, tuple[str, bool]] = {}
        self._listed: set[str] = set()

    def add(self, name: str, *, is_folder: bool) -> str | None:
        """The member's path in the bundle; None for the archive's own root. Raises UnsafeName."""
        path = safe_path(name)
        if path is None:
            if not is_folder:
                raise UnsafeName("names no file")
            return None
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            self._claim("/".join(parts[:depth]), is_folder=is_folder or depth < len(parts))
        if not is_folder:
            if path in self._listed:
                raise UnsafeName("comes twice")
            self._listed.add(path)
        return path

    def _claim(self, path: str, *, is_folder: bool) -> None:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        spelling, was_folder = self._known.setdefault(folded, (path, is_folder))
        if spelling != path:
            raise UnsafeName(f"is the same as {spelling!r} on a disk that ignores case or accents' encoding")
        if was_folder != is_folder:
            raise UnsafeName(f"{path!r} is both a file and a folder")


def safe_path(name: str) -> str | None:
    """`./src/train.py` as `src/train.py`; None for the root itself. Raises UnsafeName."""
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        raise UnsafeName("has a control character, or is not UTF-8")
    if "\\" in name or re.match(r"[A-Za-z]:", name):
        raise UnsafeName("has a backslash or a drive letter")
    if name.startswith("/"):
        raise UnsafeName("is absolute")
    path = re.sub(r"^(\./)+", "", name).removesuffix("/")
    if path in ("", "."):
        return None
    _check_parts(path)
    return path


def _check_parts(path: str) -> None:
    parts = path.split("/")
    if ".." in parts:
        raise UnsafeName("leads out of the bundle (..)")
    if "" in parts or "." in parts:
        raise UnsafeName("has an empty part, or one that is only a dot")
    if len(parts) > MAX_DEPTH:
        raise UnsafeName(f"is {len(parts)} levels deep; the limit is {MAX_DEPTH}")
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        raise UnsafeName(f"has a part of more than {MAX_PART_BYTES} bytes")
    if len(path.encode()) > MAX_PATH_BYTES:
        raise UnsafeName(f"has more than {MAX_PATH_BYTES} bytes")
