"""Write a GGUF file of a given shape with random weights, for llama.cpp. The tokenizer is another file's."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

BLOCK = 32  # weights behind one scale


def write_qwen2(path: Path, shape: dict[str, Any], tokenizer: Path) -> None:
    """Write a Qwen2 of *shape*, as in its config.json: Q4_0, with embeddings in Q8_0."""
    writer = gguf.GGUFWriter(path, "qwen2")
    tokens = _add_header(writer, shape, gguf.GGUFReader(tokenizer).fields)
    _add_tensors(writer, shape, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_header(writer: gguf.GGUFWriter, shape: dict[str, Any], borrowed: dict[str, gguf.ReaderField]) -> int:
    """Add all fields; return the number of tokens."""
    writer.add_context_length(4096)
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    # As many tokens as the shape says: the last matrix is a fifth of a decoded token's memory traffic.
    tokens: list[str] = borrowed["tokenizer.ggml.tokens"].contents()
    types = borrowed["tokenizer.ggml.token_type"].contents()
    missing: int = shape["vocab_size"] - len(tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens + [f"<unused{i}>" for i in range(missing)])
    writer.add_token_types(types + [gguf.TokenType.UNUSED] * missing)
    writer.add_token_merges(borrowed["tokenizer.ggml.merges"].contents())
    writer.add_bos_token_id(shape["bos_token_id"])
    writer.add_eos_token_id(shape["eos_token_id"])
    return missing + len(tokens)


def _add_tensors(writer: gguf.GGUFWriter, shape: dict[str, Any], tokens: int) -> None:
    hidden, mlp = shape["hidden_size"], shape["intermediate_size"]
    kv_width = shape["num_key_value_heads"] * hidden // shape["num_attention_heads"]
    rng = np.random.default_rng(0)

    def quantized(name: str, n: int, k: int, bits: int = 4, scale: float = 0.005) -> None:
        raw = np.empty((n, k // BLOCK, 2 + BLOCK * bits // 8), np.uint8)
        raw[..., :2] = np.array([scale], np.float16).view(np.uint8)
        raw[..., 2:] = rng.integers(0, 256, raw[..., 2:].shape, dtype=np.uint8)
        kind = gguf.GGMLQuantizationType.Q4_0 if bits == 4 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, raw.reshape(n, -1), raw_dtype=kind)

    def plain(name: str, width: int, value: float) -> None:
        writer.add_tensor(name, np.full(width, value, np.float32))

    quantized("token_embd.weight", tokens, hidden, bits=8, scale=0.0005)
    plain("output_norm.weight", hidden, 1)
    for layer in range(shape["num_hidden_layers"]):
        prefix = f"blk.{layer}."
        for part, width in (("q", hidden), ("k", kv_width), ("v", kv_width)):
            quantized(f"{prefix}attn_{part}.weight", width, hidden)
            plain(f"{prefix}attn_{part}.bias", width, 0)
        quantized(f"{prefix}attn_output.weight", hidden, hidden)
        for part, n, k in (("gate", mlp, hidden), ("up", mlp, hidden), ("down", hidden, mlp)):
            quantized(f"{prefix}ffn_{part}.weight", n, k)
        plain(f"{prefix}attn_norm.weight", hidden, 1)
        plain(f"{prefix}ffn_norm.weight", hidden, 1)
