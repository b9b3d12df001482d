"""Whatever a script prints becomes lines of bounded size, level and rate."""

from hypothesis import given
from hypothesis import strategies as st

from epochcast.events import MAX_LOG_BYTES
from worker.lines import CUT_MARK, LevelReader, LineSplitter, RateLimit, level_of


def lines_of(*blocks: bytes) -> list[str]:
    splitter = LineSplitter()
    found = [line for block in blocks for line in splitter.feed(block)]
    return [*found, *splitter.finish()]


def test_lines_survive_any_cutting_into_blocks() -> None:
    assert lines_of(b"al", b"pha\nbe", b"ta", b"\n", b"gamma") == ["alpha", "beta", "gamma"]


def test_progress_bars_colours_and_invalid_bytes_leave_readable_text() -> None:
    assert lines_of(b" 10%\r 50%\r100%\n") == ["100%"]
    assert lines_of(b"\x1b[1;31mred\x1b[0m \x1b]0;title\x07text\n") == ["red text"]
    assert lines_of(b"caf\xff\n") == ["caf\ufffd"]
    assert lines_of(b"windows\r\n\n  \n") == ["windows"]


def test_a_long_line_is_cut_with_a_mark_and_the_next_one_is_whole() -> None:
    first, second = lines_of(b"x" * 100_000, b"x\nshort\n")
    assert first == "x" * MAX_LOG_BYTES + CUT_MARK
    assert second == "short"


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_input_breaks_the_splitter_or_grows_it(blocks: list[bytes]) -> None:
    for line in lines_of(*blocks):
        assert "\n" not in line
        assert line.strip()


def test_levels_are_read_where_a_line_names_one() -> None:
    assert level_of("WARNING: careful", "INFO") == "WARNING"
    assert level_of("[error] no", "INFO") == "ERROR"
    assert level_of("warn: x", "INFO") == "WARNING"
    assert level_of("errors happen", "INFO") == "INFO"


def test_a_traceback_is_an_error_to_its_last_line() -> None:
    levels = LevelReader()
    lines = ["before", "Traceback (most recent call last):", '  File "x.py", line 1', "ZeroDivisionError: no", "after"]
    assert [levels.level_of(line) for line in lines] == ["INFO", "ERROR", "ERROR", "ERROR", "INFO"]


def test_a_flood_is_dropped_and_counted_second_by_second() -> None:
    now = 100.0
    rate = RateLimit(clock=lambda: now, limit=3)
    assert [rate.admits() for _ in range(5)] == [True, True, True, False, False]
    assert rate.take_dropped() == 0, "while the second lasts"
    now = 101.0
    assert rate.take_dropped() == 2
    assert rate.take_dropped() == 0
    assert rate.admits()
