"""The wire contract: ids that order, messages that survive the wire, and nothing that JSON lacks."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from epochcast.events import BEFORE_ALL, Complete, Error, EventId, Log, Progress, decode, encode, is_terminal
from epochcast.jobs import JobError, Status

MOMENT = datetime(2025, 1, 7, 10, 15, 0, 999_000, tzinfo=UTC)
COMMON = {"id": "2-46", "job_id": 42, "progress": 0.45, "current_epoch": 45, "total_epochs": 100, "timestamp": MOMENT}
numbers = st.integers(min_value=0, max_value=2**63 - 1)


@given(numbers, numbers)
def test_an_id_is_the_same_after_the_wire(generation: int, seq: int) -> None:
    identifier = EventId(generation, seq)
    assert EventId.parse(str(identifier)) == identifier


@given(st.tuples(numbers, numbers), st.tuples(numbers, numbers))
def test_ids_order_by_generation_then_number(first: tuple[int, int], second: tuple[int, int]) -> None:
    assert (EventId(*first) < EventId(*second)) == (first < second)


@pytest.mark.parametrize(
    "text", ["", "1", "-1-1", "1-", "1-1-1", "01-1", "1-9223372036854775808", "\uff11-1", "a-b", "1 -1"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an event id"):
        EventId.parse(text)


def test_zero_is_the_time_before_the_first_event() -> None:
    assert EventId.parse("0") == BEFORE_ALL < EventId.parse("1-1")


def test_every_type_survives_the_wire_with_the_documents_timestamps() -> None:
    messages: list[Progress | Log | Complete | Error] = [
        Progress.model_validate(
            COMMON | {"status": "running", "metrics": {"train_loss": None}, "non_finite": ["train_loss"]}
        ),
        Log.model_validate(COMMON | {"status": "running", "message": "Epoch 45/100 - Loss: 0.0234"}),
        Complete.model_validate(COMMON | {"status": "succeeded", "model_id": 7, "final_metrics": {"train_loss": 0.5}}),
        Error.model_validate(
            COMMON | {"status": "failed", "error_message": "no", "error": JobError(type="user_error", message="no")}
        ),
    ]
    for message in messages:
        payload = encode(message)
        assert payload.startswith(b'{"type":"%s"' % message.type.encode())
        assert b'"timestamp":"2025-01-07T10:15:00Z"' in payload
        assert encode(decode(payload)) == payload
    assert [is_terminal(message) for message in messages] == [False, False, True, True]
    assert [message.current_loss for message in messages] == [None, None, 0.5, None]


def test_only_a_stopped_jobs_progress_ends_the_stream() -> None:
    assert is_terminal(Progress.model_validate(COMMON | {"status": Status.STOPPED}))
    assert not is_terminal(Progress.model_validate(COMMON | {"status": Status.QUEUED}))


def test_optional_names_are_absent_rather_than_null() -> None:
    payload = encode(Progress.model_validate(COMMON | {"status": "running"}))
    assert b"non_finite" not in payload
    assert b"resync" not in payload


def test_infinity_can_not_be_said() -> None:
    with pytest.raises(ValidationError):
        Progress.model_validate(COMMON | {"status": "running", "progress": float("nan")})
