"""Follows one forward operation by operation and computes the dependency boxes of every tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from timmscope.receptive_fields.dependency_boxes import DependencyBoxes
from timmscope.receptive_fields.op import Op, all_inputs, with_ndim
from timmscope.receptive_fields.rules import rule_of


class Trace(TorchDispatchMode):
    """Inside the context, every tensor computed from the image gets dependency boxes.

    Args:
        spatial: whether an operation that combines all positions passes on only what they have in
            common; see `Op`.

    Attributes:
        dependencies: the boxes of all tensors.
        unknown: names of operations without a rule; each of their results is assumed to depend on
            all inputs.
    """

    def __init__(self, *, spatial: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dependencies = DependencyBoxes()
        self.unknown: dict[str, None] = {}
        self._spatial = spatial
        self._image = (1, 1)

    def start(self, images: Tensor) -> None:
        """Let every pixel of images `(B, C, H, W)` depend on itself."""
        self._image = (int(images.shape[2]), int(images.shape[3]))
        height, width = self._image
        rows = torch.arange(height, dtype=torch.int16)[:, None].expand(height, width)
        columns = torch.arange(width, dtype=torch.int16).expand(height, width)
        boxes = torch.stack([-columns, columns, -rows, rows] * 2)
        self.dependencies.set(images, boxes[:, None, None].to(images.device))

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
        if not any(self.dependencies.of(tensor) is not None for tensor in tensors):
            return out
        if torch.Tag.inplace_view in func.tags:
            return out
        schema = func._schema
        arguments = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        arguments.update(zip([a.name for a in schema.arguments], args, strict=False))
        arguments.update(kwargs)
        outputs = self._outputs(schema, arguments, out, tensors)
        if outputs:
            self._apply_rule(func, arguments, outputs)
        return out

    def _outputs(
        self, schema: Any, arguments: dict[str, Any], out: Any, tensors: list[Tensor]
    ) -> list[Tensor]:
        """The tensors that the operation wrote; none if it returned a view."""
        if schema.is_mutable:
            written = [a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write]
            return [arguments[name] for name in written if isinstance(arguments.get(name), Tensor)]
        inputs = {tensor.untyped_storage()._cdata for tensor in tensors}
        outputs = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        if any(t.untyped_storage()._cdata in inputs for t in outputs):
            return []
        return outputs

    def _apply_rule(self, func: Any, arguments: dict[str, Any], outputs: list[Tensor]) -> None:
        name = func.overloadpacket.__name__.removesuffix("_")
        op = Op(name, func, arguments, outputs, self.dependencies, self._spatial, self._image)
        rule = rule_of(name, func)
        if rule is None:
            self.unknown[str(func.overloadpacket)] = None
            rule = all_inputs
        results = rule(op)
        if not isinstance(results, list):
            results = [results] * len(outputs)
        for output, boxes in zip(outputs, results, strict=False):
            self.dependencies.set(
                output, None if boxes is None else with_ndim(boxes, output.ndim + 1)
            )
