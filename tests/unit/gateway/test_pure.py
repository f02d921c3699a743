import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from axiond.errors import RequestError
from axiond.gateway.auth import authorize
from axiond.gateway.envelope import Dialect, error_body, error_event, error_headers
from axiond.gateway.headers import forwarded, returned
from axiond.gateway.usage import MOST_HELD_BYTES, count_tokens, split_events


@pytest.mark.parametrize(
    ("status", "openai", "anthropic"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (404, "invalid_request_error", "not_found_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (500, "server_error", "api_error"),
        (503, "server_error", "overloaded_error"),
    ],
)
def test_an_error_has_the_type_that_each_library_knows(status: int, openai: str, anthropic: str) -> None:
    error = RequestError(status, "code", "What happened.", param="model")
    assert orjson.loads(error_body(error, Dialect.OPENAI)) == {
        "error": {"message": "What happened.", "type": openai, "param": "model", "code": "code"}
    }
    assert orjson.loads(error_body(error, Dialect.ANTHROPIC, "id")) == {
        "type": "error",
        "error": {"type": anthropic, "message": "What happened."},
        "request_id": "id",
    }


def test_an_error_event_is_one_whole_event() -> None:
    error = RequestError(502, "code", "two\n\nlines")
    assert error_event(error, Dialect.OPENAI) == b"data: " + error_body(error, Dialect.OPENAI) + b"\n\n"
    assert error_event(error, Dialect.ANTHROPIC).startswith(b"event: error\ndata: {")
    assert b"\n\n" not in error_event(error, Dialect.OPENAI)[:-2]


def test_retry_after_is_a_header() -> None:
    assert error_headers(RequestError(503, "c", "m", retry_after_s=7))["Retry-After"] == "7"
    assert "Retry-After" not in error_headers(RequestError(503, "c", "m"))


def test_headers_of_this_hop_stay_here() -> None:
    given = CIMultiDict([
        ("Host", "x"), ("Connection", "close, X-Hop"), ("X-Hop", "1"), ("Transfer-Encoding", "chunked"), ("Authorization", "Bearer k"),
        ("X-Api-Key", "k"), ("Content-Type", "application/json"), ("traceparent", "00-1"), ("X-Twice", "1"), ("X-Twice", "2"),
        ("x-axiond-model", "forged"), ("X-Axiond-Anything", "forged"),
    ])  # fmt: skip
    assert list(forwarded(given, "id").items()) == [
        ("Content-Type", "application/json"),
        ("traceparent", "00-1"),
        ("X-Twice", "1"),
        ("X-Twice", "2"),
        ("X-Request-ID", "id"),
        ("Accept-Encoding", "identity"),
    ]
    assert set(returned(given, "id")) == {
        "Host",
        "Authorization",
        "X-Api-Key",
        "Content-Type",
        "traceparent",
        "X-Twice",
        "X-Request-ID",
        "Server",
    }


@pytest.mark.parametrize(
    ("headers", "passes"),
    [
        ({}, False),
        ({"Authorization": "Bearer two"}, True),
        ({"Authorization": "bearer  two "}, True),
        ({"X-Api-Key": "one"}, True),
        ({"Authorization": "Bearer three"}, False),
        ({"Authorization": "two"}, False),
        ({"Authorization": "Bearer "}, False),
    ],
)
def test_a_key_opens(headers: dict[str, str], passes: bool) -> None:
    authorize(headers, ())
    if passes:
        authorize(CIMultiDict(headers), ("one", "two"))
    else:
        with pytest.raises(RequestError):
            authorize(CIMultiDict(headers), ("one", "two"))


@pytest.mark.parametrize(
    ("answer", "counts"),
    [
        (b'{"usage":{"prompt_tokens":3,"total_tokens":10,"completion_tokens":7}}', (3, 7)),
        (b'{"usage": {"input_tokens": 3, "output_tokens": 7}}', (3, 7)),
        (b'{"text":"\\"completion_tokens\\": 9"}', (None, None)),
        (b'data: {"usage":{"completion_tokens":1}}\n\ndata: {"usage":{"completion_tokens":2}}\n\ndata: [DONE]\n\n', (None, 2)),
        (b'{"completion_tokens":5}' + b" " * 5000, (None, None)),
        (b"", (None, None)),
    ],
)
def test_usage_is_found_at_the_end(answer: bytes, counts: tuple[int | None, int | None]) -> None:
    assert count_tokens(answer) == counts


@pytest.mark.parametrize(
    ("data", "whole", "rest"),
    [
        (b"data: 1\n\n", b"data: 1\n\n", b""),
        (b"data: 1\n\ndata: 2", b"data: 1\n\n", b"data: 2"),
        (b"data: 1\r\n\r\nda", b"data: 1\r\n\r\n", b"da"),
        (b"data: 1\n", b"", b"data: 1\n"),
        (b"x" * (MOST_HELD_BYTES + 1), b"x" * (MOST_HELD_BYTES + 1), b""),
    ],
)
def test_events_are_cut_between(data: bytes, whole: bytes, rest: bytes) -> None:
    assert split_events(data) == (whole, rest)


@given(st.lists(st.text(alphabet="ab\r\n ").map(str.encode)))
def test_no_byte_is_lost_however_a_stream_is_cut(parts: list[bytes]) -> None:
    sent, held = b"", b""
    for part in parts:
        whole, held = split_events(held + part)
        sent += whole
    assert sent + held == b"".join(parts)
    assert not held.endswith(b"\n\n")
