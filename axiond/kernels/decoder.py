"""
Decoder layers of Llama and Qwen in one function each.

vLLM runs a layer as a dozen modules, which between them make thirty calls into torch. For one token these calls take
longer than many a product. Here a layer makes ten, into the same linear layers and the same attention.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP
from vllm.model_executor.models.qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2MLP
from vllm.model_executor.models.qwen3 import Qwen3Attention, Qwen3DecoderLayer
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from axiond.kernels import _native, active
from axiond.kernels.ops import TYPES

Product = Callable[[Tensor], Tensor]
KNOWN = {
    LlamaDecoderLayer: (LlamaAttention, LlamaMLP),
    Qwen2DecoderLayer: (Qwen2Attention, Qwen2MLP),
    Qwen3DecoderLayer: (Qwen3Attention, Qwen2MLP),
}
SILU = 0
WHAT = "decoder layer"


class Unusual(Exception):
    """Names a part of a layer which is not as it mostly is."""


class Layer:
    """Does what the forward() of one of the `KNOWN` does. Raises Unusual for a layer that does more."""

    def __init__(self, layer: Module, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        require((type(attention), type(mlp)) == KNOWN.get(type(layer)), type(layer).__name__)
        require(type(mlp.act_fn) is SiluAndMul, "its activation")
        self._qkv = product(attention.qkv_proj, QKVParallelLinear)
        self._out = product(attention.o_proj, RowParallelLinear)
        self._gate_up = product(mlp.gate_up_proj, MergedColumnParallelLinear)
        self._down = product(mlp.down_proj, RowParallelLinear)
        self._norm1, self._norm2 = Norm(layer.input_layernorm, dtype), Norm(layer.post_attention_layernorm, dtype)
        self._q_norm = Norm(attention.q_norm, dtype) if hasattr(attention, "q_norm") else None
        self._k_norm = Norm(attention.k_norm, dtype) if hasattr(attention, "k_norm") else None
        self._sizes = (attention.q_size, attention.kv_size, attention.kv_size)
        self._rotate = Rotation(attention.rotary_emb)
        self._attend = Attending(attention.attn)
        self.name: str = attention.attn.layer_name

    def __call__(self, metadata: Any, slots: Tensor, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            # It is added to in place from here on, and what came in may be somebody's buffer.
            residual = hidden.clone()
            hidden = self._norm1(hidden)
        else:
            hidden = self._norm1(hidden, residual)
        q, k, v = self._qkv(hidden).split(self._sizes, dim=-1)
        if self._q_norm and self._k_norm:
            q, k = self._q_norm.of_heads(q), self._k_norm.of_heads(k)
        self._rotate(positions, q, k)
        hidden = self._norm2(self._out(self._attend(metadata, slots, q, k, v)), residual)
        return self._down(silu_and_multiply(self._gate_up(hidden))), residual


class Norm:
    """An RMSNorm."""

    def __init__(self, norm: RMSNorm, dtype: torch.dtype) -> None:
        is_plain = type(norm) is RMSNorm and norm.has_weight and norm.variance_size_override is None
        require(is_plain and norm.weight.dtype == dtype, "a norm")
        self._weight, self._epsilon, self._type = norm.weight.data, norm.variance_epsilon, int(TYPES[dtype])

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Normalize rows of x, or of x + residual, which residual then is."""
        rows, n = x.shape
        out, type_ = torch.empty_like(x), self._type
        to = 0 if residual is None else residual.data_ptr()
        _native.rms_norm(type_, type_, rows, n, x.data_ptr(), 1, n, n, to, n, self._weight.data_ptr(), 0.0, self._epsilon, out.data_ptr())
        return out

    def of_heads(self, x: Tensor) -> Tensor:
        """Normalize each head of rows that may be part of longer rows."""
        rows, width = x.shape
        n = self._weight.shape[0]
        heads = width // n
        out, type_ = x.new_empty(rows, width), self._type
        weight = self._weight.data_ptr()
        _native.rms_norm(
            type_, type_, rows * heads, n, x.data_ptr(), heads, x.stride(0), n, 0, n, weight, 0.0, self._epsilon, out.data_ptr()
        )
        return out


