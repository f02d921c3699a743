"""Manifests that are too big, too deep, cut or random: a clear error soon, or a manifest; never anything else."""

import json
import time
import tomllib
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from axiond.errors import ManifestError
from axiond.manifest.fields import LinearRegex
from axiond.manifest.files import MAX_BYTES
from axiond.manifest.load import Loaded, parse
from axiond.manifest.routes import Domain, Match, Route, Sampling, Semantic

TOML = Path("/conf/a.toml")
JSON = Path("/conf/a.json")

EXAMPLE = b"""\
# comment \xc3\xbc
[server]
listen = "[::1]:8080"
api_keys = ["a", "${KEY}"]
[defaults]
chunked_prefill = { enabled = true, max_num_batched_tokens = 256 }
[models."q2.5"]
source = 'a/b'
aliases = [ # why
  "x", "y" ]
cores = ["0-1", "2"]
[models."q2.5".golden]
prompt = '''
Is 1 < 2?'''
expect = "(?i)yes|\\u00fc"
[models."q2.5".engine_args]
a.b = [1, 2.5, {c = true}]
[[routes]]
name = "r"
models = [{model = "q2.5", weight = 100}]
"""
AS_JSON = json.dumps(tomllib.loads(EXAMPLE.decode()), ensure_ascii=False).encode()


def load_or_refuse(text: bytes, origin: Path) -> Loaded | ManifestError:
    try:
        return parse(text, origin, {"KEY": "k"})
    except ManifestError as exc:
        error = exc
    assert error.problems
    assert all(problem.what and problem.place.file == str(origin) for problem in error.problems)
    return error


@pytest.mark.parametrize(("text", "origin"), [(EXAMPLE, TOML), (AS_JSON, JSON)], ids=["toml", "json"])
def test_a_manifest_cut_anywhere_is_refused_or_valid(text: bytes, origin: Path) -> None:
    assert isinstance(load_or_refuse(text, origin), Loaded)
    cut = [load_or_refuse(text[:end], origin) for end in range(len(text))]
    assert all(isinstance(result, Loaded | ManifestError) for result in cut)
    if origin is JSON:
        assert all(isinstance(result, ManifestError) for result in cut)


@given(st.binary(max_size=200), st.sampled_from([TOML, JSON]))
def test_random_bytes_are_refused_or_valid(text: bytes, origin: Path) -> None:
    load_or_refuse(text, origin)


@settings(max_examples=300)
@given(st.integers(0, len(EXAMPLE)), st.integers(0, 40), st.binary(max_size=8), st.sampled_from([(EXAMPLE, TOML), (AS_JSON, JSON)]))
def test_a_damaged_manifest_is_refused_or_valid(start: int, length: int, patch: bytes, example: tuple[bytes, Path]) -> None:
    text, origin = example
    load_or_refuse(text[:start] + patch + text[start + length :], origin)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
FIELD_NAMES = [
    "source",
    "aliases",
    "served_names",
    "lora",
    "cores",
    "golden",
    "chunked_prefill",
    "engine_args",
    "replicas",
    "kv_cache",
    "fit",
    "bogus",
]
MODELS = (
    st.dictionaries(st.text(max_size=4), st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=4) | VALUES, max_size=3) | VALUES
)
NAMES = st.sampled_from(["a", "b", "a*", "/v1/*"])
WHENS = st.dictionaries(st.sampled_from([*Match.model_fields]), st.lists(NAMES | VALUES, max_size=2) | st.booleans() | VALUES, max_size=4)
TARGETS = st.lists(
    NAMES | st.fixed_dictionaries({"model": NAMES | VALUES}, optional={"weight": st.integers(0, 100) | VALUES}) | VALUES, max_size=2
)
ROUTES = st.lists(
    st.fixed_dictionaries(
        {"name": NAMES},
        optional={
            "when": WHENS | VALUES,
            "models": TARGETS,
            "fallback": st.lists(NAMES, max_size=2) | VALUES,
            "canary": st.fixed_dictionaries({"model": NAMES, "percent": st.just(3)}) | VALUES,
            "shadow": st.fixed_dictionaries({"model": NAMES}) | VALUES,
            "sampling": st.dictionaries(st.sampled_from([*Sampling.model_fields]), VALUES, max_size=2) | VALUES,
            "choose": st.sampled_from(["score", "weight"]),
        },
    )
    | st.dictionaries(st.sampled_from([*Route.model_fields]), VALUES, max_size=4)
    | VALUES,
    max_size=3,
)
DOMAINS = st.dictionaries(NAMES, st.dictionaries(st.sampled_from([*Domain.model_fields]), st.lists(NAMES) | VALUES) | VALUES, max_size=3)
TREES = st.fixed_dictionaries(
    {},
    optional={
        "server": st.dictionaries(st.sampled_from(["listen", "state_dir", "api_keys", "key_groups", "x"]), VALUES) | VALUES,
        "defaults": st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=3) | VALUES,
        "models": MODELS,
        "routes": ROUTES | VALUES,
        "domains": DOMAINS | VALUES,
        "semantic": st.dictionaries(st.sampled_from([*Semantic.model_fields]), VALUES, max_size=2) | VALUES,
        "auto": VALUES,
        "include": VALUES,
        "other": VALUES,
    },
)


