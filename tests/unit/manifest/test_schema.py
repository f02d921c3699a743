"""The JSON Schema accepts what `load()` accepts, and says what every change costs."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from axiond.manifest.fields import CHANGE_KEY
from axiond.manifest.load import parse
from axiond.manifest.routes import Auto, Canary, Domain, Match, Refusal, Route, Sampling, Semantic, Shadow, SystemPrompt, Weighted
from axiond.manifest.schema import json_schema, leaves
from axiond.manifest.spec import Change, ChunkedPrefill, GoldenPrompt, Kernels, Manifest, ModelSpec, Server, change_of

SCHEMA = json_schema()
VALIDATOR = Draft202012Validator(SCHEMA)
ROUTING = (Route, Match, Weighted, Canary, Shadow, Sampling, SystemPrompt, Refusal, Domain, Semantic, Auto)
EXAMPLES = Path(__file__).parents[3] / "etc/axiond"


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


def test_no_leaf_lacks_its_class_and_each_is_the_one_declared() -> None:
    found = {name: field.get(CHANGE_KEY) for name, field in leaves(SCHEMA)}
    tables = (Server, ModelSpec, ChunkedPrefill, Kernels, GoldenPrompt, *ROUTING)
    declared = {f"{table.__name__}.{name}": change for table in tables for name in table.model_fields if (change := change_of(table, name))}
    defaults = {name.replace("ModelSpec.", "Defaults."): change for name, change in declared.items() if name.startswith("ModelSpec.")}
    assert found == declared | defaults | {"Manifest.include": Change.LIVE, "Manifest.$schema": Change.LIVE}


def test_all_of_routing_is_live() -> None:
    """Every field of its tables has a class of its own, so that nothing of it can restart an engine unnoticed."""
    assert {change_of(table, name) for table in ROUTING for name in table.model_fields} == {Change.LIVE}
    assert {name for name in Manifest.model_fields if change_of(Manifest, name) is None} == set(Manifest.model_fields)


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
    "routes": {
        "models": {"a": {"source": "x"}, "b": {"source": "y"}},
        "routes": [{"name": "r", "models": [{"model": "a"}], "fallback": ["b"]}],
    },
    "models of a route by name": {"models": {"a": {"source": "x"}}, "routes": [{"name": "r", "models": ["a"]}]},
    "conditions and actions": {
        "server": {"key_groups": {"team": ["k"]}},
        "models": {"a": {"source": "x"}, "b": {"source": "y", "fit": {"code": 0.9}, "cost": 2}},
        "domains": {"code": {"keywords": ["python"], "threshold": 0.4}},
        "routes": [
            {"name": "no", "when": {"path": ["/v1/audio/*"]}, "refuse": {"status": 403, "message": "no"}},
            {
                "name": "r",
                "when": {
                    "model": ["auto"],
                    "headers": {"X-Client": "^ide/"},
                    "key_group": ["team"],
                    "stream": "${P}",
                    "response_format": ["text", "json_object"],
                    "language": ["${L}", "es"],
                    "min_prompt_tokens": 1,
                    "keywords": ["a b"],
                    "regex": ["x+"],
                    "domain": ["code"],
                    "hours": "22:00-06:00",
                    "days": ["mon", "${W}"],
                    "percent": 0.5,
                    "sticky": "key",
                },
                "models": ["a", {"model": "b"}],
                "canary": {"model": "b", "percent": 5},
                "shadow": {"model": "b"},
                "fallback": ["b"],
                "fallback_on": ["timeout"],
                "timeout": "20s",
                "max_wait": 5,
                "sampling": {"temperature": 0.2},
                "system_prompt": {"text": "t", "mode": "prepend"},
            },
        ],
        "semantic": {"embedding_model": "/srv/minilm", "threshold": 0.5},
        "auto": {"residency": False, "cost": 0},
    },
}
ENVIRONMENT = {"N": "1", "S": "x", "D": "auto", "K": "1GiB", "P": "true", "L": "en", "W": "tue"}


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
    "condition that is not there": {"routes": [{"name": "r", "when": {"modle": ["a"]}}]},
    "hours": {"routes": [{"name": "r", "when": {"hours": "8-18"}}]},
    "day": {"routes": [{"name": "r", "when": {"days": ["monday"]}}]},
    "language": {"routes": [{"name": "r", "when": {"language": ["Spanish"]}}]},
    "share of nothing": {"routes": [{"name": "r", "canary": {"model": "a", "percent": 0}}]},
    "share that is no table": {"routes": [{"name": "r", "models": [1]}]},
    "domain's field": {"domains": {"code": {"keyword": ["a"]}}},
    "score": {"auto": {"fits": 1}},
    "threshold": {"semantic": {"threshold": 2}},
}


@pytest.mark.parametrize("manifest", [pytest.param(manifest, id=name) for name, manifest in INVALID.items()])
def test_what_a_user_may_not_write_is_marked(manifest: dict[str, Any]) -> None:
    assert list(VALIDATOR.iter_errors(manifest))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
def test_the_manifests_we_ship_are_valid(path: Path) -> None:
    VALIDATOR.validate(tomllib.loads(path.read_text()))
