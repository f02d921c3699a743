"""vLLM's own parser judges engine arguments."""

from typing import Any

import pytest

from axiond.engine.check import check_engine_args
from axiond.manifest.spec import ModelSpec

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(200)]

CASES: dict[str, tuple[dict[str, Any], str]] = {
    "plain": ({}, ""),
    "everything": (
        {
            "served_names": ("a", "b"), "dtype": "float32", "max_model_len": 2048, "attention_backend": "CPU_ATTN", "kv_cache_dtype": "fp8",
            "chunked_prefill": {"enabled": False, "max_num_batched_tokens": 4096}, "prefix_caching": False, "max_num_seqs": 4,
            "quantization": "awq", "enforce_eager": False, "trust_remote_code": True, "lora": {"x": "/x", "y": "/y,z"},
            "chat_template": "{{ messages }}", "tool_call_parser": "hermes", "reasoning_parser": "qwen3",
            "engine_args": {
                "seed": -1, "block_size": 32, "--async-scheduling": False, "language-model-only": True,
                "logits-processors": ["a.b", "c"], "speculative-config": {"method": "ngram"}, "compilation-config.mode": 0,
            },
        },
        "",
    ),
    "typo": ({"engine_args": {"sead": 3}}, "unrecognized arguments: --sead=3"),
    "abbreviation": ({"engine_args": {"max-model": 3}}, "unrecognized arguments: --max-model=3"),
    "type": ({"engine_args": {"block-size": "x"}}, "argument --block-size: invalid int value: 'x'"),
    "json": ({"engine_args": {"speculative-config": "{"}}, "argument --speculative-config/-sc: Value { cannot be converted"),
    "help": ({"engine_args": {"help": True}}, "asks the parser for help"),
    "tool parser": ({"tool_call_parser": "foo"}, "argument --tool-call-parser: invalid choice: 'foo' (choose from"),
    "reasoning parser": ({"reasoning_parser": "foo"}, "argument --reasoning-parser: invalid choice: 'foo' (choose from"),
    "chat template": ({"chat_template": "/nowhere.jinja"}, "The supplied chat template string (/nowhere.jinja) appears path-like"),
}  # fmt: skip


async def test_each_model_gets_its_verdict() -> None:
    models = {name: ModelSpec(source="s", **fields) for name, (fields, _) in CASES.items()}
    found = await check_engine_args(models)
    assert found.keys() == {name for name, (_, problem) in CASES.items() if problem}
    assert {name: problem[: len(CASES[name][1])] for name, problem in found.items()} == {name: CASES[name][1] for name in found}
