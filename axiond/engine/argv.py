"""ModelSpec to an engine's command line and environment. Pure."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from axiond.kernels.settings import PACKED
from axiond.kernels.settings import VARIABLE as KERNELS
from axiond.manifest.spec import ModelSpec

INHERITED = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "LD_PRELOAD", "SSL_CERT_FILE", "SSL_CERT_DIR",
    "VLLM_LOGGING_LEVEL", "AXIOND_FORCE_ISA",
})  # fmt: skip


def server_argv(name: str, spec: ModelSpec, folder: Path, socket: Path) -> tuple[str, ...]:
    """Build the arguments of vLLM's API server for one engine, the command itself left out."""
    typed: dict[str, Any] = {
        "model": str(folder),
        "served-model-name": spec.served_names or (name,),
        "uds": str(socket),
        "dtype": spec.dtype,
        "max-model-len": spec.max_model_len,
        "quantization": None if spec.quantization in ("auto", "none") else spec.quantization,
        "attention-backend": None if spec.attention_backend == "auto" else spec.attention_backend,
        "enable-chunked-prefill": spec.chunked_prefill.enabled,
        "max-num-batched-tokens": spec.chunked_prefill.max_num_batched_tokens,
        "enable-prefix-caching": spec.prefix_caching,
        # Exact bytes; VLLM_CPU_KVCACHE_SPACE takes whole GiB only.
        "kv-cache-memory-bytes": int(spec.kv_cache),
        "kv-cache-dtype": spec.kv_cache_dtype,
        "max-num-seqs": spec.max_num_seqs,
        "enforce-eager": spec.enforce_eager,
        "trust-remote-code": spec.trust_remote_code,
        "chat-template": spec.chat_template,
        "tool-call-parser": spec.tool_call_parser,
        "enable-auto-tool-choice": spec.tool_call_parser is not None,
        "reasoning-parser": spec.reasoning_parser,
        "disable-uvicorn-access-log": True,
    }
    if spec.lora:
        typed["enable-lora"] = True
        typed["lora-modules"] = [
            {"name": adapter, "path": path} if "," in path else f"{adapter}={path}" for adapter, path in spec.lora.items()
        ]
    return tuple(argument for option, value in (*typed.items(), *spec.engine_args.items()) for argument in _option(option, value))


def environment(spec: ModelSpec, cores: Iterable[int], folder: Path, state_dir: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """
    Build an engine's whole environment. It computes on *cores*.

    Only harmless variables of the daemon's *inherited* ones pass: no token, no API key. *folder* is the engine's private
    one: it takes temporary files, and marks every process that belongs to the engine.
    """
    caches = state_dir / "cache"
    passed = {name: value for name, value in inherited.items() if name in INHERITED or name.startswith("LC_")}
    return passed | {
        "AXIOND_ENGINE": str(folder),
        # Without it setproctitle overwrites /proc/PID/environ, and with it the mark above.
        "SPT_NOENV": "1",
        "TMPDIR": str(folder),
        "VLLM_RPC_BASE_PATH": str(folder),
        "VLLM_CACHE_ROOT": str(caches / "vllm"),
        # Code that is compiled for so many threads would not follow when the engine gets more cores or fewer.
        "TORCHINDUCTOR_CPP_DYNAMIC_THREADS": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "torchinductor"),
        PACKED: str(caches / "packed"),
        # Large tensors on huge pages: filling a model's weights takes half the time then.
        "THP_MEM_ALLOC_ENABLE": "1",
        "XDG_CACHE_HOME": str(caches),
        "HF_HOME": str(caches / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": threads_bind(sorted(cores), worker_count(spec)),
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        KERNELS: _word(spec.kernels.model_dump()),
        "PYTHONUNBUFFERED": "1",
    }


def threads_bind(cores: list[int], workers: int) -> str:
    """Share *cores* out to *workers* in vLLM's notation: equal runs, the first ones longer by one if it does not divide."""
    share, longer = divmod(len(cores), workers)
    if not share:
        return "nobind"
    starts = [index * share + min(index, longer) for index in range(workers + 1)]
    return "|".join(",".join(map(str, cores[start:end])) for start, end in pairwise(starts))


def checkpoint_problem(spec: ModelSpec, config: Mapping[str, Any]) -> str | None:
    """Say what vLLM would silently ignore or choose otherwise for a checkpoint with this config.json; None if nothing."""
    quantization = config.get("quantization_config") or {}
    if not isinstance(quantization, Mapping):
        return 'has a damaged checkpoint: "quantization_config" in its config.json is no table'
    method = str(quantization.get("quant_method") or "an unnamed method") if quantization else None
    if spec.quantization == "none" and method:
        return f'asks for quantization "none", but its checkpoint is quantized with {method}'
    if spec.quantization not in ("auto", "none", method):
        found = f"quantized with {method}" if method else "not quantized"
        return f'asks for quantization "{spec.quantization}", but its checkpoint is {found}'
    if spec.attention_backend == "CPU_ATTN" and config.get("kv_lora_rank"):
        return 'asks for attention_backend "CPU_ATTN", but its model has latent attention, which runs on other backends: use "auto"'
    return None


def _option(name: str, value: Any) -> Iterator[str]:
    """
    Spell one option.

    Scalars are joined with "=", so that a value that begins with a dash stays a value. A list follows its option word by word.
    """
    option = "--" + name.lstrip("-").replace("_", "-")
    match value:
        case None:
            return
        case True:
            yield option
        case False:
            yield "--no-" + option.removeprefix("--")
        case list() | tuple():
            yield option
            yield from map(_word, value)
        case _:
            yield f"{option}={_word(value)}"


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def worker_count(spec: ModelSpec) -> int:
    """Count the workers of one engine, each of which binds its own threads."""
    arguments = {option.lstrip("-").replace("_", "-"): value for option, value in spec.engine_args.items()}
    sizes = (str(arguments.get(f"{kind}-parallel-size", 1)) for kind in ("tensor", "pipeline", "data"))
    return max(1, math.prod(int(size) for size in sizes if re.fullmatch("[0-9]{1,4}", size)))
