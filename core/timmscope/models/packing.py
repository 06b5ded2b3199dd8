"""Convolutions on a CPU that reorder their weights once instead of at every call, for speed.

At each call PyTorch reorders a convolution's weights into the layout of the processor's kernels.
For a few small images that takes as long as the arithmetic. A packed convolution does it at the
first call without a graph, and again if the weights have changed. If a derivative is needed, it
runs like `nn.Conv2d`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional


class PackedConv2d(nn.Conv2d):
    """A frozen convolution in float32 on a CPU; see `pack_convolutions`."""

    same: bool
    """Whether the padding is TensorFlow's "same", which divides the image's size by the stride."""
    packed: Tensor | None
    """The reordered weights, if they have been made."""
    packed_from: tuple[int, int | None]
    """Address and version of the weights that were packed."""

    def forward(self, input: Tensor) -> Tensor:  # the name of the argument in nn.Conv2d
        """Convolve `(B, C, H, W)`."""
        x = input
        kernel, stride, dilation = self.kernel_size, self.stride, self.dilation
        padding = self.padding
        if self.same:
            from timm.layers import pad_same

            x, padding = pad_same(x, list(kernel), list(stride), list(dilation)), (0, 0)
        if not self._can_use_packed(x):
            return functional.conv2d(
                x, self.weight, self.bias, stride, padding, dilation, self.groups
            )
        packed, state = self.packed, _state(self.weight)
        if packed is None or self.packed_from != state:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            weight = self.weight.detach().to_mkldnn()
            packed = reorder(weight, padding, stride, dilation, self.groups, x.shape)
            self.packed, self.packed_from = packed, state
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, packed, self.bias, padding, stride, dilation, self.groups, "none", [], ""
        )
        return convolved

    def _can_use_packed(self, x: Tensor) -> bool:
        """Whether this call needs no derivative and has float32 tensors on a CPU."""
        differentiable = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return not (
            differentiable
            or x.ndim != 4
            or x.dtype != torch.float32
            or x.device.type != "cpu"
            or self.weight.dtype != torch.float32
            or forward_ad._current_level >= 0
            or torch._C._are_functorch_transforms_active()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the reordered weights, which cannot be pickled; they are made again."""
        return {**self.__dict__, "packed": None}


def pack_convolutions(module: nn.Module) -> int:
    """Replace the convolutions of a frozen module by packed ones, in place.

    Changed weights are packed again, except for changes through `.data`, which cannot be detected.
    Nothing is replaced if PyTorch has no oneDNN.

    Args:
        module: a module in float32 on a CPU.

    Returns:
        The number of convolutions replaced.
    """
    if not _can_pack():
        return 0
    packed = {part: _packed(part) for part in module.modules() if _is_packable(part)}
    replace_parts(module, packed)
    return len(packed)


def replace_parts(module: nn.Module, parts: Mapping[Any, nn.Module]) -> None:
    """Replace submodules by the modules that `parts` maps them to, under all their names."""
    for parent in list(module.modules()):
        for name, part in list(parent._modules.items()):
            if part in parts:
                setattr(parent, name, parts[part])


def _is_packable(part: nn.Module) -> TypeGuard[nn.Conv2d]:
    from timm.layers import Conv2dSame

    return (
        isinstance(part, nn.Conv2d)
        and type(part) in (nn.Conv2d, Conv2dSame)
        and part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
        and part.weight.device.type == "cpu"
        and part.weight.dtype == torch.float32
    )


def _state(weight: Tensor) -> tuple[int, int | None]:
    """Address and version of a weight; inference tensors have no version."""
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def _packed(conv: nn.Conv2d) -> PackedConv2d:
    twin = PackedConv2d.__new__(PackedConv2d)
    twin.__dict__.update(conv.__dict__)
    twin.same = type(conv) is not nn.Conv2d
    twin.packed = None
    twin.packed_from = (0, None)
    return twin


def _can_pack() -> bool:
    """Whether PyTorch has the functions with which its compiler packs weights."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C, "_are_functorch_transforms_active")
        and hasattr(forward_ad, "_current_level")
    )
