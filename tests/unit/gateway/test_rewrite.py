"""Sampling parameters and system prompts that a route adds; all else stays byte for byte."""

from statistics import median
from time import thread_time
from typing import Any

import orjson
import pytest

from axiond.gateway.body import fields_in_json, join
from axiond.gateway.rewrite import HEAD_BYTES, rewrite
from axiond.manifest.routes import SystemPrompt

CHAT, COMPLETIONS, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
USER = b'{"role": "user", "content": "h\\u0069 \xc3\xa9"}'
SYSTEM = b'{"role": "system", "n": 1.0, "content": "b\\u0065 brief"}'


def rewritten(path: str, body: bytes, sampling: dict[str, Any] | None = None, mode: str = "", text: str = 'Be "kind".') -> bytes:
    fields = fields_in_json(body)
    assert fields is not None
    system = SystemPrompt.model_validate({"text": text, "mode": mode}) if mode else None
    return b"".join(join(fields | rewrite(path, fields, sampling or {}, system)))


@pytest.mark.parametrize(
    ("path", "body", "sampling", "wanted"),
    [
        pytest.param(CHAT, b'{"a":1.50}', {"temperature": 0.2}, b'{"a":1.50,"temperature":0.2}', id="missing"),
        pytest.param(CHAT, b'{"temperature":1e0}', {"temperature": 0.2}, b'{"temperature":1e0}', id="given"),
        pytest.param(CHAT, b'{"temperature":0}', {"temperature": 0.2}, b'{"temperature":0}', id="given-as-nothing"),
        pytest.param(CHAT, b'{"temperature": null}', {"temperature": 0.2}, b'{"temperature":0.2}', id="null-is-not-given"),
        pytest.param(CHAT, b'{"max_completion_tokens":5}', {"max_tokens": 9}, b'{"max_completion_tokens":5}', id="under-its-other-name"),
        pytest.param(COMPLETIONS, b"{}", {"max_tokens": 9, "top_k": 3}, b'{"max_tokens":9,"top_k":3}', id="completions"),
        pytest.param(RESPONSES, b"{}", {"max_tokens": 9}, b'{"max_output_tokens":9}', id="as-responses-call-it"),
        pytest.param(RESPONSES, b'{"max_output_tokens":5}', {"max_tokens": 9}, b'{"max_output_tokens":5}', id="given-to-responses"),
        pytest.param(MESSAGES, b'{"stop_sequences":["a"]}', {"stop": ["b"]}, b'{"stop_sequences":["a"]}', id="given-to-messages"),
        pytest.param(MESSAGES, b"{}", {"stop": ["b"]}, b'{"stop_sequences":["b"]}', id="as-messages-call-it"),
        pytest.param(CHAT, b"{}", {"chat_template_kwargs": {"x": [1]}}, b'{"chat_template_kwargs":{"x":[1]}}', id="a-table"),
        pytest.param("/v1/embeddings", b'{"input":"x"}', {"temperature": 0.2}, b'{"input":"x"}', id="nothing-is-sampled"),
        pytest.param("/tokenize", b'{"prompt":"x"}', {"temperature": 0.2}, b'{"prompt":"x"}', id="nothing-is-sampled-either"),
    ],
)
def test_sampling_parameters_are_added_where_none_are_given(path: str, body: bytes, sampling: dict[str, Any], wanted: bytes) -> None:
    assert rewritten(path, body, sampling) == wanted


NEW = b'{"role":"system","content":"Be \\"kind\\"."}'


@pytest.mark.parametrize(
    ("mode", "messages", "wanted"),
    [
        pytest.param("default", b"[" + USER + b"]", b"[" + NEW + b"," + USER + b"]", id="default"),
        pytest.param("prepend", b"[ " + USER + b" ]", b"[" + NEW + b", " + USER + b" ]", id="prepend-to-none"),
        pytest.param("replace", b"[" + USER + b"]", b"[" + NEW + b"," + USER + b"]", id="replace-none"),
        pytest.param("default", b"[]", b"[" + NEW + b"]", id="no-messages"),
        pytest.param("default", b"[" + SYSTEM + b"," + USER + b"]", b"[" + SYSTEM + b"," + USER + b"]", id="default-has-one"),
        pytest.param(
            "prepend",
            b"[ " + SYSTEM + b", " + USER + b"]",
            b'[{"role":"system","n":1.0,"content":"Be \\"kind\\".\\n\\nb\\u0065 brief"}, ' + USER + b"]",
            id="prepend",
        ),
        pytest.param(
            "replace",
            b"[" + SYSTEM + b"," + USER + b"]",
            b'[{"role":"system","n":1.0,"content":"Be \\"kind\\"."},' + USER + b"]",
            id="replace",
        ),
        pytest.param(
            "prepend",
            b'[{"content":[{"type":"text","text":"x"}],"role":"developer"}]',
            b'[{"content":[{"type":"text","text":"Be \\"kind\\"."},{"type":"text","text":"x"}],"role":"developer"}]',
            id="prepend-to-blocks",
        ),
        pytest.param("prepend", b'[{"role":"system","content":[]}]', b'[{"role":"system","content":"Be \\"kind\\"."}]', id="empty-blocks"),
        pytest.param("prepend", b'[{"role":"system"}]', b'[{"role":"system","content":"Be \\"kind\\"."}]', id="no-content"),
        pytest.param(
            "prepend", b'[{"role":"system","content":null}]', b'[{"role":"system","content":"Be \\"kind\\"."}]', id="null-content"
        ),
        pytest.param("default", b'"hi"', b'"hi"', id="no-list"),
        pytest.param("default", b"[1]", b"[" + NEW + b",1]", id="no-message"),
        pytest.param("replace", b'[{"role":1}]', b"[" + NEW + b',{"role":1}]', id="no-role"),
    ],
)
def test_a_system_prompt_is_the_first_message(mode: str, messages: bytes, wanted: bytes) -> None:
    """Where the request has none; before its own; or instead of it."""
    assert rewritten(CHAT, b'{"messages": ' + messages + b', "n": 1.0}', mode=mode) == b'{"messages":' + wanted + b',"n":1.0}'


