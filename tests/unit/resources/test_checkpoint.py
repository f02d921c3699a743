"""What is read from safetensors headers and config.json; files are as small as a header."""

import json
import struct

import pytest

from axiond.resources.checkpoint import Checkpoint, of_config, read_checkpoint

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
}
ATTENTION = 64 * 64 + 2 * 64 * 32 + 64 * 64
LINEAR = ATTENTION + 3 * 64 * 128
TABLE = 100 * 64
SIZES = {"BF16": 2, "F16": 2, "I32": 4, "I8": 1, "I64": 8}


def write(folder, tensors, name="model.safetensors", config=SHAPE):
    (folder / "config.json").write_text(json.dumps(config))
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for tensor, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(text)) + text)


def test_bfloat16_with_tied_table(tmp_path):
    write(
        tmp_path, {"model.embed_tokens.weight": ("BF16", [100, 64]), "a.q_proj.weight": ("BF16", [64, 64]), "norm.weight": ("BF16", [64])}
    )
    found = read_checkpoint(tmp_path)
    assert (found.plain, found.table, found.head, found.other_bytes) == (64 * 64, TABLE, 0, 128)
    assert (found.hidden, found.intermediate, found.vocabulary) == (64, 128, 100)
    assert found.stored_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_awq_counts_eight_numbers_a_word_and_its_group(tmp_path):
    config = SHAPE | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64}}
    tensors = {
        "a.qweight": ("I32", [64, 16]),
        "a.qzeros": ("I32", [1, 16]),
        "a.scales": ("F16", [1, 128]),
        "lm_head.weight": ("F16", [100, 64]),
    }
    write(tmp_path, tensors, config=config)
    found = read_checkpoint(tmp_path)
    assert (found.rounded, found.group, found.head, found.other_bytes) == (64 * 128, 64, TABLE, 0)


def test_compressed_tensors_of_both_kinds(tmp_path):
    config = SHAPE | {"quantization_config": {"config_groups": {"g": {"weights": {"group_size": 32}}}}}
    tensors = {
        "a.weight_packed": ("I32", [128, 8]), "a.weight_shape": ("I64", [2]), "a.weight_scale": ("BF16", [128, 2]),
        "b.weight": ("I8", [128, 64]), "b.weight_scale": ("BF16", [128, 2]), "c.weight": ("I8", [10, 10]),
    }  # fmt: skip
    write(tmp_path, tensors, config=config)
    found = read_checkpoint(tmp_path)
    assert (found.rounded, found.group, found.other_bytes) == (2 * 64 * 128, 32, 100)


def test_shards_are_added_and_duplicates_in_another_format_are_not(tmp_path):
    write(tmp_path, {"a.weight": ("BF16", [64, 64])}, "model-00001-of-00002.safetensors")
    write(tmp_path, {"b.weight": ("BF16", [64, 64])}, "model-00002-of-00002.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 10_000)
    assert read_checkpoint(tmp_path).plain == 2 * 64 * 64


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, (LINEAR, 0, TABLE, TABLE)),
        ({"tie_word_embeddings": True}, (LINEAR, 0, TABLE, 0)),
        ({"quantization_config": {"group_size": 64}}, (0, LINEAR, TABLE, TABLE)),
        ({"num_experts": 4, "moe_intermediate_size": 32}, (ATTENTION + 4 * 3 * 64 * 32 + 4 * 64, 0, TABLE, TABLE)),
    ],
    ids=["plain", "tied", "rounded", "experts"],
)
def test_without_weights_the_config_tells(extra, expected):
    found = of_config(SHAPE | extra)
    assert (found.plain, found.rounded, found.table, found.head) == expected


def test_text_model_inside_another(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": SHAPE | {"tie_word_embeddings": True}}))
    assert read_checkpoint(tmp_path).plain == LINEAR


def test_encoders_have_no_kv_cache(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SHAPE | {"architectures": ["BertModel"]}))
    assert not read_checkpoint(tmp_path).has_kv_cache


@pytest.mark.parametrize("config", ["", "[]", "{", '{"hidden_size": "x", "architectures": null, "quantization_config": 3}'])
def test_broken_files_count_nothing(tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    for name, data in (("a", b""), ("b", b"\xff" * 20), ("c", struct.pack("<Q", 2) + b"[]"), ("d", struct.pack("<Q", 9) + b'{"a": 12}')):
        (tmp_path / f"{name}.safetensors").write_bytes(data)
    assert read_checkpoint(tmp_path).plain == 0


def test_an_unknown_format_counts_what_is_stored(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    assert read_checkpoint(tmp_path) == Checkpoint(stored_bytes=1000)
