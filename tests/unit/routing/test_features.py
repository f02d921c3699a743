import json
import math
import time
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from axiond.gateway.body import Ask
from axiond.manifest.routes import Match, Route
from axiond.routing.decision import Features, Prompt
from axiond.routing.features import Needs, features, needs_of
from axiond.routing.prompt import ENOUGH_CHARS, MOST_CHARS, MOST_PARSED_BYTES, Said, parse
from axiond.routing.skim import WINDOW_BYTES, skim

EVERYTHING = Needs(flags=True, text=True, tokens=True, language=True, conversation=True, auto=True)
ENOUGH = "x" * ENOUGH_CHARS


def seen(body: Any, needs: Needs = EVERYTHING, requested: str = "m", client: str = "c") -> Features:
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    return features(requested, "/v1/chat/completions", {}, client, "k", "g", raw, needs)


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        pytest.param(said(("system", "Be nice."), ("user", "Hello")), "Hello", id="chat"),
        pytest.param(said(("user", "first"), ("assistant", "no"), ("user", "second")), "first\nsecond", id="short-turns-together"),
        pytest.param(said(("user", "first"), ("assistant", "no"), ("user", ENOUGH)), ENOUGH, id="the-last-turn-is-enough"),
        pytest.param(said(("user", "ask"), ("assistant", "call"), ("tool", "found")), "ask", id="tools-do-not-ask"),
        pytest.param(said(("developer", "Be nice.")), "Be nice.", id="system-prompt-alone"),
        pytest.param(
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            "see",
            id="parts",
        ),
        pytest.param({"messages": [{"role": "user", "content": ["a", {"type": "text", "text": "b"}]}]}, "a\nb", id="texts-as-parts"),
        pytest.param({"messages": [{"role": "user", "content": None}, {"role": "user"}]}, "", id="no-content"),
        pytest.param(
            {
                "system": "s",
                "messages": [{"role": "user", "content": [{"type": "tool_result", "content": "t"}, {"type": "text", "text": "u"}]}],
            },
            "u",
            id="messages-of-anthropic",
        ),
        pytest.param({"input": "said", "instructions": "s"}, "said", id="responses"),
        pytest.param(
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                    {"type": "function_call_output", "output": "5"},
                ]
            },
            "a",
            id="responses-items",
        ),
        pytest.param({"prompt": "once"}, "once", id="completion"),
        pytest.param({"prompt": ["a", "b"]}, "a\nb", id="completions"),
        pytest.param({"prompt": [[1, 2], [3]]}, "", id="numbers"),
        pytest.param({"input": ["a", "b"]}, "a\nb", id="embeddings"),
        pytest.param({"query": "which", "documents": ["a"]}, "which", id="rerank"),
        pytest.param({"texts": ["a", "b"]}, "a\nb", id="embeddings-of-cohere"),
        pytest.param(b"", "", id="nothing"),
        pytest.param(b"[1]", "", id="no-object"),
        pytest.param(b'{"a": NaN, "prompt": "x"}', "x", id="skimmed-for-a-number-that-is-none"),
        pytest.param({"messages": [{"role": "user", "content": {"a": 1}}, {"role": "user", "content": "b"}]}, "b", id="skimmed-for-a-type"),
    ],
)
def test_what_the_user_said(body: Any, text: str) -> None:
    assert seen(body).prompt.text == text