@pytest.mark.parametrize("mode", ["default", "prepend", "replace"])
@pytest.mark.parametrize("role", ["user", "system"])
@pytest.mark.parametrize("is_role_first", [True, False])
def test_a_first_message_may_be_long(is_role_first: bool, role: str, mode: str) -> None:
    """Longer than what is looked at first, of characters that are several bytes long, and with what looks like a role."""
    text = '"role": "tool" añ€' * HEAD_BYTES
    first = {"role": role, "content": text} if is_role_first else {"content": text, "role": role}
    messages = [first, *[{"role": "assistant", "content": "x" * 100}] * 2]
    found = orjson.loads(rewritten(CHAT, orjson.dumps({"messages": messages}), mode=mode, text="T"))["messages"]
    own = {"default": text, "prepend": f"T\n\n{text}", "replace": "T"}[mode]
    assert (
        found == [{"role": "system", "content": own}, *messages[1:]]
        if role == "system"
        else [{"role": "system", "content": "T"}, *messages]
    )


@pytest.mark.parametrize(
    ("path", "field", "given", "mode", "wanted"),
    [
        pytest.param(RESPONSES, "instructions", None, "default", "T", id="responses-default"),
        pytest.param(RESPONSES, "instructions", "own", "default", "own", id="responses-has-one"),
        pytest.param(RESPONSES, "instructions", "own", "prepend", "T\n\nown", id="responses-prepend"),
        pytest.param(RESPONSES, "instructions", "own", "replace", "T", id="responses-replace"),
        pytest.param(MESSAGES, "system", None, "prepend", "T", id="messages-prepend-to-none"),
        pytest.param(MESSAGES, "system", "own", "prepend", "T\n\nown", id="messages-prepend"),
        pytest.param(
            MESSAGES, "system", [{"type": "text", "text": "own", "cache_control": {"type": "ephemeral"}}], "prepend",
            [{"type": "text", "text": "T"}, {"type": "text", "text": "own", "cache_control": {"type": "ephemeral"}}], id="messages-blocks",
        ),
        pytest.param(MESSAGES, "system", [{"type": "text", "text": "own"}], "replace", "T", id="messages-replace-blocks"),
        pytest.param(COMPLETIONS, "prompt", "own", "replace", "own", id="completions-have-none"),
        pytest.param("/v1/messages/count_tokens", "system", None, "default", "T", id="what-is-counted-has-it-too"),
    ],
)  # fmt: skip
def test_a_system_prompt_may_have_a_field_of_its_own(path: str, field: str, given: Any, mode: str, wanted: Any) -> None:
    body = orjson.dumps({"model": "m", field: given})
    assert orjson.loads(rewritten(path, body, mode=mode, text="T")) == {"model": "m", field: wanted}


TEXT = 'a line of text with a "quote"\n' * 330_000


@pytest.mark.parametrize(
    ("content", "longest_ms"),
    [
        pytest.param([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "A" * 10_000_000}}]}], 5, id="an-image"),
        pytest.param([{"role": "system", "content": "x"}, *[{"role": "user", "content": "hi there"}] * 250_000], 5, id="many-messages"),
        pytest.param([{"role": "user", "content": TEXT}], 5, id="a-text"),
        pytest.param([{"content": [{"type": "input_audio", "data": "A" * 10_000_000}], "role": "user"}], 5, id="a-role-at-the-end"),
        pytest.param([{"role": "system", "content": [{}] * 3_300_000}], 300, id="a-system-prompt-of-many-parts"),
    ],
)
def test_a_body_of_10_mb_holds_the_loop_for_no_longer_than_others(content: Any, longest_ms: float) -> None:
    """What is beside reading the fields, which finds the model's name too."""
    fields = fields_in_json(orjson.dumps({"model": "m", "messages": content}))
    assert fields is not None
    system = SystemPrompt(text="Be kind.", mode="prepend")

    def took_ms() -> float:
        began_s = thread_time()
        join(fields | rewrite(CHAT, fields, {"temperature": 0.2}, system))
        return (thread_time() - began_s) * 1e3

    assert median(took_ms() for _ in range(7)) < longest_ms
