"""Layers with 4-bit weights (AWQ, GPTQ, compressed-tensors W4A16 and W4A8), as vLLM chooses kernels for them."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module, Parameter
from vllm import envs
from vllm.model_executor.kernels.linear import _POSSIBLE_KERNELS, register_linear_kernel
from vllm.model_executor.kernels.linear.mixed_precision import MPLinearKernel, MPLinearLayerConfig
from vllm.platforms import CpuArchEnum, PlatformEnum, current_platform

from axiond.kernels import active, cache
from axiond.kernels.settings import Settings
from axiond.kernels.step import patch
from axiond.kernels.unpack import KINDS, arranged, problem

WHAT = "4-bit weights"


def install(settings: Settings) -> None:
    """Put axiond's kernel before vLLM's."""
    choices = _POSSIBLE_KERNELS[PlatformEnum.CPU]
    ours = AxiondW4A16LinearKernel if settings.w4a8 == "exact" else AxiondW4A8LinearKernel
    if settings.w4a8 != "off" and ours not in choices:
        for kernel in (AxiondRefusal, ours):
            register_linear_kernel(kernel, PlatformEnum.CPU)
            choices.insert(0, choices.pop())


class AxiondW4A8LinearKernel(MPLinearKernel):  # type: ignore[misc]
    """Rounds activations to 8 bits."""

    op: ClassVar = "w4a8"
    is_exact: ClassVar = False

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        reason = cls._reason(c)
        if reason:
            active.left(WHAT, reason)
        return not reason, reason

    @classmethod
    def _reason(cls, c: MPLinearLayerConfig) -> str | None:
        if active.native() is None:
            return "axiond's kernels could not be loaded"
        if reason := problem(str(c.weight_type), c.act_type, c.group_size, c.partition_weight_shape[0]):
            return reason
        if not stock_runs(c):
            return None
        if active.is_better_left(cls.op):
            return "vLLM's kernel is faster on this CPU"
        return "vLLM has a kernel for AMX" if stock_uses_amx(c) and not cls.is_exact else None

    def process_weights_after_loading(self, layer: Module) -> None:
        weight, scales, zero_points = (self._as_stored(layer, name) for name in (self.w_q_name, self.w_s_name, self.w_zp_name))
        ops = active.native()
        assert ops
        self._linear = ops.linear
        self._rhs = cache.packed(layer, (weight, scales, zero_points), lambda: self._pack(ops, weight, scales, zero_points))
        _replace(layer, weight, self._rhs.data)
        for other in (scales, zero_points):
            _replace(layer, other, torch.empty(0))
        active.took(self.op)

    def _pack(self, ops: Any, weight: Any, scales: Any, zero_points: Any) -> Any:
        is_awq = is_packed_along_n(weight)
        found = arranged(
            _turned(weight, weight.input_dim == 1),
            _turned(scales, scales.output_dim == 0),
            _turned(zero_points, zero_points.output_dim == 1) if self.config.zero_points else None,
            self.config.group_size,
            is_awq,
        )
        return ops.pack_q4(found.q, found.scales, found.zero_points, found.group, found.is_awq)

    def apply_weights(self, layer: Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        found: Tensor = self._linear(x, self._rhs, bias, self.is_exact)
        return found

    def _as_stored(self, layer: Module, name: str | None) -> Any:
        return getattr(layer, name or "", None)


class AxiondW4A16LinearKernel(AxiondW4A8LinearKernel):
    """Does not round activations."""

    op: ClassVar = "w4a16"
    is_exact: ClassVar = True


class AxiondRefusal(MPLinearKernel):  # type: ignore[misc]
    """Takes what vLLM would take and then fail at in the first request, and refuses it with words."""

    @classmethod
    def get_min_capability(cls) -> int:
        return -1

    @classmethod
    def can_implement(cls, c: MPLinearLayerConfig) -> tuple[bool, str | None]:
        is_hopeless = str(c.weight_type) in KINDS and not stock_runs(c)
        return is_hopeless, None if is_hopeless else "vLLM has a kernel for it"

    def process_weights_after_loading(self, layer: Module) -> None:
        c = self.config
        reason = AxiondW4A8LinearKernel._reason(c)
        raise ValueError(f"{getattr(layer, 'prefix', 'a layer')} cannot run on this CPU: {reason}, and vLLM has no kernel for it here")

    def apply_weights(self, layer: Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
        raise NotImplementedError


def stock_runs(c: MPLinearLayerConfig) -> bool:
    """Whether vLLM's own kernels can run a layer, which is not the same as that they say so."""
    if str(c.weight_type) == "int4":
        # KleidiAI on ARM; elsewhere torch's plain loop, which knows bfloat16 only with one scale for each channel.
        is_arm = current_platform.get_cpu_architecture() == CpuArchEnum.ARM
        return bool(is_arm or c.act_type == torch.float32 or c.group_size == c.partition_weight_shape[0])
    k, n = c.partition_weight_shape
    group_fits = c.group_size == -1 or c.group_size % 2 == 0
    return bool(hasattr(torch.ops._C, "cpu_gemm_wna16") and k % 32 == 0 and n % 32 == 0 and group_fits)


def stock_uses_amx(c: MPLinearLayerConfig) -> bool:
    is_its = str(c.weight_type) != "int4" and c.act_type == torch.bfloat16 and envs.VLLM_CPU_INT4_W4A8
    return bool(is_its and torch.cpu._is_amx_tile_supported())


def is_packed_along_n(weight: Any) -> bool:
    """Whether a weight is as AWQ's checkpoints have it."""
    return bool(getattr(weight, "packed_dim", None) == weight.output_dim)


def install_awq() -> None:
    """Leave AWQ's layout to axiond's kernel. vLLM would turn it into another one first, through eight bytes for each number."""
    from vllm.model_executor.layers.quantization import auto_awq

    patch(auto_awq, "_convert_awq_to_standard_format", unless_ours)


def unless_ours(stock: Callable[..., None]) -> Callable[..., None]:
    def convert(layer: Module, *args: Any) -> None:
        if not isinstance(getattr(layer.quant_method, "kernel", None), AxiondW4A8LinearKernel):
            stock(layer, *args)

    return convert


def _turned(tensor: Tensor, is_right: bool) -> Tensor:
    return tensor.data if is_right else tensor.data.t()


def _replace(layer: Module, old: Parameter | None, new: Tensor) -> None:
    """Put *new* wherever a layer holds *old*, whose memory is free then. The names stay: LoRA asks them for a device."""
    for name in [name for name, held in layer._parameters.items() if held is old and held is not None]:
        setattr(layer, name, Parameter(new, requires_grad=False))
