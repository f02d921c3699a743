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
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear, UnquantizedLinearMethod
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaMLP
from vllm.model_executor.models.qwen2 import Qwen2Attention, Qwen2DecoderLayer, Qwen2MLP
from vllm.model_executor.models.qwen3 import Qwen3Attention, Qwen3DecoderLayer
from vllm.v1.attention.backend import AttentionType
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackendImpl

from axiond.kernels import active, small
from axiond.kernels.layers import AxiondRMSNorm, AxiondSiluAndMul, Rotating

Product = Callable[[Tensor], Tensor]
KNOWN = {
    LlamaDecoderLayer: (LlamaAttention, LlamaMLP),
    Qwen2DecoderLayer: (Qwen2Attention, Qwen2MLP),
    Qwen3DecoderLayer: (Qwen3Attention, Qwen2MLP),
}
WHAT = "decoder layer"


class Unusual(Exception):
    """Names a part of a layer which is not as it mostly is."""


class Layer:
    """Does what the forward() of one of the `KNOWN` does. Raises Unusual for a layer that does more."""

    def __init__(self, layer: Module, dtype: torch.dtype) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        require((type(attention), type(mlp)) == KNOWN.get(type(layer)), type(layer).__name__)
        require(type(mlp.act_fn) is AxiondSiluAndMul, "its activation")
        self._qkv = product(attention.qkv_proj, QKVParallelLinear)
        self._out = product(attention.o_proj, RowParallelLinear)
        self._gate_up = product(mlp.gate_up_proj, MergedColumnParallelLinear)
        self._down = product(mlp.down_proj, RowParallelLinear)
        self._norm1, self._norm2 = norm(layer.input_layernorm, dtype), norm(layer.post_attention_layernorm, dtype)
        self._q_norm, self._k_norm = head_norm(attention, "q_norm", dtype), head_norm(attention, "k_norm", dtype)
        self._sizes, self._head = (attention.q_size, attention.kv_size, attention.kv_size), attention.head_dim
        self._rotary = attention.rotary_emb
        require(isinstance(self._rotary, Rotating), "its rotary embedding")
        self._attend = Attending(attention.attn)
        self.name: str = attention.attn.layer_name

    def __call__(self, metadata: Any, slots: Tensor, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if residual is None:
            # It is added to in place from here on, and what came in may be somebody's buffer.
            residual = hidden.clone()
            hidden = small.rms_norm(hidden, *self._norm1)
        else:
            small.add_rms_norm_(hidden, residual, *self._norm1)
        q, k, v = self._qkv(hidden).split(self._sizes, dim=-1)
        if self._q_norm and self._k_norm:
            q, k = (small.rms_norm(x.view(len(x), -1, self._head), *by).view(x.shape) for x, by in ((q, self._q_norm), (k, self._k_norm)))
        rotary = self._rotary
        small.rotary_(positions, q, k, self._head, rotary._match_cos_sin_cache_dtype(q), rotary.is_neox_style)
        hidden = self._out(self._attend(metadata, slots, q, k, v))
        small.add_rms_norm_(hidden, residual, *self._norm2)
        return self._down(small.gate(self._gate_up(hidden), small.SILU)), residual


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


def norm(module: Module, dtype: torch.dtype) -> tuple[Tensor, float]:
    require(type(module) is AxiondRMSNorm and module.has_weight and module.variance_size_override is None, "a norm")
    require(module.weight.dtype == dtype, "a norm")
    return module.weight.data, module.variance_epsilon


def head_norm(attention: Module, name: str, dtype: torch.dtype) -> tuple[Tensor, float] | None:
    module = getattr(attention, name, None)
    return norm(module, dtype) if module else None


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