@pytest.mark.parametrize(
    ("body", "flags"),
    [
        pytest.param({}, {}, id="none"),
        pytest.param({"stream": True}, {"is_stream": True}, id="stream"),
        pytest.param({"stream": None}, {}, id="null"),
        pytest.param({"tools": [{"type": "function"}]}, {"has_tools": True}, id="tools"),
        pytest.param({"functions": [{"name": "f"}]}, {"has_tools": True}, id="functions"),
        pytest.param({"tools": [], "functions": None}, {}, id="no-tools"),
        pytest.param({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, {"has_images": True}, id="image"),
        pytest.param({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, {"has_images": True}, id="image-in-responses"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"type": "image"}]}]}]},
            {"has_images": True},
            id="image-that-a-tool-found",
        ),
        pytest.param({"response_format": {"type": "json_object"}}, {"response_format": "json_object"}, id="json"),
        pytest.param(
            {"text": {"format": {"type": "json_schema", "schema": {}}}}, {"response_format": "json_schema"}, id="responses-format"
        ),
        pytest.param({"messages": 5, "stream": True, "tools": [{}]}, {"is_stream": True, "has_tools": True}, id="skimmed"),
        pytest.param(
            {"messages": 5, "note": '"stream": true, "tools": [{}]', "response_format": {"type": "json_object"}},
            {"response_format": "json_object"},
            id="text-is-no-key",
        ),
    ],
)
def test_flags(body: Any, flags: dict[str, Any]) -> None:
    found = seen(body)
    expected = {"is_stream": False, "has_tools": False, "has_images": False, "response_format": "text", **flags}
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize("number", [1.5, float("nan")], ids=["long", "not-to-be-decoded"])
@pytest.mark.parametrize(
    ("fields", "flags"),
    [
        ({"stream": True, "tools": [{"name": "f"}], "text": {"format": {"type": "json_schema"}}}, (True, True, "json_schema")),
        ({"stream": True, "functions": [{}], "response_format": {"type": "json_object"}}, (True, True, "json_object")),
        ({"stream": False, "tools": [], "response_format": None, "text": "x"}, (False, False, "text")),
    ],
)
def test_no_flag_of_a_long_body_is_overlooked(fields: dict[str, Any], flags: tuple[bool, bool, str], number: float) -> None:
    """Tools alone may be longer than what is looked at of the beginning and the end."""
    text = "x" * (100_000 if math.isnan(number) else 2 * MOST_PARSED_BYTES)
    nested = {"stream": True, "tools": [{}], "response_format": {"type": "json_object"}}
    ask = Ask("m", json.dumps({"messages": [{"content": text, "number": number}], **fields, "note": text, "other": nested}).encode())
    found = features("m", "/", {}, "c", "k", "g", ask.body, EVERYTHING, lambda: ask.fields)
    assert (found.is_stream, found.has_tools, found.response_format) == flags


def test_a_conversation_that_begins_with_an_image_is_no_other_at_each_turn() -> None:
    """Its first text lies beyond what is looked at; the key, or the address, tells then who stays on a side."""
    image = {"type": "image_url", "image_url": {"url": "A" * 300_000}}
    first = {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]}
    more = [{"role": role, "content": f"{role} {turn} " + "x" * 40_000} for turn in range(3) for role in ("assistant", "user")]
    turns = [seen({"messages": [first, *more[: 2 * count]]}).prompt.conversation for count in range(4)]
    assert turns == [""] * 4
    named = [seen({"messages": [{"role": "user", "content": "Hi."}, first, *more[: 2 * count]]}).prompt.conversation for count in range(4)]
    assert len({*named}) == 1
    assert named[0]
    texts = ["Hi.", *["x" * 40_000] * 12]
    bodies = [said(*(("user", text) for text in texts[:count])) | {"system": "Be kind."} for count in range(1, 13)]
    assert len({seen(body).prompt.conversation for body in bodies}) == 1


def test_nothing_is_read_that_no_rule_needs() -> None:
    body = said(("user", "Wie geht es dir heute Abend?"))
    bare = Features("m", "/v1/chat/completions", {}, seen(body).client, seen(body).key, "g")
    assert seen(body, Needs()) == seen(body, Needs(auto=True)) == bare
    assert seen(body, Needs(auto=True), "auto").prompt == Prompt("Wie geht es dir heute Abend?")
    assert seen(body, Needs(language=True)).language == "de"
    assert seen(body, Needs(tokens=True)).prompt.text == ""
    assert features("m", "/", {}, "c", "k", "g", None, EVERYTHING).prompt == Prompt()
    assert "k" not in (bare.key, bare.client)
    assert len({bare.key, bare.client}) == 2


