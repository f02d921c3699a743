"""The JSON Schema accepts what `load()` accepts, and says what every change costs."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from axiond.manifest.load import parse
from axiond.manifest.schema import json_schema, leaves
from axiond.manifest.spec import CHANGE_KEY, Change, ChunkedPrefill, GoldenPrompt, Kernels, ModelSpec, Route, Server, Weighted, change_of

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
EXAMPLES = Path(__file__).parents[3] / "etc/axiond"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_no_leaf_lacks_its_class_and_each_is_the_one_declared() -> None:
    found = {name: field.get(CHANGE_KEY) for name, field in leaves(SCHEMA)}
    tables = (Server, ModelSpec, ChunkedPrefill, Kernels, GoldenPrompt, Route, Weighted)
    declared = {f"{table.__name__}.{name}": change for table in tables for name in table.model_fields if (change := change_of(table, name))}
    defaults = {name.replace("ModelSpec.", "Defaults."): change for name, change in declared.items() if name.startswith("ModelSpec.")}
    assert found == declared | defaults | {"Manifest.include": Change.LIVE, "Manifest.$schema": Change.LIVE}


def test_every_field_is_described() -> None:
    assert not [name for name, field in leaves(SCHEMA) if not field.get("description")]


VALID: dict[str, dict[str, Any]] = {
    "nothing": {},
    "editor's hint": {"$schema": "https://example.org/schema.json"},
    "include": {"include": ["models.d/*.toml"]},
    "defaults need nothing": {"defaults": {"dtype": "float32", "golden": {"max_tokens": 3}}},
    "a golden prompt in two parts": {
        "defaults": {"golden": {"prompt": "p"}},
        "models": {"a": {"source": "x", "golden": {"expect": "e"}}},
    },
    "references": {
        "server": {"max_queue": "${N}"},
        "models": {"a": {"source": "${S}", "dtype": "${D}", "kv_cache": "${K}", "prefix_caching": "${P}"}},
    },
    "sizes": {"models": {"a": {"source": "x", "kv_cache": "2GiB"}, "b": {"source": "x", "kv_cache": 2**30}}},
    "cores": {"models": {"a": {"source": "x", "cores": "0-3"}, "b": {"source": "x", "cores": ["0", "1"]}}},
    "kernels": {
        "defaults": {"kernels": "off"},
        "models": {"a": {"source": "x", "kernels": "auto"}, "b": {"source": "x", "kernels": {"w4a8": "exact"}}},
    },
    "routes": {"models": {"a": {"source": "x"}}, "routes": [{"name": "r", "models": [{"model": "a"}], "fallback": ["a"]}]},
}
ENVIRONMENT = {"N": "1", "S": "x", "D": "auto", "K": "1GiB", "P": "true"}


@pytest.mark.parametrize("manifest", [pytest.param(manifest, id=name) for name, manifest in VALID.items()])
def test_what_a_user_may_write_is_valid(manifest: dict[str, Any]) -> None:
    VALIDATOR.validate(manifest)
    parse(json.dumps(manifest).encode(), Path("/conf/a.json"), ENVIRONMENT)


INVALID: dict[str, dict[str, Any]] = {
    "unknown table": {"mdels": {}},
    "unknown field": {"models": {"a": {"source": "x", "dtyp": 1}}},
    "unknown default": {"defaults": {"dtyp": 1}},
    "no source": {"models": {"a": {}}},
    "enum": {"models": {"a": {"source": "x", "dtype": "bf16"}}},
    "small size": {"models": {"a": {"source": "x", "kv_cache": 1}}},
    "type": {"models": {"a": {"source": "x", "replicas": "two"}}},
    "list": {"models": {"a": {"source": "x", "aliases": "${A}"}}},
    "kernels in another word": {"models": {"a": {"source": "x", "kernels": "on"}}},
    "kernel that is not there": {"models": {"a": {"source": "x", "kernels": {"w4a16": "auto"}}}},
    "address": {"server": {"listen": "x"}},
}


@pytest.mark.parametrize("manifest", [pytest.param(manifest, id=name) for name, manifest in INVALID.items()])
def test_what_a_user_may_not_write_is_marked(manifest: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(manifest))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_the_manifests_we_ship_are_valid(path: Path) -> None:
    VALIDATOR.validate(tomllib.loads(path.read_text()))
