"""What differs between two specs, and the promise that a field's class is the truth about the digest."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from axiond.manifest.diff import auto_changes, changes, domain_changes, route_changes, server_changes
from axiond.manifest.spec import Change, Manifest, ModelSpec, Route, Server, change_of
from axiond.report import FieldChange

BASE: dict[str, Any] = {"source": "a/b"}


def spec(**fields: Any) -> ModelSpec:
    return ModelSpec.model_validate(BASE | fields)


GOLDEN = {"prompt": "p", "expect": "e"}
CASES: Mapping[str, tuple[dict[str, Any], dict[str, Any], list[tuple[str, Any, Any, str]]]] = {
    "nothing": ({}, {}, []),
    "what the default is anyway": ({}, {"replicas": 1, "kv_cache": "1GiB"}, []),
    "live": ({}, {"aliases": ["x"]}, [("aliases", [], ["x"], "live")]),
    "engine": ({"dtype": "auto"}, {"dtype": "float32"}, [("dtype", "auto", "float32", "engine")]),
    "size": ({}, {"kv_cache": "2GiB"}, [("kv_cache", 2**30, 2**31, "engine")]),
    "in a table": ({}, {"chunked_prefill": {"enabled": False}}, [("chunked_prefill.enabled", True, False, "engine")]),
    "a table comes": ({}, {"golden": {"prompt": "p", "expect": "e"}}, [("golden", None, GOLDEN, "live")]),
    "in a table that is there": (
        {"golden": {"prompt": "p", "expect": "e"}},
        {"golden": {"prompt": "q", "expect": "e"}},
        [("golden.prompt", "p", "q", "live")],
    ),
    "a word for a table": ({"kernels": "auto"}, {"kernels": {}}, []),
    "another word for a table": (
        {},
        {"kernels": "off"},
        [
            ("kernels.w4a8", "auto", "off", "engine"),
            ("kernels.lm_head", "int8", "none", "engine"),
            ("kernels.bf16", "auto", "off", "engine"),
            ("kernels.fused", True, False, "engine"),
        ],
    ),
    "entries": (
        {"engine_args": {"a": 1, "b": 2, "c": {"d": [1], "e": 0}}},
        {"engine_args": {"a": 1, "b": 3, "c": {"d": [2], "e": 0}, "f": None}},
        [("engine_args.b", 2, 3, "engine"), ("engine_args.c.d", [1], [2], "engine"), ("engine_args.f", None, None, "engine")],
    ),
    "order of entries": ({"engine_args": {"a": 1, "b": 2}}, {"engine_args": {"b": 2, "a": 1}}, []),
    "kind of number": ({"engine_args": {"a": [1]}}, {"engine_args": {"a": [True]}}, [("engine_args.a", [1], [True], "engine")]),
    "name with a dot": ({"lora": {"a.b": "/x"}}, {"lora": {}}, [('lora."a.b"', "/x", None, "engine")]),
    "member of a union": ({"cores": "0-1"}, {"cores": ["0", "1"]}, [("cores", "0-1", ["0", "1"], "engine")]),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_changes_are_told_field_by_field(case: tuple[dict[str, Any], dict[str, Any], list[tuple[str, Any, Any, str]]]) -> None:
    old, new, expected = case
    assert changes(spec(**old), spec(**new)) == tuple(
        FieldChange(path=path, old=a, new=b, change=change) for path, a, b, change in expected
    )


def test_server_changes_mask_secrets() -> None:
    old, new = Server.model_validate({"api_keys": ["hunter2"]}), Server.model_validate({"api_keys": ["other"], "listen": "[::]:1"})
    assert server_changes(old, new) == (
        FieldChange(path="server.listen", old="127.0.0.1:8080", new="[::]:1", change="daemon"),
        FieldChange(path="server.api_keys", old=["**********"], new=["**********"], change="live"),
    )
    assert server_changes(old, old) == ()


def test_key_groups_are_told_by_name_and_masked() -> None:
    old, new = ({"key_groups": groups} for groups in ({"a": ["hunter2"], "b": ["k"]}, {"a": ["hunter3"], "b": ["k"], "c": ["x", "y"]}))
    assert server_changes(Server.model_validate(old), Server.model_validate(new)) == (
        FieldChange(path="server.key_groups.a", old=["**********"], new=["**********"], change="live"),
        FieldChange(path="server.key_groups.c", old=None, new=["**********"] * 2, change="live"),
    )


def routes(*entries: dict[str, Any]) -> tuple[Route, ...]:
    return tuple(Route.model_validate({"models": ["m"], **entry}) for entry in entries)


def live(path: str, old: Any, new: Any) -> FieldChange:
    return FieldChange(path=path, old=old, new=new, change="live")


A, B, C, M = {"name": "a"}, {"name": "b"}, {"name": "c"}, [{"model": "m"}]
ROUTES: Mapping[str, tuple[tuple[Route, ...], tuple[Route, ...], list[FieldChange]]] = {
    "nothing": (routes(A, B), routes(A, B), []),
    "one more, last": (routes(A), routes(A, B), [live("routes.b", None, {"name": "b", "models": M})]),
    "one less": (routes(A, B, C), routes(A, C), [live("routes.b", {"name": "b", "models": M}, None)]),
    "one more before": (
        routes(A),
        routes(B, A),
        [live("routes", ["a"], ["b", "a"]), live("routes.b", None, {"name": "b", "models": M})],
    ),
    "order": (routes(A, B, C), routes(A, C, B), [live("routes", ["a", "b", "c"], ["a", "c", "b"])]),
    "another name": (
        routes(A),
        routes(B),
        [live("routes.a", {"name": "a", "models": M}, None), live("routes.b", None, {"name": "b", "models": M})],
    ),
    "an action": (
        routes(A | {"models": [{"model": "m", "weight": 1}]}),
        routes(A | {"models": ["m", "n"], "timeout": "3s"}),
        [
            live("routes.a.models", [{"model": "m", "weight": 1.0}], [{"model": "m"}, {"model": "n"}]),
            live("routes.a.timeout", None, 3.0),
        ],
    ),
    "a sampling parameter": (
        routes(A | {"sampling": {"temperature": 1, "stop": "x"}}),
        routes(A | {"sampling": {"temperature": 0.5, "stop": ["x"]}}),
        [live("routes.a.sampling.temperature", 1.0, 0.5), live("routes.a.sampling.stop", "x", ["x"])],
    ),
    "a condition comes": (routes(A), routes(A | {"when": {"stream": True}}), [live("routes.a.when", None, {"stream": True})]),
    "a condition is changed": (
        routes(A | {"when": {"stream": True, "headers": {"x": "1"}}}),
        routes(A | {"when": {"path": ["/v1/*"], "headers": {"x": "2"}}}),
        [
            live("routes.a.when.path", [], ["/v1/*"]),
            live("routes.a.when.headers.x", "1", "2"),
            live("routes.a.when.stream", True, None),
        ],
    ),
    "a key": (
        routes(A | {"when": {"api_key": ["hunter2"]}}),
        routes(A | {"when": {"api_key": ["hunter3"]}}),
        [live("routes.a.when.api_key", ["**********"], ["**********"])],
    ),
    "a key in a condition that comes": (
        routes(A),
        routes(A | {"when": {"api_key": ["hunter2"]}}),
        [live("routes.a.when", None, {"api_key": ["**********"]})],
    ),
}


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in ROUTES.items()])
def test_routes_are_told_apart_by_name_and_their_order_counts(case: tuple[tuple[Route, ...], tuple[Route, ...], list[FieldChange]]) -> None:
    old, new, expected = case
    assert route_changes(old, new) == tuple(expected)


def test_domains_and_scores_are_told_field_by_field() -> None:
    old = Manifest.model_validate({"domains": {"a": {"keywords": ["x"]}, "b": {"description": "b"}}})
    new = Manifest.model_validate(
        {"domains": {"a": {"keywords": ["y"]}, "c": {"examples": ["c"]}}, "semantic": {"threshold": 0.5}, "auto": {"residency": False}}
    )
    assert domain_changes(old, new) == (
        live("domains.a.keywords", ["x"], ["y"]),
        live("domains.b", {"description": "b"}, None),
        live("domains.c", None, {"examples": ["c"]}),
        live("semantic.threshold", 0.25, 0.5),
    )
    assert auto_changes(old.auto, new.auto) == (live("auto.residency", True, False),)
    assert (domain_changes(new, new), auto_changes(new.auto, new.auto)) == ((), ())


NAMES = st.lists(st.from_regex(r"\A[a-z][a-z0-9._-]{0,5}\Z"), max_size=3).map(tuple)
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
ARGUMENTS = st.dictionaries(
    st.from_regex(r"\Ax-[a-z]{1,4}\Z"), st.integers() | st.booleans() | TEXTS | st.lists(st.integers(), max_size=2), max_size=3
)
CORES = st.sampled_from(["0", "0-1", "1,3"])
# No number is one of the words, so that two that are written otherwise differ.
DURATIONS = st.floats(0, 9999).filter(lambda seconds: seconds not in (45, 600, 5400)) | st.sampled_from(["45s", "10m", "1h30m"])
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "source": TEXTS,
    "revision": st.none() | TEXTS,
    "served_names": NAMES,
    "aliases": NAMES,
    "quantization": st.sampled_from(["auto", "none", "awq", "gptq", "compressed-tensors", "mxfp4"]),
    "dtype": st.sampled_from(["auto", "bfloat16", "float16", "float32"]),
    "max_model_len": st.none() | st.integers(1, 9999),
    "attention_backend": st.sampled_from(["auto", "CPU_ATTN"]),
    "chunked_prefill.enabled": st.booleans(),
    "chunked_prefill.max_num_batched_tokens": st.none() | st.integers(1, 9999),
    "prefix_caching": st.booleans(),
    "kv_cache": st.integers(2**26, 2**40),
    "kv_cache_dtype": st.sampled_from(["auto", "fp8", "fp8_e4m3", "fp8_e5m2"]),
    "max_num_seqs": st.none() | st.integers(1, 99),
    "enforce_eager": st.booleans(),
    "kernels": st.sampled_from([{}, {"w4a8": "exact"}, {"lm_head": "int4", "fused": False}]),
    "kernels.w4a8": st.sampled_from(["auto", "exact", "off"]),
    "kernels.lm_head": st.sampled_from(["int8", "int4", "none"]),
    "kernels.bf16": st.sampled_from(["auto", "off"]),
    "kernels.fused": st.booleans(),
    "kernels.force_isa": st.sampled_from(["auto", "portable", "neon", "avx512vnni"]),
    "cores": st.none() | CORES | st.lists(CORES, min_size=1, max_size=3).map(tuple),
    "replicas": st.integers(1, 64),
    "load": st.sampled_from(["eager", "lazy"]),
    "priority": st.integers(-9, 9),
    "core_share": st.floats(0.01, 1000),
    "idle_unload": st.none() | DURATIONS,
    "min_resident": DURATIONS,
    "pin": st.booleans(),
    "max_in_flight": st.none() | st.integers(1, 99),
    "fit": st.dictionaries(st.from_regex(r"\A[a-z]{1,3}\Z"), st.floats(0, 1), max_size=2),
    "cost": st.floats(0, 99),
    "memory_ceiling": st.none() | st.integers(2**26, 2**40),
    "lora": st.dictionaries(st.from_regex(r"\A[a-z]{1,3}\Z"), TEXTS, max_size=2),
    "chat_template": st.none() | TEXTS,
    "tool_call_parser": st.none() | TEXTS,
    "reasoning_parser": st.none() | TEXTS,
    "trust_remote_code": st.booleans(),
    "start_timeout_s": st.floats(1, 86400),
    "drain_grace_s": st.floats(0, 86400),
    "golden": st.none() | st.fixed_dictionaries({"prompt": TEXTS, "expect": st.just("x")}),
    "golden.prompt": TEXTS,
    "golden.expect": st.sampled_from(["a", "b", "(?i)c"]),
    "golden.max_tokens": st.integers(1, 4096),
    "golden.min_tokens_per_s": st.none() | st.floats(1, 99),
    "engine_args": ARGUMENTS,
}


def leaf_fields(table: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Change]]:
    """Every field that declares a class, and those of the tables in it."""
    for name, info in table.model_fields.items():
        if change := change_of(table, name):
            yield prefix + name, change
        for part in (info.annotation, *getattr(info.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from leaf_fields(part, f"{prefix}{name}.")


CLASSES = dict(leaf_fields(ModelSpec))


def with_field(fields: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    table, _, name = path.rpartition(".")
    return fields | {table: (fields.get(table) or {}) | {name: value}} if table else fields | {path: value}


def test_no_field_escapes_the_property() -> None:
    """A new field fails here until it has a class and a strategy."""
    assert CLASSES.keys() == FIELDS.keys()
    assert set(CLASSES.values()) == {Change.LIVE, Change.ENGINE}


@pytest.mark.parametrize("path", FIELDS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_live_field_keeps_the_digest_and_an_engine_field_changes_it(path: str, data: st.DataObject) -> None:
    base = {"source": "a/b", "golden": {"prompt": "p", "expect": "e"}}
    for other in data.draw(st.lists(st.sampled_from([name for name in FIELDS if "." not in name and name != "golden"]), max_size=3)):
        base = with_field(base, other, data.draw(FIELDS[other]))
    values = data.draw(st.lists(FIELDS[path], min_size=2, max_size=2, unique_by=repr))
    old, new = (ModelSpec.model_validate(with_field(base, path, value)) for value in values)
    found = changes(old, new)
    assert {change.change for change in found} == {CLASSES[path]}
    assert all(change.path == path or change.path.startswith(f"{path}.") for change in found)
    assert (old.digest() == new.digest()) == (CLASSES[path] is Change.LIVE)


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_an_engine_is_replaced_exactly_if_the_changes_say_so(data: st.DataObject) -> None:
    names = [name for name in FIELDS if not name.startswith(("golden.", "kernels."))]

    def draw() -> ModelSpec:
        fields: dict[str, Any] = dict(BASE)
        for name in data.draw(st.lists(st.sampled_from(names), max_size=4)):
            fields = with_field(fields, name, data.draw(FIELDS[name]))
        return ModelSpec.model_validate(fields)

    old, new = draw(), draw()
    assert (old.digest() != new.digest()) == any(change.change == Change.ENGINE for change in changes(old, new))
