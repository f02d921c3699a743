import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from axiond.engine.argv import checkpoint_problem, environment, server_argv, threads_bind
from axiond.kernels.settings import from_environ
from axiond.manifest.spec import ModelSpec

PLAIN = (
    "--model=/m", "--served-model-name", "chat", "--uds=/r/s", "--dtype=auto", "--enable-chunked-prefill", "--enable-prefix-caching",
    "--kv-cache-memory-bytes=1073741824", "--kv-cache-dtype=auto", "--enforce-eager", "--no-trust-remote-code",
    "--no-enable-auto-tool-choice", "--disable-uvicorn-access-log",
)  # fmt: skip


def argv(**fields: Any) -> tuple[str, ...]:
    return server_argv("chat", ModelSpec(source="s", **fields), Path("/m"), Path("/r/s"))


def test_a_plain_model() -> None:
    assert argv() == PLAIN


@pytest.mark.parametrize(
    ("fields", "added", "removed"),
    [
        ({"served_names": ("a", "b")}, ("a", "b"), ("chat",)),
        ({"aliases": ("a",)}, (), ()),
        ({"quantization": "none"}, (), ()),
        ({"quantization": "awq"}, ("--quantization=awq",), ()),
        ({"dtype": "float32"}, ("--dtype=float32",), ("--dtype=auto",)),
        ({"max_model_len": 2048}, ("--max-model-len=2048",), ()),
        ({"attention_backend": "CPU_ATTN"}, ("--attention-backend=CPU_ATTN",), ()),
        ({"chunked_prefill": {"enabled": False}}, ("--no-enable-chunked-prefill",), ("--enable-chunked-prefill",)),
        ({"chunked_prefill": {"max_num_batched_tokens": 512}}, ("--max-num-batched-tokens=512",), ()),
        ({"prefix_caching": False}, ("--no-enable-prefix-caching",), ("--enable-prefix-caching",)),
        ({"kv_cache": "1.5GiB"}, ("--kv-cache-memory-bytes=1610612736",), ("--kv-cache-memory-bytes=1073741824",)),
        ({"kv_cache_dtype": "fp8"}, ("--kv-cache-dtype=fp8",), ("--kv-cache-dtype=auto",)),
        ({"max_num_seqs": 8}, ("--max-num-seqs=8",), ()),
        ({"enforce_eager": False}, ("--no-enforce-eager",), ("--enforce-eager",)),
        ({"trust_remote_code": True}, ("--trust-remote-code",), ("--no-trust-remote-code",)),
        ({"lora": {"a": "/x", "b": "/y=z"}}, ("--enable-lora", "--lora-modules", "a=/x", "b=/y=z"), ()),
        ({"lora": {"a": "/x,y"}}, ("--enable-lora", "--lora-modules", '{"name":"a","path":"/x,y"}'), ()),
        ({"chat_template": "-{{ x }}"}, ("--chat-template=-{{ x }}",), ()),
        ({"tool_call_parser": "hermes"}, ("--tool-call-parser=hermes", "--enable-auto-tool-choice"), ("--no-enable-auto-tool-choice",)),
        ({"reasoning_parser": "qwen3"}, ("--reasoning-parser=qwen3",), ()),
        ({"engine_args": {"seed": -1, "block_size": 32}}, ("--seed=-1", "--block-size=32"), ()),
        ({"engine_args": {"--swap-space": 0.5}}, ("--swap-space=0.5",), ()),
        ({"engine_args": {"language-model-only": True, "async_scheduling": False}}, ("--language-model-only", "--no-async-scheduling"), ()),
        ({"engine_args": {"middleware": ["a", "b"], "extra": [{"k": 1}, 2]}}, ("--middleware", "a", "b", "--extra", '{"k":1}', "2"), ()),
        ({"engine_args": {"speculative-config": {"method": "ngram", "n": 3}}}, ('--speculative-config={"method":"ngram","n":3}',), ()),
        ({"engine_args": {"seed": None}}, (), ()),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_every_field_reaches_the_command_line(fields: dict[str, Any], added: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Beside the plain arguments, exactly these come and these go; what is added keeps its order."""
    got = argv(**fields)
    assert [argument for argument in got if argument not in PLAIN] == list(added)
    assert [argument for argument in PLAIN if argument not in got] == list(removed)


@pytest.mark.parametrize(
    ("cores", "workers", "bind"),
    [
        ([0], 1, "0"),
        ([0, 1], 1, "0,1"),
        ([4, 5, 6], 1, "4,5,6"),
        ([0, 1, 2, 3], 1, "0,1,2,3"),
        ([0, 1, 2, 3, 4], 2, "0,1,2|3,4"),
        ([0, 1, 2, 3, 4, 5], 2, "0,1,2|3,4,5"),
        ([0, 1], 3, "nobind"),
        ([], 1, "nobind"),
    ],
)
def test_cores_are_shared_out_to_workers(cores: list[int], workers: int, bind: str) -> None:
    assert threads_bind(cores, workers) == bind


@pytest.mark.parametrize(
    ("engine_args", "bind"),
    [
        ({}, "2,3"),
        ({"tensor_parallel_size": 2}, "2|3"),
        ({"tensor-parallel-size": "2", "pipeline-parallel-size": 1}, "2|3"),
        ({"data-parallel-size": 2}, "2|3"),
    ],
)
def test_each_worker_of_an_engine_gets_cores(engine_args: dict[str, Any], bind: str) -> None:
    spec = ModelSpec(source="s", engine_args=engine_args)
    assert environment(spec, {3, 2}, Path("/r"), Path("/s"), {})["VLLM_CPU_OMP_THREADS_BIND"] == bind


def test_the_environment_lets_only_harmless_variables_through() -> None:
    inherited = {"PATH": "/bin", "LC_ALL": "C", "HF_TOKEN": "t", "VLLM_API_KEY": "k", "OPENAI_API_KEY": "k", "VLLM_CPU_KVCACHE_SPACE": "9"}
    assert environment(ModelSpec(source="s"), {0, 1}, Path("/r/e/1"), Path("/s"), inherited) == {
        "PATH": "/bin",
        "LC_ALL": "C",
        "AXIOND_ENGINE": "/r/e/1",
        "SPT_NOENV": "1",
        "TMPDIR": "/r/e/1",
        "VLLM_RPC_BASE_PATH": "/r/e/1",
        "VLLM_CACHE_ROOT": "/s/cache/vllm",
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": "/s/cache/torchinductor",
        "AXIOND_PACKED": "/s/cache/packed",
        "THP_MEM_ALLOC_ENABLE": "1",
        "XDG_CACHE_HOME": "/s/cache",
        "HF_HOME": "/s/cache/huggingface",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0,1",
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "AXIOND_KERNELS": '{"w4a8":"auto","lm_head":"int8","bf16":"auto","fused":true,"force_isa":"auto"}',
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize(
    "kernels", ["auto", "off", {"w4a8": "exact", "lm_head": "int4", "bf16": "off", "fused": False, "force_isa": "portable"}], ids=str
)
def test_an_engine_reads_the_kernels_that_the_manifest_says(kernels: Any) -> None:
    spec = ModelSpec(source="s", kernels=kernels)
    settings = from_environ(environment(spec, {0}, Path("/r"), Path("/s"), {}))
    assert dataclasses.asdict(settings) == spec.kernels.model_dump()
    assert settings.is_off == (kernels == "off")


AWQ = {"quantization_config": {"quant_method": "awq"}}


@pytest.mark.parametrize(
    ("fields", "config", "problem"),
    [
        ({}, {}, None),
        ({}, AWQ, None),
        ({"quantization": "none"}, {}, None),
        ({"quantization": "none"}, {"quantization_config": None}, None),
        ({"quantization": "none"}, AWQ, "is quantized with awq"),
        ({"quantization": "none"}, {"quantization_config": {"bits": 4}}, "is quantized with an unnamed method"),
        ({"quantization": "awq"}, AWQ, None),
        ({"quantization": "gptq"}, AWQ, "is quantized with awq"),
        ({"quantization": "mxfp4"}, {}, "is not quantized"),
        ({"attention_backend": "CPU_ATTN"}, {}, None),
        ({"attention_backend": "CPU_ATTN"}, {"kv_lora_rank": 512}, "latent attention"),
        ({}, {"kv_lora_rank": 512}, None),
    ],
)
def test_what_vllm_would_ignore_in_silence_is_a_problem(fields: dict[str, Any], config: dict[str, Any], problem: str | None) -> None:
    found = checkpoint_problem(ModelSpec(source="s", **fields), config)
    assert (found is None) if problem is None else (found is not None and problem in found)


@pytest.mark.parametrize("damaged", ["awq", ["awq"], 4])
@pytest.mark.parametrize("quantization", ["auto", "none", "awq"])
def test_a_damaged_config_is_a_problem(damaged: object, quantization: str) -> None:
    problem = checkpoint_problem(ModelSpec.model_validate({"source": "s", "quantization": quantization}), {"quantization_config": damaged})
    assert problem is not None
    assert "is no table" in problem
