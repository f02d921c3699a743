"""
vLLM's own layers, one at a time and without an engine, loaded from each format of checkpoint: what they answer with axiond's
kernels, and what becomes of layers that these cannot take.
"""

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from axiond.kernels import active, plugin, reference
from axiond.kernels.unpack import kernel_group
from bench import int4

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

K, N = 512, 208
FLOATS = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-20}


@pytest.fixture(scope="module", autouse=True)
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """vLLM in this process, with the plugin. Whatever this CPU has better, the portable kernels are what is asked here."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("AXIOND_FORCE_ISA", "portable")
        patch.delenv("AXIOND_KERNELS", raising=False)
        plugin.register()
        importlib.import_module("vllm.model_executor.layers.linear")  # as every model does
        from vllm.config import VllmConfig, set_current_vllm_config
        from vllm.distributed import parallel_state

        with set_current_vllm_config(VllmConfig()):
            meeting = f"file://{tmp_path_factory.mktemp('vllm')}/meeting"
            parallel_state.init_distributed_environment(1, 0, meeting, 0, "gloo")
            parallel_state.initialize_model_parallel()
            yield
            parallel_state.destroy_model_parallel()
            parallel_state.destroy_distributed_environment()


def weights(group_size: int, rounding: Callable[[Tensor, int], int4.Rounded], k: int = K, n: int = N) -> int4.Rounded:
    return rounding(torch.randn(n, k, generator=torch.Generator().manual_seed(0)) / 8, k if group_size == -1 else group_size)


def awq(group_size: int) -> Any:
    from vllm.model_executor.layers.quantization.auto_awq import AutoAWQConfig

    return AutoAWQConfig(4, group_size, True, False, [])


def gptq(group_size: int) -> Any:
    from vllm.model_executor.layers.quantization.auto_gptq import AutoGPTQConfig

    return AutoGPTQConfig(4, group_size, False, True, False, {}, {}, [])


def compressed(bits: int, *, is_symmetric: bool = True) -> Callable[[int], Any]:
    def config(group_size: int) -> Any:
        from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig

        strategy = {"strategy": "channel"} if group_size == -1 else {"strategy": "group", "group_size": group_size}
        tensor = {"num_bits": 4, "type": "int", "symmetric": is_symmetric, "dynamic": False, **strategy}
        inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True} if bits == 8 else None
        return CompressedTensorsConfig.from_config({
            "format": "int-quantized" if bits == 8 else "pack-quantized", "ignore": [],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": tensor, "input_activations": inputs}},
        })  # fmt: skip

    return config


def compressed_asymmetric(weight: int4.Rounded) -> dict[str, Tensor]:
    return int4.compressed_tensors(weight) | {"weight_zero_point": int4.pack(weight.zero.T).T.contiguous()}


FORMATS: dict[str, tuple[Callable[[int], Any], int4.Layout, Callable[[Tensor, int], int4.Rounded]]] = {
    "awq": (awq, int4.awq, int4.round_asymmetric),
    "gptq": (gptq, int4.gptq, int4.round_symmetric),
    "w4a16": (compressed(16), int4.compressed_tensors, int4.round_symmetric),
    "w4a16 with zero points": (compressed(16, is_symmetric=False), compressed_asymmetric, int4.round_asymmetric),
    "w4a8": (compressed(8), int4.compressed_tensors_int8, int4.round_symmetric),
}


def loaded(form: str, group_size: int, weight: int4.Rounded, dtype: torch.dtype, bias: Tensor | None = None) -> Any:
    """A layer of vLLM with a checkpoint's tensors in it, as it is before the first request."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    config, layout, _ = FORMATS[form]
    n, k = weight.q.shape
    layer = ReplicatedLinear(
        k, n, bias=bias is not None, params_dtype=dtype, quant_config=config(group_size), prefix="model.proj", disable_tp=True
    )
    names = {"weight": "weight_packed"} if form == "w4a8" else {}
    for name, tensor in layout(weight).items():
        if name != "g_idx":
            getattr(layer, names.get(name, name)).data.copy_(tensor)
    if bias is not None:
        layer.bias.data.copy_(bias)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def held_scales(weight: int4.Rounded, form: str, dtype: torch.dtype) -> Tensor:
    """A checkpoint's scales are rounded as its format says, and once more by vLLM to the model's type."""
    stored = weight.scale.half() if form in ("awq", "gptq") else weight.scale.bfloat16()
    return stored.to(dtype)


