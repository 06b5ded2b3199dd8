"""Follows one forward operation by operation and keeps the shadow of every tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from timmscope.receptive_fields.dependency_boxes import PLANES, Shadows
from timmscope.receptive_fields.op import Op, everything
from timmscope.receptive_fields.rules import rule_of


class Trace(TorchDispatchMode):
    """Inside the context, every tensor computed from `images` has a shadow.

    Attributes:
        shadows: of all tensors.
        unknown: names of operations without a rule; all their results were taken to depend on all
            that they were given.
    """

    def __init__(self, *, spatial: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shadows = Shadows()
        self.unknown: dict[str, None] = {}
        self._spatial = spatial
        self._image = (1, 1)

    def start(self, images: Tensor) -> None:
        """Every pixel of images `(B, C, H, W)` depends on itself."""
        self._image = (int(images.shape[2]), int(images.shape[3]))
        height, width = self._image
        rows = torch.arange(height, dtype=torch.int16)[:, None].expand(height, width)
        columns = torch.arange(width, dtype=torch.int16).expand(height, width)
        own = torch.stack([-columns, columns, -rows, rows] * 2)
        self.shadows.put(images, own[:, None, None].to(images.device))

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if not any(self.shadows.of(tensor) is not None for tensor in tensors):
            return out
        if torch.Tag.inplace_view in func.tags:
            return out
        schema = func._schema
        given = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        given.update(zip([a.name for a in schema.arguments], args, strict=False))
        given.update(kwargs)
        outputs = self._outputs(schema, given, out, tensors)
        if outputs:
            self._put(func, given, outputs)
        return out

    def _outputs(
        self, schema: Any, given: dict[str, Any], out: Any, tensors: list[Tensor]
    ) -> list[Tensor]:
        """The tensors that the operation wrote; none for a view."""
        if schema.is_mutable:
            written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
            return [given[name] for name in written if isinstance(given.get(name), Tensor)]
        inputs = {tensor.untyped_storage()._cdata for tensor in tensors}
        found = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if any(t.untyped_storage()._cdata in inputs for t in found):
            return []
        return found

    def _put(self, func: Any, given: dict[str, Any], outputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__.removesuffix("_")
        op = Op(name, func, given, outputs, self.shadows, self._spatial, self._image)
        rule = rule_of(name, func)
        if rule is None:
            self.unknown[str(func.overloadpacket)] = None
            rule = everything
        shadows = rule(op)
        if not isinstance(shadows, list):
            shadows = [shadows] * len(outputs)
        for output, shadow in zip(outputs, shadows, strict=False):
            if shadow is not None:
                shadow = shadow.reshape(
                    PLANES, *[1] * (output.ndim + 1 - shadow.ndim), *shadow.shape[1:]
                )
            self.shadows.put(output, shadow)
