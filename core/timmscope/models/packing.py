"""Convolutions whose weights lie as a CPU's kernels want them, reordered once and not every time.

PyTorch brings a convolution's weights into the order of the processor's vectors at each call. For
a few small images that takes as long as the arithmetic. Here it is done at the first call without a
graph, and again where weights have changed; where a derivative is wanted, the convolution is the
usual one.
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
    """Whether the image is padded as TensorFlow does, so that its size is divided by the stride."""
    packed: Tensor | None
    packed_from: tuple[int, int | None]
    """Where the weights lay that were packed, and which version of them."""

    def forward(self, input: Tensor) -> Tensor:  # called so in nn.Conv2d
        """Convolve `(B, C, H, W)`."""
        x = input
        kernel, stride, dilation = self.kernel_size, self.stride, self.dilation
        padding = self.padding
        if self.same:
            from timm.layers import pad_same

            x, padding = pad_same(x, list(kernel), list(stride), list(dilation)), (0, 0)
        if self._is_usual(x):
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

    def _is_usual(self, x: Tensor) -> bool:
        """Whether this call is one that the packed weights cannot serve."""
        differentiable = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        return (
            differentiable
            or x.ndim != 4
            or x.dtype != torch.float32
            or x.device.type != "cpu"
            or self.weight.dtype != torch.float32
            or forward_ad._current_level >= 0
            or torch._C._are_functorch_transforms_active()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without the reordered weights, which no file can hold; they are made again."""
        return {**self.__dict__, "packed": None}


def pack_convolutions(module: nn.Module) -> int:
    """Replace the convolutions of a frozen module by packed ones, in place.

    Weights that change are packed again, but for changes through `.data`, which nothing shows.
    Nothing is done where there is no oneDNN.

    Args:
        module: in float32 on a CPU.

    Returns:
        How many were replaced.
    """
    if not _can_pack():
        return 0
    found = {part: _packed(part) for part in module.modules() if _packable(part)}
    replace_parts(module, found)
    return len(found)


def replace_parts(module: nn.Module, parts: Mapping[Any, nn.Module]) -> None:
    """Put other modules in the place of some, under every name that they have."""
    for parent in list(module.modules()):
        for name, part in list(parent._modules.items()):
            if part in parts:
                setattr(parent, name, parts[part])


def _packable(part: nn.Module) -> TypeGuard[nn.Conv2d]:
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
    return weight.data_ptr(), None if weight.is_inference() else weight._version


def _packed(conv: nn.Conv2d) -> PackedConv2d:
    twin = PackedConv2d.__new__(PackedConv2d)
    twin.__dict__.update(conv.__dict__)
    twin.same = type(conv) is not nn.Conv2d
    twin.packed = None
    twin.packed_from = (0, None)
    return twin


def _can_pack() -> bool:
    """Whether this PyTorch has the functions that its own compiler packs weights with."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        and hasattr(torch._C, "_are_functorch_transforms_active")
        and hasattr(forward_ad, "_current_level")
    )