@pytest.mark.parametrize(
    ("when", "needs"),
    [
        ({"model": ["a"], "path": ["/"], "headers": {"a": "b"}, "api_key": ["k"], "key_group": ["g"], "hours": "01:00-02:00"}, Needs()),
        ({"stream": False}, Needs(flags=True)),
        ({"tools": False}, Needs(flags=True)),
        ({"images": False}, Needs(flags=True)),
        ({"response_format": ["text"]}, Needs(flags=True)),
        ({"language": ["es"]}, Needs(language=True)),
        ({"min_prompt_tokens": 0}, Needs(tokens=True)),
        ({"max_prompt_tokens": 0}, Needs(tokens=True)),
        ({"keywords": ["a"]}, Needs(text=True)),
        ({"regex": ["a"]}, Needs(text=True)),
        ({"domain": ["a"]}, Needs(text=True)),
        ({"percent": 5}, Needs(conversation=True)),
        ({"percent": 5, "sticky": "key"}, Needs()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_a_rule_needs(when: dict[str, Any], needs: Needs) -> None:
    assert needs_of([Route(name="r", when=Match.model_validate(when), models=("a",))]) == needs


def test_what_actions_need() -> None:
    canary = Route.model_validate({"name": "r", "models": ["a"], "canary": {"model": "b", "percent": 5}})
    scored = Route.model_validate({"name": "r", "models": ["a"], "choose": "score"})
    assert needs_of([canary]) == Needs(conversation=True)
    assert needs_of([scored]) == Needs()
    assert needs_of([scored], scores_domains=True) == Needs(text=True, auto=True)
    assert needs_of([], scores_domains=True) == Needs(auto=True)


def talk(*turns: tuple[str, str], client: str = "c", **more: Any) -> str:
    return seen({**said(*turns), **more}, client=client).prompt.conversation


@pytest.mark.parametrize(
    "more",
    [{"tools": [{"name": "f" * 99}]}, {"documents": ["d" * 99]}, {"text_1": "a" * 99, "text_2": ["b"]}, {"token_ids": [1, 2, 3]}],
    ids=lambda more: next(iter(more)),
)
def test_what_the_user_did_not_say_counts_as_tokens(more: dict[str, Any]) -> None:
    assert seen({"prompt": "x", **more}).prompt.least_tokens >= seen({"prompt": "x"}).prompt.least_tokens + 3


def test_a_conversation_is_known_by_its_beginning() -> None:
    begun = talk(("system", "s"), ("user", "a"))
    assert begun == talk(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"))
    assert begun == talk(("system", "s"), ("user", "a"), model="other", temperature=1)
    others = [
        talk(("system", "s"), ("user", "A")),
        talk(("system", "S"), ("user", "a")),
        talk(("user", "a")),
        talk(("system", "s"), ("user", "a"), client="d"),
    ]
    assert len({begun, *others}) == 5
    assert talk(("system", "s")) == ""


@pytest.mark.parametrize("named", [{"conversation": "n"}, {"conversation": {"id": "n"}}, {"prompt_cache_key": "n"}])
def test_a_conversation_may_have_a_name(named: dict[str, Any]) -> None:
    assert talk(("user", "a"), **named) == talk(("user", "b"), conversation="n")
    assert talk(("user", "a"), **named) != talk(("user", "a"), **named, client="d")


@pytest.mark.parametrize("times", [1, 10_000], ids=["short", "long"])
def test_a_conversation_that_has_grown_too_long_to_parse_is_the_same(times: int) -> None:
    begun = (("system", "Sé amable.\n"), ("user", 'What is "this"? ' * times))
    grown = (*begun, *((role, "long answer " * 2000) for role in ("assistant", "user") * 10))
    assert len(orjson.dumps(said(*grown))) > MOST_PARSED_BYTES
    assert talk(*begun) == talk(*grown)


TURNS = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)),
    min_size=1,
    max_size=5,
)


@given(TURNS, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_skimming_a_short_body_finds_what_parsing_it_finds(
    turns: list[tuple[str, str]], as_parts: bool, is_ascii: bool, is_sorted: bool, flag: bool
) -> None:
    messages = [{"role": role, "content": [{"type": "text", "text": text}] if as_parts else text} for role, text in turns]
    body: dict[str, Any] = {"stream": flag, "messages": messages, "model": "m", "prompt_cache_key": "p"}
    body |= {"tools": [{"type": "function"}], "response_format": {"type": "json_object"}} if flag else {}
    raw = json.dumps(body, ensure_ascii=is_ascii, sort_keys=is_sorted, indent=2 if flag else None).encode()
    parsed, skimmed = parse(raw), skim(raw)
    for one in (parsed, skimmed):
        one.rest, one.read_bytes = [], 0
    assert skimmed == parsed


def test_the_system_prompt_of_anthropic_is_skimmed_too() -> None:
    body = orjson.dumps(
        {"system": [{"type": "text", "text": "s"}], "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}
    )
    assert skim(body).turns == parse(body).turns == [("system", "s"), ("user", "u"), ("assistant", "a")]


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_body_is_an_error(body: bytes) -> None:
    seen(body)
    seen(b'{"messages":[{"role":"user","content":"' + body)


def test_nesting_is_no_error() -> None:
    seen(b'{"messages":' + b"[" * 100_000)


def test_a_long_text_is_sampled_from_everywhere() -> None:
    body = said(("user", "Begin. " + "word " * 30_000 + "Middle. " + "word " * 30_000 + "End."))
    for needs, size in ((EVERYTHING, 1), (EVERYTHING, 8)):
        body["messages"][0]["content"] = "Begin. " + "word " * 30_000 * size + "Middle. " + "word " * 30_000 * size + "End."
        prompt = seen(body, needs).prompt
        assert len(prompt.text) <= MOST_CHARS
        assert prompt.text.startswith("Begin. word")
        assert prompt.text.endswith("word End.")
        assert "Middle." in prompt.text
        assert prompt.least_tokens < 60_000 * size < prompt.most_tokens


@pytest.mark.parametrize("cut", range(14))
def test_an_escape_is_not_cut_in_two(cut: int) -> None:
    """Windows begin and end anywhere in a text of escapes."""
    text = "x" * cut + "é\nx" * 2 * MOST_PARSED_BYTES
    found = skim(json.dumps(said(("user", text))).encode()).turns[0][1]
    assert set(found) <= {"x", "é", "\n"}


@pytest.mark.parametrize("image_first", [True, False])
def test_the_question_beside_a_large_image_is_found(image_first: bool) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 100_000}}
    parts = [{"type": "text", "text": "What animal is this?"}]
    content = [image, *parts] if image_first else [*parts, image]
    found = seen({"messages": [{"role": "user", "content": content}], "stream": True})
    assert (found.prompt.text, found.has_images, found.is_stream) == ("What animal is this?", True, True)
    assert found.prompt.tokens < 50


def test_an_image_is_no_text_even_where_the_text_beside_it_is_long() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0KGgo" * 100_000}}
    content = [{"type": "text", "text": "What animal is this? " * 5000}, image]
    for parts in (content, [*content, content[0]]):
        found = seen({"messages": [{"role": "user", "content": parts}]}).prompt.text
        assert found.startswith("What animal is this? ")
        assert "KGgo" not in found


def test_the_last_of_very_many_turns_is_found() -> None:
    found = seen(said(*[("user", "small")] * 20_000, ("user", "And in Rust? " + ENOUGH)))
    assert found.prompt.text == "And in Rust? " + ENOUGH


def test_the_last_turn_of_a_long_conversation_is_found() -> None:
    turns = [(role, f"{role} said " + "this and that " * 500) for _ in range(30) for role in ("user", "assistant")]
    found = seen(said(("system", "s"), *turns, ("user", "And in Rust? " + ENOUGH)))
    assert found.prompt.text == "And in Rust? " + ENOUGH


@pytest.mark.parametrize(
    "content",
    [
        "word " * 6_000_000,
        '"' * 15_000_000,
        "\\" * 15_000_000,
        "é\n" * 5_000_000,
        "aGk" * 10_000_000,
        '{"role":"user","content":"x"},' * 500_000,
    ],
    ids=["words", "quotes", "backslashes", "escapes", "base64", "json-in-json"],
)
def test_30_megabytes_hold_nobody_up(content: str) -> None:
    assert _took_s(json.dumps(said(("user", content))).encode()) < 0.005


@pytest.mark.parametrize(
    "body",
    [said(*[("user", "x")] * 8000), said(*[("user", "x")] * 100_000), {"input": ["x"] * 60_000}, {"prompt": [*range(40_000)]}],
    ids=["messages", "messages-skimmed", "inputs", "numbers"],
)
def test_many_small_things_hold_nobody_up(body: dict[str, Any]) -> None:
    assert _took_s(orjson.dumps(body)) < 0.01


def _took_s(raw: bytes) -> float:
    """Least time on the CPU, which others on this machine do not lengthen."""
    took_s = []
    for _ in range(10):
        started_s = time.thread_time()
        seen(raw)
        took_s.append(time.thread_time() - started_s)
    return min(took_s)


def test_a_body_of_the_window_is_read_whole() -> None:
    body = orjson.dumps(said(("user", "a"), ("user", "b" * (WINDOW_BYTES - 100)), ("user", "c")))
    found = skim(body)
    assert (found.unread_bytes, found.read_bytes) == (0, len(body))
    assert Said(turns=found.turns).beginning() == "\0a"