# vLLM refuses GPTQ in groups of 256, for a GPU kernel's sake.
CELLS = [(form, group_size) for form in FORMATS for group_size in (32, 64, 128, 256, -1) if (form, group_size) != ("gptq", 256)]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize(("form", "group_size"), CELLS)
def test_a_layer_computes_what_its_checkpoint_says(form: str, group_size: int, dtype: torch.dtype) -> None:
    """Against double precision with the same rounding of activations; the tolerance is one rounding of the answer and its terms."""
    weight = weights(group_size, FORMATS[form][2])
    random = torch.Generator().manual_seed(1)
    bias = torch.randn(N, generator=random).to(dtype)
    layer = loaded(form, group_size, weight, dtype, bias)
    x = torch.randn(2, 3, K, generator=random).to(dtype)
    got, _ = layer(x)
    group = kernel_group(group_size, K)
    assert group
    scales = held_scales(weight, form, dtype)
    times = K // group // scales.shape[1]
    parts = (weight.q, scales.repeat_interleave(times, 1), weight.zero.repeat_interleave(times, 1))
    want = reference.w4a8(x.flatten(0, 1), *parts, group, bias)
    magnitude = x.flatten(0, 1).double().abs() @ reference.dequantize(*parts, group).abs().T
    bound = FLOATS[dtype] * want.abs() + 2**-20 * magnitude
    assert got.shape == (2, 3, N)
    assert got.dtype == dtype
    assert ((got.flatten(0, 1).double() - want).abs() <= bound).all()


def kernel_of(layer: Any) -> str:
    method = layer.quant_method
    return type(getattr(method, "kernel", None) or layer.scheme.kernel).__name__


def test_packed_weights_take_the_place_of_the_checkpoints() -> None:
    """The names stay, because LoRA asks them for a device; their memory does not."""
    layer = loaded("awq", 64, weights(64, int4.round_asymmetric), torch.bfloat16)
    sizes = {name: parameter.numel() * parameter.element_size() for name, parameter in layer.named_parameters()}
    headers = 64 / (64 * 16 / 2)
    assert sizes == {"qweight": K * N / 2 * (1 + headers), "qzeros": 0, "scales": 0}


def test_what_only_vllm_can_run_is_left_to_it() -> None:
    """Groups of 48 do not fit panels of 32."""
    weight = weights(48, int4.round_asymmetric, k=96, n=64)
    layer = loaded("awq", 48, weight, torch.bfloat16)
    assert kernel_of(layer) == "CPUWNA16LinearKernel"
    assert {"what": "4-bit weights", "reason": "its group size 48 is no multiple of 32", "layers": 1} in active.report()["left"]
    x = torch.randn(2, 96).bfloat16()
    want = reference.matmul(x, reference.dequantize(weight.q, held_scales(weight, "awq", torch.bfloat16), weight.zero, 48))
    assert (layer(x)[0].double() - want).norm() <= 0.01 * want.norm()


