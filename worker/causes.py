"""What stands behind an exception: what it was raised from, what it holds, what another process said in its text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_LINKS = 50
_TEXT_CHARACTERS = 200_000
# torch.utils.data and DataParallel put the traceback of another thread or process into the message of the same type.
_CAUGHT = re.compile(r"\ACaught (\w+) (?:in )?(.{1,200}?)\.\nOriginal ", re.DOTALL)
# torch.multiprocessing.spawn: the rank's traceback in the message of a type of its own.
_SPAWNED = re.compile(r"\A\s*-- (Process \d+) terminated with the following error:\n")
_RAISED = re.compile(r"^([A-Za-z_][\w.]*)(?:: (.*))?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Cause:
    """One error among those behind a failure.

    `names`: its type's name and those of its bases. `text`: what it says. `where`: the other thread or process that
    raised it. `number`: the errno, if it is the system's.
    """

    type_name: str
    names: frozenset[str]
    text: str
    where: str | None = None
    number: int | None = None

    @property
    def first_line(self) -> str:
        return next((line.strip() for line in self.text.splitlines() if line.strip()), "")


def causes(error: BaseException) -> Iterator[Cause]:
    """The error itself, then what is behind it: what it was raised `from`, what a group or a wrapper holds.

    Not what it was raised *while* handling, unless it repeats its words: a script that survived one error and then made
    another failed by the other.
    """
    seen: set[int] = set()
    waiting = [error]
    while waiting and len(seen) < MAX_LINKS:
        link = waiting.pop(0)
        if id(link) in seen:
            continue
        seen.add(id(link))
        text = text_of(link)
        names = frozenset(base.__name__ for base in type(link).__mro__)
        inner = _from_elsewhere(text, names)
        if inner is not None:
            yield inner
        yield Cause(type(link).__name__, names, text, number=link.errno if isinstance(link, OSError) else None)
        waiting += _behind(link, text)


def text_of(error: BaseException) -> str:
    """`str(error)` as text that any file, socket and database can hold, whatever the exception's class does."""
    try:
        text = str(error)
    except Exception as fault:
        text = f"(its message can't be read: __str__ raised {type(fault).__name__})"
    return clean(text[:_TEXT_CHARACTERS])


def clean(text: str) -> str:
    """Without lone surrogates and NUL characters, which JSON's readers and PostgreSQL refuse."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _behind(link: BaseException, text: str) -> Iterator[BaseException]:
    if isinstance(link, BaseExceptionGroup):
        yield from link.exceptions
    # torch.compile's BackendCompilerFailed and InductorError. Not by getattr: an exception's class is the script's own.
    inner = link.__dict__.get("inner_exception")
    if isinstance(inner, BaseException):
        yield inner
    if link.__cause__ is not None:
        yield link.__cause__
    elif link.__context__ is not None and not link.__suppress_context__:
        words = text_of(link.__context__).strip()
        if words and words.splitlines()[0] in text:
            yield link.__context__


def _from_elsewhere(text: str, names: frozenset[str]) -> Cause | None:
    """The error that another thread or process raised, out of the text in which it came here."""
    if (caught := _CAUGHT.match(text)) is not None:
        name, where = caught[1], caught[2]
        raised = [found for found in _RAISED.finditer(text) if found[1].rpartition(".")[2] == name]
    elif (spawned := _SPAWNED.match(text)) is not None:
        where = spawned[1]
        raised = [found for found in _RAISED.finditer(text) if not found[1].startswith("Traceback")]
        name = raised[-1][1].rpartition(".")[2] if raised else ""
        names = frozenset({name, "RuntimeError"}) if name.endswith("Error") else frozenset({name})
    else:
        return None
    if not raised:
        return None
    words = text[raised[-1].start(2) :].strip() if raised[-1][2] is not None else ""
    return Cause(name, names | {name}, words, where)
