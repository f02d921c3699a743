"""vLLM's norms, gated activations, rotary embeddings and sampler in eager mode with axiond's kernels, beside their own code."""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Module

from axiond.kernels import active, fused

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

SIZE, HEAD = 192, 64
BF16_ULP = 2.0**-7


@pytest.fixture(scope="module", autouse=True)
def _vllm() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("AXIOND_FORCE_ISA", "portable")  # taken on every CPU, and equal to the others to the last bit
        fused.install()
        from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config
        from vllm.platforms import current_platform

        current_platform.import_kernels()
        config = VllmConfig(compilation_config=CompilationConfig(mode=0))
        config.kernel_config.ir_op_priority.set_default()
        with set_current_vllm_config(config):
            yield


def made(name: str, *args: Any, **kwargs: Any) -> Module:
    from vllm.model_executor.layers import activation, layernorm

    stock = getattr(layernorm, name, None) or getattr(activation, name)
    module: Module = stock(*args, **kwargs)
    assert type(module).__name__ == f"Axiond{name}"
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    return module.bfloat16()


def assert_close(ours: Any, stock: Any) -> None:
    """vLLM's own code rounds three times where the kernels round once."""
    for one, other in zip(*((x,) if isinstance(x, Tensor) else x for x in (ours, stock)), strict=True):
        assert ((one.double() - other.double()).abs() <= 2 * BF16_ULP * other.double().abs() + 1e-6).all()


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("RMSNorm", (SIZE,)), ("GemmaRMSNorm", (SIZE,)), ("SiluAndMul", ()), ("GeluAndMul", ("none",)), ("GeluAndMul", ("tanh",))],
)
def test_a_layer_answers_as_vllms_own(name: str, arguments: tuple[Any, ...], rows: int) -> None:
    layer = made(name, *arguments)
    x, residual = torch.randn(rows, SIZE).bfloat16(), torch.randn(rows, SIZE).bfloat16()
    assert_close(layer(x), layer.forward_native(x.clone()))
    if name.endswith("Norm"):
        assert_close(layer(x.clone(), residual.clone()), layer.forward_native(x.clone(), residual.clone()))


@pytest.mark.parametrize(("mode", "place"), [(0, "ops"), (3, "left")], ids=["eager", "compiled"])
def test_a_layer_is_counted_where_it_runs(mode: int, place: str) -> None:
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    def counted() -> dict[str, int]:
        report = active.report()
        found = {"ops": [(each["op"], each["layers"]) for each in report["ops"]]}
        found["left"] = [(each["what"], each["layers"]) for each in report["left"]]
        return {name: dict(each).get("rms_norm", 0) for name, each in found.items()}

    before = counted()
    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=mode))):
        made("RMSNorm", SIZE)
    assert counted() == before | {place: before[place] + 1}


def test_a_norm_of_the_heads_in_a_merged_row_leaves_the_row() -> None:
    layer, merged = made("RMSNorm", HEAD), torch.randn(5, 3 * SIZE).bfloat16()
    heads, before = merged[:, :SIZE].view(5, -1, HEAD), merged.clone()
    assert_close(layer(heads), layer.forward_native(heads.clone()))
    assert torch.equal(merged, before)


def test_the_variance_of_a_part_is_left_to_vllm() -> None:
    layer, x = made("RMSNorm", SIZE, var_hidden_size=64), torch.randn(3, SIZE).bfloat16()
    assert torch.equal(layer(x), layer.forward_native(x))


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("scaling", [
    {"rope_type": "default"},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512},
], ids=["plain", "llama3"])  # fmt: skip
def test_rotary_embeddings_turn_as_vllms_own(is_neox: bool, scaling: dict[str, Any]) -> None:
    from vllm.model_executor.layers.rotary_embedding import get_rope

    rope = get_rope(HEAD, 4096, is_neox_style=is_neox, dtype=torch.bfloat16, rope_parameters={"rope_theta": 10000.0, **scaling})
    assert type(rope).__name__.startswith("Axiond")
    positions, query, key = torch.randint(4096, (9,)), torch.randn(9, 4 * HEAD).bfloat16(), torch.randn(9, HEAD).bfloat16()
    stock = rope.forward_native(positions, query.float(), key.float())
    for ours, other in zip(rope(positions, query, key), stock, strict=True):
        # A cosine times one element may cancel a sine times the other: the rounding is of the pair's size.
        assert ((ours.double() - other.double()).abs() <= 2 * BF16_ULP * 6).all()
        assert (ours.double() - other.double()).abs().mean() < 0.005


@pytest.mark.parametrize("vocabulary", [1000, 49152])
@pytest.mark.parametrize("has", ["k", "p", "kp"])
def test_the_sampler_masks_as_vllms_own(vocabulary: int, has: str) -> None:
    from vllm.v1.sample import sampler  # brings ours
    from vllm.v1.sample.ops import topk_topp_sampler

    from axiond.kernels import sampling

    assert sampler
    logits = torch.randn(4, vocabulary) * 4
    k = torch.tensor([1, 20, 50, vocabulary], dtype=torch.int32) if "k" in has else None
    p = torch.tensor([0.5, 0.8, 0.95, 0.99]) if "p" in has else None
    assert topk_topp_sampler.apply_top_k_top_p_pytorch is sampling.top_k_top_p
    ours = topk_topp_sampler.apply_top_k_top_p(logits.clone(), k, p)
    stock = sampling._stock_top_k_top_p(logits.clone(), k, p)
    # vLLM sums the probabilities in single precision, so at the cut it may err by a few of the least likely tokens.
    assert (ours.isneginf() != stock.isneginf()).sum(1).max() <= (2 if p is not None and k is None else 0)
    assert torch.equal(ours[~ours.isneginf()], logits[~ours.isneginf()])


def test_greedy_sampling_and_log_probabilities_are_vllms_own() -> None:
    from vllm.v1.sample.sampler import Sampler

    logits = torch.randn(3, 49152).bfloat16().float()
    assert torch.equal(Sampler.greedy_sample(logits), logits.argmax(1))
    torch.testing.assert_close(Sampler.compute_logprobs(logits), logits.log_softmax(1), rtol=1e-5, atol=1e-5)
