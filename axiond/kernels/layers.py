"""vLLM's norms, gated activations and rotary embeddings in eager mode, one kernel each. Under torch.compile they are vLLM's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from vllm.config import CompilationMode, get_cached_compilation_config
from vllm.model_executor.custom_op import CustomOp, op_registry_oot
from vllm.model_executor.layers.activation import GeluAndMul, SiluAndMul
from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from axiond.kernels import active, small

GELUS = {"none": small.GELU, "tanh": small.GELU_TANH}


def install() -> None:
    """Have these classes made in place of vLLM's. Calling it again changes nothing."""
    ours = {RMSNorm: AxiondRMSNorm, GemmaRMSNorm: AxiondGemmaRMSNorm, SiluAndMul: AxiondSiluAndMul, GeluAndMul: AxiondGeluAndMul}
    for stock, replacement in ours.items():
        register(stock, replacement)
    for stock in (RotaryEmbedding, *RotaryEmbedding.__subclasses__()):  # which differ in their angles only
        if all(getattr(stock, name) is getattr(RotaryEmbedding, name) for name in ("forward", "forward_cpu", "forward_native")):
            register(stock, type(f"Axiond{stock.__name__}", (Rotating, stock), {}))


def register(stock: type[CustomOp], ours: type[CustomOp]) -> None:
    if stock.__name__ not in op_registry_oot:
        CustomOp.register_oot(ours, name=stock.__name__)
        ours.name = stock.name  # so that custom_ops still says +rms_norm


class Counted:
    """Tells `active` of each layer that is made."""

    name: str

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if get_cached_compilation_config().mode == CompilationMode.NONE:
            active.took(self.name)
        else:
            active.left(self.name, "torch.compile makes code of it")


class AxiondRMSNorm(Counted, RMSNorm):  # type: ignore[misc]
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if torch.compiler.is_compiling() or self.variance_size_override is not None:
            return super().forward(x, residual)
        # Not self.weight: Module.__getattr__ takes longer than the kernel.
        weight = self._parameters["weight"] if self.has_weight else None
        if residual is None:
            return small.rms_norm(x, weight, self.variance_epsilon)
        if not (x.is_contiguous() and residual.is_contiguous()):
            return small.add_rms_norm(x, residual, weight, self.variance_epsilon)
        small.add_rms_norm_(x, residual, weight, self.variance_epsilon)  # in place, as vLLM's own may be
        return x, residual


class AxiondGemmaRMSNorm(Counted, GemmaRMSNorm):  # type: ignore[misc]
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        if torch.compiler.is_compiling():
            return super().forward(x, residual)
        weight = self._parameters["weight"]
        if residual is None:
            return small.rms_norm(x, weight, self.variance_epsilon, 1.0)
        return small.add_rms_norm(x, residual, weight, self.variance_epsilon, 1.0)


class AxiondSiluAndMul(Counted, SiluAndMul):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            stock: Tensor = super().forward(x)
            return stock
        return small.gate(x, small.SILU)


class AxiondGeluAndMul(Counted, GeluAndMul):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            stock: Tensor = super().forward(x)
            return stock
        return small.gate(x, GELUS[self.approximate])


class Rotating(Counted):
    """Goes before any kind of rotary embedding."""

    head_size: int
    is_neox_style: bool
    _match_cos_sin_cache_dtype: Callable[[Tensor], Tensor]

    def forward(self, positions: Tensor, query: Tensor, key: Tensor | None = None) -> Any:
        if not torch.compiler.is_compiling():
            try:
                small.rotary_(positions, query, key, self.head_size, self._match_cos_sin_cache_dtype(query), self.is_neox_style)
            except ValueError:  # a shape that is vLLM's to judge; nothing has been turned yet
                pass
            else:
                return query, key
        return super().forward(positions, query, key)  # type: ignore[misc]
