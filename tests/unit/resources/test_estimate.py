"""Predictions: the arithmetic of each part, and what measuring changes."""

import pytest

from axiond.manifest.spec import ModelSpec
from axiond.resources.checkpoint import Checkpoint
from axiond.resources.estimate import COMPILING_BYTES, EXECUTED, FORKED, PACKING_BYTES, Prediction, predict, together_bytes
from axiond.resources.measured import NEVER, Measured
from axiond.resources.sums import REMEDY, node_refusal, refusal

GIB, MIB = 2**30, 2**20
PLAIN = Checkpoint(plain=1000 * MIB, table=100 * MIB, other_bytes=MIB, span=MIB, hidden=1024, intermediate=4096, vocabulary=50_000)
ROUNDED = Checkpoint(rounded=1000 * MIB, table=100 * MIB, head=100 * MIB, group=128, hidden=1024, intermediate=4096, vocabulary=50_000)


def of(checkpoint=PLAIN, measured=NEVER, **spec):
    return predict(ModelSpec.model_validate({"source": "/m", **spec}), checkpoint, measured)


@pytest.mark.parametrize(
    ("checkpoint", "spec", "expected_mib"),
    [
        (PLAIN, {}, 2000 + 200 + 100 + 100 + 1),
        (PLAIN, {"kernels": {"lm_head": "none"}}, 2000 + 200 + 200 + 100 + 1),
        (PLAIN, {"kernels": {"lm_head": "int4"}}, 2000 + 200 + 62.5 + 100 + 1),
        (PLAIN, {"dtype": "float32"}, 4000 + 400 + 100 + 100 + 1),
        (PLAIN, {"lora": {"x": "/x"}}, 2000 + 200 + 200 + 100 + 1 + 2 * 16 * 2),
        (ROUNDED, {}, 531.25 + 400 + 100 + 100),
        (ROUNDED, {"kernels": "off"}, 1000 + 400 + 200),
        (Checkpoint(rounded=1000 * MIB, group=64), {}, 562.5),
        (Checkpoint(rounded=1000 * MIB, group=32), {}, 625),
        (Checkpoint(stored_bytes=7 * MIB), {}, 7),
        (None, {}, 0),
    ],
    ids=["bf16", "no-head-copy", "int4-head", "float32", "adapter", "q4-128", "stock", "q4-64", "q4-32", "other-format", "not-fetched"],
)
def test_weights(checkpoint, spec, expected_mib):
    assert of(checkpoint, **spec).weights_bytes == pytest.approx(expected_mib * MIB, abs=2)


def test_kv_cache_is_each_workers_and_none_of_an_encoder():
    assert of(kv_cache="2GiB").kv_cache_bytes == 2 * GIB
    assert of(kv_cache="2GiB", engine_args={"tensor-parallel-size": 2}).kv_cache_bytes == 4 * GIB
    assert of(Checkpoint(plain=1, has_kv_cache=False), kv_cache="2GiB").kv_cache_bytes == 0


def test_activations_grow_with_the_tokens_of_a_step():
    small, large = (of(chunked_prefill={"max_num_batched_tokens": tokens}).activations_bytes for tokens in (4096, 8192))
    assert large == 2 * small
    assert of(chunked_prefill={"enabled": False}, max_model_len=8192).activations_bytes == large


def test_processes():
    spec = ModelSpec(source="/m")
    assert predict(spec, None, processes=EXECUTED).fixed_bytes > predict(spec, None, processes=FORKED).fixed_bytes
    two = of(engine_args={"tensor_parallel_size": 2}).fixed_bytes - of().fixed_bytes
    assert two == FORKED.worker_bytes + FORKED.apart_bytes
    assert of(kernels="off").fixed_bytes == of().fixed_bytes + FORKED.apart_bytes - PACKING_BYTES
    assert of(enforce_eager=False).fixed_bytes - of().fixed_bytes == COMPILING_BYTES


def test_the_peak_is_while_loading_only_if_little_else_is_there():
    assert (
        of(kv_cache="64MiB", max_num_seqs=1, chunked_prefill={"max_num_batched_tokens": 1}).peak_bytes
        >= of(kv_cache="64MiB").steady_bytes - GIB
    )
    roomy = of(kv_cache="4GiB")
    assert roomy.peak_bytes == roomy.steady_bytes


def test_what_was_measured_counts_and_activations_come_on_top():
    measured = Measured(ready_bytes=5 * GIB, load_peak_bytes=6 * GIB, most_bytes=5 * GIB, load_s=4.0)
    found = of(measured=measured)
    assert found.steady_bytes == 5 * GIB + found.activations_bytes
    assert found.peak_bytes == 6 * GIB
    assert found.load_s == 4.0
    assert of(measured=Measured(5 * GIB, 5 * GIB, 9 * GIB)).steady_bytes == 9 * GIB


def test_a_measurement_cannot_take_back_a_kv_cache_that_was_not_touched_yet():
    found = of(measured=Measured(GIB, GIB, GIB), kv_cache="8GiB")
    assert found.steady_bytes > 8 * GIB


def test_the_ceiling_is_half_more_than_expected_and_a_leak_does_not_raise_it():
    expected = of().ceiling_bytes(None)
    assert expected == int(1.5 * of().peak_bytes)
    assert of().ceiling_bytes(7) == 7
    ready = of(measured=Measured(5 * GIB, 5 * GIB, 5 * GIB)).ceiling_bytes(None)
    assert of(measured=Measured(5 * GIB, 5 * GIB, 50 * GIB)).ceiling_bytes(None) == ready


def test_together_is_what_all_hold_and_the_largest_load():
    a, b = Prediction(fixed_bytes=3, load_bytes=1), Prediction(fixed_bytes=4, load_bytes=5)
    assert together_bytes([a, b, a]) == 10 + 5
    assert together_bytes([]) == 0


def test_a_refusal_shows_the_sum_and_what_to_do():
    a, b = Prediction(weights_bytes=GIB, kv_cache_bytes=2 * GIB, fixed_bytes=GIB), Prediction(fixed_bytes=GIB, load_bytes=GIB // 2)
    assert refusal({"a": (1, a), "b": (2, b)}, 7 * GIB) is None
    assert refusal({"a": (1, a), "b": (2, b)}, 5 * GIB) == (
        "does not fit: 1.5 GiB more than the memory budget of 5.0 GiB\n"
        "  a: 4.0 GiB: weights 1.0 + KV cache 2.0 + processes 1.0\n"
        "  b: 2 x 1.0 GiB: processes 1.0\n"
        "  while one of them loads: 0.5 GiB more\n"
        f"  together: 6.5 GiB\n{REMEDY}"
    )


def test_a_numa_node_has_to_hold_weights_and_kv_cache():
    needs = {"a": (1, Prediction(weights_bytes=GIB, kv_cache_bytes=2 * GIB, fixed_bytes=9 * GIB))}
    assert node_refusal(needs, 3 * GIB) is None
    assert node_refusal(needs, 2 * GIB) == "a needs 3.0 GiB on one NUMA node for weights and KV cache, and the largest has 2.0 GiB"
