import json
from typing import Any

import orjson
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


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"m"', b"null", b"\x00", b'{"model": 1}', b'{"model": ["m"]}', b"[" * 100_000])
def test_what_is_no_object_with_a_model_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        model_in_json(raw)
    assert caught.value.status == 400
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("raw", "renamed"),
    [
        pytest.param(b'{ "model" : "a", "n": 1.10 }', b'{ "model" : "new", "n": 1.10 }', id="spliced"),
        pytest.param(b'{"n": 12345678901234567890123, "model":"a"}', b'{"n": 12345678901234567890123, "model":"new"}', id="large-integer"),
        pytest.param(b'{"model": "a", "x": {"model": "a"}}', b'{"model":"new","x":{"model":"a"}}', id="nested-twin"),
        pytest.param(b'{"x": {"model": "a"}, "mod\\u0065l": "a"}', b'{"x":{"model":"a"},"model":"new"}', id="escaped-key"),
        pytest.param(
            b'{"model": "\\u0061", "n": 12345678901234567890123}', b'{"model":"new","n":12345678901234567890123}', id="escaped-value"
        ),
        pytest.param(b'{"x": "\\"model\\": \\"a\\"", "model": "a"}', b'{"x": "\\"model\\": \\"a\\"", "model": "new"}', id="in-a-string"),
    ],
)
def test_only_the_name_is_replaced(raw: bytes, renamed: bytes) -> None:
    assert rename_in_json(raw, "a", "new") == renamed


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)


@given(st.dictionaries(st.text() | st.just("model"), VALUES), st.text(min_size=1), st.text(min_size=1), st.booleans())
def test_any_body_keeps_everything_but_the_name(body: dict[str, Any], old: str, new: str, is_ascii: bool) -> None:
    raw = json.dumps({**body, "model": old}, ensure_ascii=is_ascii).encode()
    assert json.loads(rename_in_json(raw, old, new)) == {**body, "model": new}


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


def test_a_form_without_a_boundary_is_refused() -> None:
    with pytest.raises(RequestError):
        model_in_form(FORM, "multipart/form-data")


def test_orjson_reads_large_integers_as_floats_which_is_why_bodies_are_spliced() -> None:
    assert isinstance(orjson.loads(b"12345678901234567890123"), float)