class Rotation:
    """A rotary embedding, in place."""

    def __init__(self, rotary: RotaryEmbedding) -> None:
        require(type(rotary).forward_cpu is RotaryEmbedding.forward_cpu, "its rotary embedding")
        self._rotary, self._head = rotary, rotary.head_size

    def __call__(self, positions: Tensor, q: Tensor, k: Tensor) -> None:
        rotary, head = self._rotary, self._head
        torch.ops._C.rotary_embedding.default(positions, q, k, head, rotary._match_cos_sin_cache_dtype(q), rotary.is_neox_style)


class Attending:
    """Attention over vLLM's paged cache."""

    def __init__(self, attention: Attention) -> None:
        impl = attention.impl
        require(type(attention) is Attention and type(impl) is CPUAttentionBackendImpl, "its attention")
        require(impl.attn_type == AttentionType.DECODER and impl.sinks is None, "its attention")
        require(attention.query_quant is None and attention.kv_sharing_target_layer_name is None, "its attention")
        require(attention.head_size == attention.head_size_v, "its attention")
        self._attention, self._impl = attention, impl
        self._held: Tensor | None = None

    def __call__(self, metadata: Any, slots: Tensor, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attention, impl = self._attention, self._impl
        cache = attention.kv_cache
        if cache is not self._held:
            blocks, heads, block_size, _ = cache.size()
            self._held = cache
            self._keys, self._values = cache.view((blocks, heads, block_size * 2, -1)).chunk(2, dim=2)
        rows, size = q.shape[0], attention.head_size
        k, v = k.view(rows, -1, size), v.view(rows, -1, size)
        scales = (attention._k_scale_float, attention._v_scale_float, impl.kv_cache_dtype)
        torch.ops._C.cpu_attn_reshape_and_cache.default(k, v, self._keys, self._values, slots, attention.isa, *scales)
        out = q.new_empty(q.shape)
        count = metadata.num_actual_tokens
        torch.ops._C.cpu_attention_with_kv_cache.default(
            q[:count].view(count, -1, size), self._keys, self._values, out[:count].view(count, -1, size), metadata.query_start_loc,
            metadata.seq_lens, impl.scale, metadata.causal, impl.alibi_slopes, impl.sliding_window, metadata.block_table,
            impl.logits_soft_cap, metadata.scheduler_metadata, None, metadata.dynamic_causal, *scales,
        )  # fmt: skip
        return out


def silu_and_multiply(x: Tensor) -> Tensor:
    rows, n = x.shape
    half = n // 2
    out = x.new_empty(rows, half)
    at = x.data_ptr()
    _native.gate(int(TYPES[x.dtype]), SILU, rows, half, at, at + half * x.element_size(), n, out.data_ptr())
    return out


def product(linear: Module, expected: type[Module]) -> Product:
    """Call what a linear layer comes down to where nothing is gathered or reduced."""
    require(type(linear) is expected and linear.tp_size == 1 and not linear.skip_bias_add, "a linear layer")
    method, bias = linear.quant_method, linear.bias
    if type(method) is UnquantizedLinearMethod:
        run, weight = linear.cpu_linear, linear.weight
        return lambda x: run(x, weight, bias)
    apply = method.apply
    return lambda x: apply(linear, x, bias)


def require(is_usual: bool, what: str) -> None:
    if not is_usual:
        raise Unusual(what)


def prepare(model: Module, dtype: torch.dtype) -> None:
    """Give the layers of a model, which has its weights and computes in *dtype*, their one function."""
    for module in model.modules():
        if type(module) in KNOWN:
            try:
                module.axiond_layer = Layer(module, dtype)
                active.took(WHAT)
            except Unusual as exc:
                module.axiond_layer = None
                active.left(WHAT, f"{exc} is unusual")


def install() -> None:
    """Have layers use their one function if they have one. Calling it again changes nothing."""
    for known in KNOWN:
        if not hasattr(known.forward, "__axiond__"):
            known.forward = around(known.forward)


def around(stock: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(stock)
    def forward(self: Any, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Any:
        layer: Layer | None = self.__dict__.get("axiond_layer")
        if layer is not None:
            context = get_forward_context()
            # Anything else is a run without a cache, to measure memory, or several batches in one.
            if isinstance(context.attn_metadata, dict):
                name = layer.name
                return layer(context.attn_metadata[name], context.slot_mapping[name], positions, hidden_states, residual)
        return stock(self, positions, hidden_states, residual)

    forward.__axiond__ = True  # type: ignore[attr-defined]
    return forward
