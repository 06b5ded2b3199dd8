"""Convolutions whose weights lie as a CPU's kernels want them, reordered once and not every time.

PyTorch brings a convolution's weights into the order of the processor's vectors at each call. For
a few small images that takes as long as the arithmetic. Here it is done at the first call without a
graph; where a gradient is wanted, the convolution is the usual one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class PackedConv2d(nn.Conv2d):
    """A frozen convolution in float32 on a CPU; see `pack_convolutions`."""

    same: bool
    """Whether the image is padded as TensorFlow does, so that its size is divided by the stride."""
    packed: Tensor | None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve `(B, C, H, W)`."""
        kernel, stride, dilation = self.kernel_size, self.stride, self.dilation
        padding = self.padding
        if self.same:
            from timm.layers import pad_same

            x, padding = pad_same(x, list(kernel), list(stride), list(dilation)), (0, 0)
        differentiable = x.requires_grad and torch.is_grad_enabled()
        if differentiable or x.dtype != torch.float32 or x.device.type != "cpu":
            return functional.conv2d(
                x, self.weight, self.bias, stride, padding, dilation, self.groups
            )
        if self.packed is None:
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            weight = self.weight.detach().to_mkldnn()
            self.packed = reorder(weight, padding, stride, dilation, self.groups, x.shape)
        convolved: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self.packed, self.bias, padding, stride, dilation, self.groups, "none", [], ""
        )
        return convolved

    def __getstate__(self) -> dict[str, Any]:
        """Without the reordered weights, which no file can hold; they are made again."""
        return {**self.__dict__, "packed": None}


def pack_convolutions(module: nn.Module) -> int:
    """Replace the convolutions of a frozen module by packed ones, in place.

    The weights must not change any more. Nothing is done where there is no oneDNN.

    Args:
        module: in float32 on a CPU.

    Returns:
        How many were replaced.
    """
    if not _can_pack():
        return 0
    found = [name for name, part in module.named_modules() if _packable(part)]
    for name in found:
        path, _, last = name.rpartition(".")
        parent = module.get_submodule(path)
        setattr(parent, last, _packed(getattr(parent, last)))
    return len(found)


def _packable(part: nn.Module) -> bool:
    from timm.layers import Conv2dSame

    return (
        isinstance(part, nn.Conv2d)
        and type(part) in (nn.Conv2d, Conv2dSame)
        and part.padding_mode == "zeros"
        and not isinstance(part.padding, str)
        and part.weight.device.type == "cpu"
        and part.weight.dtype == torch.float32
    )


def _packed(conv: nn.Conv2d) -> PackedConv2d:
    twin = PackedConv2d.__new__(PackedConv2d)
    twin.__dict__.update(conv.__dict__)
    twin.same = type(conv) is not nn.Conv2d
    twin.packed = None
    return twin


def _can_pack() -> bool:
    """Whether this PyTorch has the two functions that its own compiler packs weights with."""
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch._C._nn, "mkldnn_reorder_conv2d_weight")
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
