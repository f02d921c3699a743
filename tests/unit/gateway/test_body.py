import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axiond.errors import RequestError
from axiond.gateway.body import model_in_form, model_in_json, rename_in_form, rename_in_json


@pytest.mark.parametrize(
    ("raw", "model"),
    [
        (b'{"model": "m"}', "m"),
        (b'{"model":"\\u006d"}', "m"),
        (b'{"model": null}', None),
        (b'{"model": ""}', None),
        (b"{}", None),
        (b'{"model": "a", "model": "b"}', "b"),
        (b'{"temperature": NaN, "model": "m"}', "m"),
        ('{"model": "größe"}'.encode("utf-16"), "größe"),
    ],
)
def test_the_model_is_read(raw: bytes, model: str | None) -> None:
    assert model_in_json(raw) == model


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b'"m"',
        b"null",
        b"\x00",
        b'{"model": 1}',
        b'{"model": ["m"]}',
        b'{"model": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_object_with_a_model_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        model_in_json(raw)
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("raw", "renamed"),
    [
        pytest.param(b'{ "model" : "a", "n": 1.10 }', b'{"model":"new","n":1.10}', id="digits"),
        pytest.param(b'{"n": 12345678901234567890123, "model":"a"}', b'{"n":12345678901234567890123,"model":"new"}', id="large-integer"),
        pytest.param(b'{"model": "a", "x": { "model": "a"}}', b'{"model":"new","x":{ "model": "a"}}', id="nested-twin"),
        pytest.param(b'{"x": {"model": "a"}, "mod\\u0065l": "a"}', b'{"x":{"model": "a"},"model":"new"}', id="escaped-key"),
        pytest.param(b'{"model": "b", "model": "a"}', b'{"model":"new"}', id="twice"),
        pytest.param(b'{"model": "\\u0061", "x": "\\u00e4"}', b'{"model":"new","x":"\\u00e4"}', id="escaped-value"),
        pytest.param(b'{"x": "\\"model\\": \\"a\\"", "model": "a"}', b'{"x":"\\"model\\": \\"a\\"","model":"new"}', id="in-a-string"),
        pytest.param(b'{"x": NaN, "model": "a"}', b'{"x":NaN,"model":"new"}', id="nan"),
    ],
)
def test_only_the_name_is_replaced(raw: bytes, renamed: bytes) -> None:
    assert b"".join(rename_in_json(raw, "new")) == renamed


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.dictionaries(st.text() | st.just("model"), VALUES), st.text(min_size=1), st.text(min_size=1), st.booleans())
def test_any_body_keeps_everything_but_the_name(body: dict[str, Any], old: str, new: str, is_ascii: bool) -> None:
    raw = json.dumps({**body, "model": old}, ensure_ascii=is_ascii).encode()
    assert json.loads(b"".join(rename_in_json(raw, new))) == {**body, "model": new}


FORM = (
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="model"\r\n\r\nname="model"\r\n\r\n--c\r\n'
    b'\r\n--b\r\ncontent-disposition: form-data; name="model"\r\nContent-Type: text/plain\r\n\r\nold\r\n--b--\r\n'
)


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=b", 'multipart/form-data; boundary="b"; charset=utf-8'])
def test_a_forms_model_is_read_and_replaced(content_type: str) -> None:
    assert model_in_form(FORM, content_type) == "old"
    assert rename_in_form(FORM, content_type, "newer") == FORM.replace(b"\r\nold\r\n", b"\r\nnewer\r\n")


@pytest.mark.parametrize("raw", [b"", b"--b--", b"--b\r\n\r\n", FORM[:60], FORM.replace(b"\r\nold\r\n--b--\r\n", b"\r\nold")])
def test_a_form_without_a_whole_model_field_has_none(raw: bytes) -> None:
    assert model_in_form(raw, "multipart/form-data; boundary=b") is None


@pytest.mark.parametrize(
    ("head", "is_model"),
    [
        pytest.param(b'content-disposition: form-data; name="model"', True, id="quoted"),
        pytest.param(b"CONTENT-DISPOSITION: form-data;NAME=model", True, id="bare"),
        pytest.param(b'Content-Type: text/plain\r\nContent-Disposition: form-data; name="model"; x=y', True, id="not-first-nor-last"),
        pytest.param(b'content-disposition: form-data; filename="\\"; name=model"; name="model"', True, id="after-a-quoted-twin"),
        pytest.param(b'content-disposition: form-data; filename="; name=model"', False, id="inside-quotes"),
        pytest.param(b'content-disposition: form-data; name="Model"', False, id="other-case"),
        pytest.param(b'x-content-disposition: form-data; name="model"', False, id="other-header"),
        pytest.param(b"x: " + b"y" * 9000 + b'\r\ncontent-disposition: form-data; name="model"', False, id="head-too-long"),
    ],
)
def test_a_part_is_known_by_its_head(head: bytes, is_model: bool) -> None:
    assert (model_in_form(b"--b\r\n" + head + b"\r\n\r\nm\r\n--b--", "multipart/form-data; boundary=b") == "m") == is_model


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=\udcff"])
def test_a_form_without_a_usable_boundary_is_refused(content_type: str) -> None:
    with pytest.raises(RequestError) as caught:
        model_in_form(FORM, content_type)
    assert caught.value.status == 400


def test_a_form_of_very_many_parts_is_refused() -> None:
    with pytest.raises(RequestError, match="more than 2000 parts"):
        model_in_form(b"--b\r\n\r\n\r\n" * 2001, "multipart/form-data; boundary=b")


HOSTILE_LINES = [
    b"content-disposition:", b'content-disposition:; name="', b";a=\"", b';"\\', b"; ", b'""', b";name=mode",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE_LINES)
@pytest.mark.parametrize("size_bytes", [8000, 4_000_000], ids=["within-the-bound", "above-it"])
def test_a_hostile_head_costs_little(piece: bytes, size_bytes: int) -> None:
    """The quadratic expression that was here took seconds; the bound leaves a slow machine room."""
    raw = b"--b\r\ncontent-disposition: x" + (piece * size_bytes)[:size_bytes] + b"\r\n\r\nm\r\n--b--"
    assert cpu_s(lambda: model_in_form(raw, "multipart/form-data; boundary=b")) < 0.1


FLOATS = b'{"input": [' + b",".join([b"0.1234"] * 1_000_000) + b'], "model": "m"}'


def test_a_large_body_is_skipped_over_not_built() -> None:
    """Parsers hold the GIL, so whatever this takes, every other request waits; in memory nothing but the name is made."""
    tracemalloc.start()
    try:
        assert model_in_json(FLOATS) == "m"
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
    assert json.loads(b"".join(rename_in_json(FLOATS, "new")))["model"] == "new"


def test_the_lenient_parser_is_not_let_loose_on_a_large_body() -> None:
    with pytest.raises(RequestError) as caught:
        model_in_json(FLOATS.replace(b"0.1234]", b"NaN]"))
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


def cpu_s(work: Callable[[], object]) -> float:
    began_s = time.process_time()
    work()
    return time.process_time() - began_s