BAD: dict[str, tuple[str, int, int, str]] = {
    "inputs": ("gptq", -1, 80, "its 80 inputs share one scale, but are no multiple of 32"),
    "group": ("w4a8", 48, 96, "its group size 48 is no multiple of 32"),
    "columns": ("awq", 48, 96, "its group size 48 is no multiple of 32"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
def test_what_nobody_can_run_is_refused_by_name(case: tuple[str, int, int, str]) -> None:
    """vLLM says that it can run all of these, and fails in the first request, or even without words."""
    form, group_size, k, reason = case
    weight = weights(group_size, FORMATS[form][2], k=k, n=40)
    with pytest.raises(ValueError, match=f"^model.proj cannot run on this CPU: {reason}, and vLLM has no kernel for it here$"):
        loaded(form, group_size, weight, torch.bfloat16)


def plain_layer(k: int, dtype: torch.dtype) -> tuple[Any, Tensor, Tensor]:
    """A layer of vLLM after loading, and the weight and bias that went into it."""
    from vllm.model_executor.layers.linear import ReplicatedLinear

    random = torch.Generator().manual_seed(2)
    layer = ReplicatedLinear(k, N, params_dtype=dtype, disable_tp=True)
    weight, bias = torch.randn(N, k, generator=random).to(dtype), torch.randn(N, generator=random).to(dtype)
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    layer.quant_method.process_weights_after_loading(layer)
    return layer, weight, bias


def test_a_bfloat16_layer_is_packed_and_its_weight_freed() -> None:
    layer, weight, bias = plain_layer(K, torch.bfloat16)
    x = torch.randn(2, 3, K).bfloat16()
    want = reference.matmul(x.flatten(0, 1), weight, bias)
    magnitude = x.flatten(0, 1).double().abs() @ weight.double().abs().T
    assert ((layer(x)[0].flatten(0, 1).double() - want).abs() <= 2**-8 * want.abs() + 2**-15 * magnitude).all()
    assert layer.weight.numel() == 0


@pytest.mark.parametrize(
    ("k", "dtype", "reason"),
    [(80, torch.bfloat16, "its 80 inputs are no multiple of 32"), (64, torch.float32, "its weights are torch.float32")],
    ids=["inputs", "type"],
)
def test_other_plain_layers_are_vllms(k: int, dtype: torch.dtype, reason: str) -> None:
    layer, weight, bias = plain_layer(k, dtype)
    x = torch.randn(4, k).to(dtype)
    want = reference.matmul(x, weight, bias)
    assert (layer(x)[0].double() - want).norm() <= 0.01 * want.norm()
    assert {"what": "bfloat16 weights", "reason": reason, "layers": 1} in active.report()["left"]


def test_an_output_layer_and_the_table_it_is_tied_to_share_one_packed_copy() -> None:
    """300 words: the padding to 320 answers 0. Looking up is exact still, and so are the highest logits."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    from axiond.kernels.head import AGAIN

    table = torch.randn(300, 128, generator=torch.Generator().manual_seed(3)).bfloat16()
    embedding = VocabParallelEmbedding(300, 128, params_dtype=torch.bfloat16)
    embedding.weight_loader(embedding.weight, table)
    head = ParallelLMHead(300, 128, params_dtype=torch.bfloat16).tie_weights(embedding)
    before = active.report()
    for layer in (embedding, head):
        layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(5, 128).bfloat16()
    logits = head.quant_method.apply(head, x)
    q, scales = reference.round_int8(table)
    rounded, exact = reference.w8a8(x, q, scales, 128), reference.matmul(x, table)
    want = torch.where(rounded >= rounded.topk(AGAIN).values[:, -1:], exact, rounded)
    assert ((logits[:, :300].double() - want).abs() <= 2**-8 * want.abs() + 1e-5).all()
    assert not logits[:, 300:].any()
    assert torch.equal(logits, embedding.quant_method.apply(embedding, x))
    assert torch.equal(embedding(torch.arange(300)), table)
    assert heads(active.report()) == heads(before) + 1


def test_a_table_that_is_tied_is_kept_once() -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    importlib.import_module("vllm.model_executor.model_loader")  # as every engine does
    from axiond.kernels.loader import tables

    embedding = VocabParallelEmbedding(8192, 128, params_dtype=torch.bfloat16)
    tied, other = (ParallelLMHead(8192, 128, params_dtype=torch.bfloat16) for _ in range(2))
    tied.tie_weights(embedding)
    assert list(tables(torch.nn.ModuleDict({"embedding": embedding, "tied": tied}))) == ["embedding.weight"]
    assert list(tables(torch.nn.ModuleDict({"embedding": embedding, "other": other}))) == ["embedding.weight", "other.weight"]


def test_padding_is_not_taken_for_the_likeliest_words() -> None:
    """257 words: the padding to 320 answers 0, and every word less, as with GPT-2 and others."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    table = -torch.rand(257, 128, generator=torch.Generator().manual_seed(4)).half()
    table[:, 0] = 8  # widens the steps of 8 bits, and is multiplied by nothing
    head = ParallelLMHead(257, 128, params_dtype=torch.float16)
    head.weight_loader(head.weight, table)
    head.quant_method.process_weights_after_loading(head)
    x = torch.rand(5, 128, generator=torch.Generator().manual_seed(5)).half()
    x[:, 0] = 0
    exact = reference.matmul(x, table)
    is_exact = (head.quant_method.apply(head, x)[:, :257].double() - exact).abs() <= 2**-11 * exact.abs()
    assert is_exact.gather(1, exact.argmax(1, keepdim=True)).all()
    assert not is_exact.all()


def heads(report: dict[str, Any]) -> int:
    return sum(op["layers"] for op in report["ops"] if op["op"] == "lm_head int8")


def test_registering_again_changes_nothing() -> None:
    from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS
    from vllm.model_executor.layers import utils
    from vllm.platforms import PlatformEnum

    before = list(_POSSIBLE_KERNELS[PlatformEnum.CPU]), utils.dispatch_cpu_unquantized_gemm, list(sys.meta_path)
    plugin.register()
    assert (_POSSIBLE_KERNELS[PlatformEnum.CPU], utils.dispatch_cpu_unquantized_gemm, sys.meta_path) == before