@settings(max_examples=300)
@given(TREES)
def test_any_tree_of_any_values_is_refused_or_valid(tree: object) -> None:
    load_or_refuse(json.dumps(tree).encode(), JSON)


def models(count: int, line: str = "") -> bytes:
    one = '[models.m{0}]\nsource = "org/model-{0}"\naliases = ["x{0}", "y{0}"]\nmax_model_len = 4096\n' + line
    return "".join(one.format(index) for index in range(count)).encode()


def routes(count: int, target: str) -> bytes:
    return "".join(f'[[routes]]\nname = "r{index}"\nmodels = [{{model = "{target}{index}"}}]\n' for index in range(count)).encode()


REFUSED = {
    "10 MB": (b"#" * 10**7, TOML, "is too large: a manifest may have 4 MiB"),
    "10 MiB": (b"[models]\n" + b"\n" * (10 * 2**20), TOML, "is too large: a manifest may have 4 MiB"),
    "one byte too many": (b"#" * (MAX_BYTES + 1), TOML, "is too large"),
    "nested lists": (b"a = " + b"[" * 100_000, TOML, "nested too deeply"),
    "nested json": (b"[" * 1_000_000, JSON, "nested too deeply"),
    "nested values": (b'{"models": ' + b'{"a": ' * 100 + b"1" + b"}" * 101, JSON, "nested too deeply"),
    "key of many parts": (b".".join([b"a"] * 1_000_000) + b" = 1", TOML, "more than 64 parts"),
    "header of many parts": (b"[" + b" . ".join([b"'a'"] * 100_000) + b"]", TOML, "more than 64 parts"),
    "many values": (b"a = [" + b"1," * 300_000 + b"]", TOML, "holds more than 250,000 values"),
    "one long word": (b"a = '" + b"w" * 3_000_000 + b"'", TOML, "no such table"),
    "quotes": (b"'" * 3_000_000, TOML, "not valid TOML"),
    "open references": (b"[models.a]\nsource = '" + b"${" * 1_000_000 + b"'", TOML, 'has "${" without "}"'),
    "10,000 typos": (models(10_000, "dtyp = 1\n"), TOML, 'did you mean "dtype"?'),
    "a typo in the defaults of 10,000": (b"[defaults]\ndtyp = 1\n" + models(10_000), TOML, 'did you mean "dtype"?'),
    "10,000 clashes": (models(10_000, 'served_names = ["same"]\n'), TOML, "already taken"),
    "10,000 unknown targets": (models(10_000) + routes(10_000, "m-"), TOML, "there is no model"),
    "json duplicates": (b"{" + b'"a": 1,' * 50_000 + b'"a": 1}', JSON, "stands twice"),
}


@pytest.mark.parametrize(("text", "origin", "expected"), REFUSED.values(), ids=REFUSED)
def test_what_is_too_much_is_refused_soon(text: bytes, origin: Path, expected: str) -> None:
    """20 s leave room for a busy machine; alone, each takes at most 4 s."""
    began = time.monotonic()
    error = load_or_refuse(text, origin)
    assert isinstance(error, ManifestError)
    assert expected in str(error)
    assert len(error.problems) <= 1001
    assert time.monotonic() - began < 20


def test_ten_thousand_models_load() -> None:
    began = time.monotonic()
    loaded = parse(models(10_000) + routes(1000, "m"), TOML, {})
    assert (len(loaded.manifest.models), len(loaded.manifest.routes)) == (10_000, 1000)
    assert time.monotonic() - began < 20


def test_the_limit_holds_for_all_files_together(tmp_path: Path) -> None:
    root = tmp_path / "a.toml"
    root.write_text('include = ["b.toml", "c.toml"]\n')
    for name in ("b.toml", "c.toml"):
        (tmp_path / name).write_bytes(b"#" * (MAX_BYTES // 2 + 1))
    error = load_or_refuse(root.read_bytes(), root)
    assert isinstance(error, ManifestError)
    assert [problem.place.field for problem in error.problems] == ["include[1]"]


def test_more_problems_than_anyone_reads_are_not_all_told() -> None:
    error = load_or_refuse(models(1001, "dtyp = 1\n"), TOML)
    assert isinstance(error, ManifestError)
    assert str(error.problems[-1]) == "/conf/a.toml: these are 1,000 problems of more"


@pytest.mark.parametrize(
    ("pattern", "is_cheap"),
    [
        (r"\pL+ \pL+", True),
        (r"[0-9a-fA-F]{64}", True),
        (r"\b(?:\d[ -]*?){13,19}\b", True),
        (r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", True),
        (r"\p{Han}{2,4}|[é-ü]{20}|\x{4E00}{9}", True),
        (r"[]{300}]|\{300}|\\x", True),
        (r"\b(?:" + "|".join(f"word{number}" for number in range(300)) + r")\b", True),
        (r"x.{64}", True),
        (r"x.{66}", False),
        (r"(x{20}y){10}", False),
        (r"[^[:alpha:]]{100}", False),
        (r"\p{Han}{100}", False),
        (r"\Q(\Ex{100}", False),
    ],
)
def test_an_expression_may_not_count_far(pattern: str, is_cheap: bool) -> None:
    check = TypeAdapter(LinearRegex)
    with nullcontext() if is_cheap else pytest.raises(ValidationError, match="counted repetitions"):
        check.validate_python(pattern)
