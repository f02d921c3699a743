"""Find and replace the model's name in a request body, and leave every other byte alone."""

import json
import re
from typing import Any

import orjson

from axiond.errors import RequestError


def model_in_json(raw: bytes) -> str | None:
    """
    Read the `model` of a JSON body; None where it has none.

    Raises:
        RequestError: 400, not a JSON object or `model` is no string.
    """
    body = _load(raw)
    if not isinstance(body, dict):
        raise RequestError(400, "invalid_json", "The request body must be a JSON object.")
    return _checked(body.get("model"))


def rename_in_json(raw: bytes, old: str, new: str) -> bytes:
    """
    Replace the value of `model`.

    Splices where the name stands exactly once, so that numbers keep all their digits and text its escapes; otherwise
    the body is written anew.
    """
    found = re.findall(rb'"model"[ \t\r\n]*:[ \t\r\n]*' + re.escape(orjson.dumps(old)), raw)
    if len(found) == 1:
        start = raw.index(found[0]) + len(found[0]) - len(orjson.dumps(old))
        spliced = raw[:start] + orjson.dumps(new) + raw[start + len(orjson.dumps(old)) :]
        if model_in_json(spliced) == new:
            return spliced
    return json.dumps({**json.loads(raw), "model": new}, separators=(",", ":")).encode()


def model_in_form(raw: bytes, content_type: str) -> str | None:
    """Read the field `model` of a multipart form; None where it has none."""
    start, end = _form_value(raw, content_type)
    return _checked(raw[start:end].decode("utf-8", "replace")) if end else None


def rename_in_form(raw: bytes, content_type: str, new: str) -> bytes:
    """Replace the value of the field `model`, which must be there."""
    start, end = _form_value(raw, content_type)
    return raw[:start] + new.encode() + raw[end:]


def _load(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        pass
    try:  # vLLM reads NaN and UTF-16 too, so they are its to judge
        return json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise RequestError(400, "invalid_json", f"The request body is not valid JSON: {str(exc)[:200]}") from exc


def _checked(model: Any) -> str | None:
    if model is not None and not isinstance(model, str):
        raise RequestError(400, "invalid_type", "`model` must be a string.", param="model")
    return model or None


def _form_value(raw: bytes, content_type: str) -> tuple[int, int]:
    """Where the value of the field `model` starts and ends; (0, 0) if there is none."""
    boundary = re.search(r'boundary=("[^"]+"|[^;\s]+)', content_type)
    if not boundary:
        raise RequestError(400, "invalid_form", "The multipart form's Content-Type names no boundary.")
    delimiter = b"\r\n--" + boundary[1].strip('"').encode()
    start = 0 if raw.startswith(delimiter[2:]) else raw.find(delimiter)
    while start >= 0:
        end = raw.find(delimiter, start + 2)
        head_end = raw.find(b"\r\n\r\n", start, max(end, 0))
        if head_end >= 0 and re.search(rb'content-disposition:[^\r\n]*;\s*name="?model"?\s*(;|\r\n|$)', raw[start:head_end], re.IGNORECASE):
            return head_end + 4, end
        start = end
    return 0, 0
