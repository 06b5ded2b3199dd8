"""Interval bound propagation: what a network can return for a box of inputs.

The network runs as it is, on an `Interval` instead of a tensor. Each function of PyTorch that it
calls has a rule here that bounds its values over the box; one without a rule is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from timmscope import UnsupportedModel

Rule = Callable[..., "Interval | tuple[Interval, ...]"]


class Interval(Tensor):
    """A box `[centre − radius, centre + radius]` that networks take like a tensor.

    The bounds contain every value that the network has in the box, and equal its value where the
    radius is 0. They are differentiable. Rounding errors of the arithmetic are not bounded.

    - affine functions: `centre' = W · centre + b`, `radius' = |W| · radius`;
    - activations and maxima: their values at both ends, and where they turn in between;
    - products of two boxes: the smallest and largest of four corners.

    Paper:
        Gowal et al., "On the Effectiveness of Interval Bound Propagation for Training Verifiably
        Robust Models", 2018, arXiv:1810.12715.

    As a tensor it holds NaN, so that compiled functions, which do not ask for its bounds, never
    return what looks like one.

    Attributes:
        centre: middle of the box, an ordinary tensor.
        radius: half the width of the box, of the shape of the centre.
        last: radius of its input and weights, if a linear layer has just made this box.
    """

    centre: Tensor
    radius: Tensor
    last: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, centre: Tensor, radius: Tensor) -> Interval:
        """Return the box with that centre and radius."""
        box = centre.detach().new_full((), torch.nan).expand(centre.shape).as_subclass(cls)
        box.centre, box.radius, box.last = centre, radius, None
        return box

    @classmethod
    def between(cls, lower: Tensor, upper: Tensor) -> Interval:
        """Return the box between two tensors."""
        return cls.of((lower + upper) / 2, (upper - lower) / 2)

    @classmethod
    def around(cls, images: Tensor, epsilon: float) -> Interval:
        """Return all images `(B, C, H, W)` in [0, 1] that differ by at most `epsilon` anywhere."""
        return cls.between((images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1))

    @property
    def bounds(self) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the box."""
        return self.centre - self.radius, self.centre + self.radius

    def _become(self, box: Interval) -> Interval:
        """Take the values of another box, as the tensor of a function that works in place does.

        What shares memory with this box changes too.
        """
        if box is not self:
            self.centre.copy_(box.centre)
            self.radius.copy_(box.radius)
            self.last = None
        return self

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Interval(centre={self.centre!r}, radius={self.radius!r})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Apply a function of PyTorch to boxes.

        Raises:
            UnsupportedModel: the function has no bounds here.
        """
        rule = _RULES.get(func)
        name = getattr(func, "__name__", str(func))
        if rule is not None:
            box = rule(func, *args, **(kwargs or {}))
            in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
            if (in_place or (kwargs or {}).get("inplace")) and isinstance(args[0], Interval):
                return args[0]._become(cast(Interval, box))
            return box
        if name == "__get__" or name in _FACTS:
            fact = func(*_each(args, 0), **(kwargs or {}))
            if not isinstance(fact, Tensor):
                return fact
        raise UnsupportedModel(
            f"interval bounds do not reach through {name}: they know linear and convolutional "
            "layers, batch normalisation, pooling, sums, products and common activations; "
            "randomized-smoothing certifies any model"
        )


def lowest_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Lower bounds of `z_y − z_j` for labels y and every class j, `(B, K)`; 0 at j = y.

    Where a linear layer has just made the logits, the bound is of the difference of its rows,
    `(W_y − W_j) · x + b_y − b_j`, which is tighter than the difference of two bounds.

    Args:
        logits: box of the logits `(B, K)`.
        labels: `(B,)` classes y.

    Raises:
        UnsupportedModel: the logits are an ordinary tensor.
    """
    if not isinstance(logits, Interval):
        raise UnsupportedModel(
            "interval bounds do not reach the logits: a compiled function of the network takes "
            "tensors only"
        )
    centre = logits.centre
    margins = centre.gather(1, labels[:, None]) - centre
    if logits.last is None:
        own = logits.radius.gather(1, labels[:, None])
        width = (own + logits.radius).scatter(1, labels[:, None], 0)
        return margins - width
    radius, weight = logits.last
    classes, places = labels.unique(return_inverse=True)
    rows = [(places == index).nonzero()[:, 0] for index in range(len(classes))]
    widths = torch.cat(
        [
            functional.linear(radius[chosen], (weight[label] - weight).abs())
            for label, chosen in zip(classes.tolist(), rows, strict=True)
        ]
    )
    return margins - widths[torch.cat(rows).argsort()]


def smallest_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Lower bound of `min over j ≠ y of z_y − z_j`, `(B,)`: a proof where it is above 0.

    Args:
        logits: box of the logits `(B, K)`.
        labels: `(B,)` classes y.

    Raises:
        UnsupportedModel: the logits are an ordinary tensor.
    """
    lowest = lowest_margins(logits, labels)
    return lowest.scatter(1, labels[:, None], torch.inf).amin(1)


# Rules. Each takes the function and its arguments, of which at least one is a box.


def _parts(box: Any) -> tuple[Tensor, Tensor]:
    """Centre and radius of a box; a tensor or a number has the radius 0."""
    if isinstance(box, Interval):
        return box.centre, box.radius
    return box, torch.zeros(())


def _weighted(func: Callable[..., Tensor], x: Any, weight: Any, bias: Any = None, *rest: Any,
              **named: Any) -> Interval:  # fmt: skip
    """A linear layer or a convolution."""
    if not isinstance(x, Interval) or isinstance(weight, Interval) or isinstance(bias, Interval):
        raise UnsupportedModel("interval bounds know no layers whose weights depend on the image")
    out = Interval.of(
        func(x.centre, weight, bias, *rest, **named),
        func(x.radius, weight.abs(), None, *rest, **named),
    )
    if func is functional.linear:
        out.last = x.radius.clone(), weight
    return out


def _batch_norm(func: object, x: Interval, mean: Any, var: Any, weight: Any = None,
                bias: Any = None, training: bool = False, momentum: float = 0.1,
                eps: float = 1e-5) -> Interval:  # fmt: skip
    """Batch normalisation by statistics that are kept."""
    if training:
        raise UnsupportedModel(
            "interval bounds do not reach through batch normalisation by the statistics of a "
            "batch: put the network into eval mode"
        )
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shape = (1, -1) + (1,) * (x.ndim - 2)
    centre = (x.centre - mean.view(shape)) * scale.view(shape)
    if bias is not None:
        centre = centre + bias.view(shape)
    return Interval.of(centre, x.radius * scale.abs().view(shape))


def _between_ends(*turns: float) -> Rule:
    """A function of each value that is monotone between the places where it turns."""

    def rule(func: Callable[..., Tensor], x: Interval, *rest: Any, **named: Any) -> Interval:
        low, high = x.bounds
        ends = func(low.clone(), *rest, **named), func(high.clone(), *rest, **named)
        lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        for turn in turns:
            value = func(torch.full_like(low, turn), *rest, **named)
            inside = (low < turn) & (turn < high)
            lower = torch.where(inside, torch.minimum(lower, value), lower)
            upper = torch.where(inside, torch.maximum(upper, value), upper)
        return Interval.between(lower, upper)

    return rule


def _averaged(func: Callable[..., Any], *args: Any, **named: Any) -> Any:
    """A function that moves values or averages them with weights of at least 0."""
    centres = func(*(_each(args, 0)), **named)
    radii = func(*(_each(args, 1)), **named)
    if isinstance(centres, Tensor):
        return Interval.of(centres, radii)
    return tuple(Interval.of(*pair) for pair in zip(centres, radii, strict=True))


def _each(args: Iterable[Any], part: int) -> Iterator[Any]:
    """The arguments with the centre (0) or the radius (1) of each box in them."""
    for arg in args:
        if isinstance(arg, Interval):
            yield _parts(arg)[part]
        elif isinstance(arg, list | tuple) and any(isinstance(item, Interval) for item in arg):
            yield [
                _parts(item)[part] if isinstance(item, Interval) or part == 0
                else torch.zeros_like(item) for item in arg
            ]  # fmt: skip
        else:
            yield arg


def _interpolated(func: Callable[..., Tensor], x: Interval, *rest: Any, **named: Any) -> Interval:
    if "bicubic" in (*rest, *named.values()):
        raise UnsupportedModel("interval bounds do not reach through bicubic interpolation")
    return _averaged(func, x, *rest, **named)  # type: ignore[no-any-return]


def _padded(func: Callable[..., Tensor], x: Interval, pad: Any, mode: str = "constant",
            value: float | None = None) -> Interval:  # fmt: skip
    radius = func(x.radius, pad, mode, 0 if mode == "constant" else None)
    return Interval.of(func(x.centre, pad, mode, value), radius)


def _dropped(func: Callable[..., Tensor], x: Interval, p: float = 0.5, training: bool = True,
             inplace: bool = False) -> Interval:  # fmt: skip
    if not training:
        return x
    raise UnsupportedModel("interval bounds know no dropout: put the network into eval mode")


def _sum(func: object, one: Any, other: Any, *, alpha: float = 1, sign: int = 1) -> Interval:
    (a, ra), (b, rb) = _parts(one), _parts(other)
    centre = a + sign * alpha * b
    return Interval.of(centre, (ra.to(centre.device) + abs(alpha) * rb.to(centre.device))
                       .to(centre.dtype).expand_as(centre).contiguous())  # fmt: skip


def _difference(func: object, one: Any, other: Any, *, alpha: float = 1) -> Interval:
    return _sum(func, one, other, alpha=alpha, sign=-1)


def _reversed_difference(func: object, one: Any, other: Any) -> Interval:
    return _sum(func, other, one, sign=-1)


def _negative(func: object, x: Interval) -> Interval:
    return Interval.of(-x.centre, x.radius.clone())


def _product(func: object, one: Any, other: Any) -> Interval:
    if isinstance(one, Interval) and isinstance(other, Interval):
        (a, b), (c, d) = one.bounds, other.bounds
        corners = torch.stack(torch.broadcast_tensors(a * c, a * d, b * c, b * d))
        return Interval.between(corners.amin(0), corners.amax(0))
    box, factor = (one, other) if isinstance(one, Interval) else (other, one)
    return Interval.of(box.centre * factor, box.radius * abs(factor))


def _quotient(func: object, one: Any, other: Any) -> Interval:
    if isinstance(other, Interval):
        raise UnsupportedModel("interval bounds do not reach through a division by activations")
    return Interval.of(one.centre / other, one.radius / abs(other))


_GROUPS: tuple[tuple[Rule, str], ...] = (
    (_weighted, "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    (_batch_norm, "batch_norm"),
    (
        _between_ends(),
        "relu relu_ relu6 hardtanh hardtanh_ sigmoid sigmoid_ tanh tanh_ hardsigmoid softplus "
        "clamp clamp_ clamp_min clamp_min_ clamp_max clamp_max_ selu selu_ max_pool1d max_pool2d "
        "max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax",
    ),
    (_between_ends(0.0), "leaky_relu leaky_relu_ elu elu_ celu celu_"),
    (_between_ends(-0.7517915), "gelu"),
    (_between_ends(-1.2784645), "silu silu_"),
    (_between_ends(-1.5), "hardswish hardswish_"),
    (_between_ends(-1.1924312), "mish mish_"),
    (
        _averaged,
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d mean sum flatten reshape view permute transpose contiguous squeeze "
        "unsqueeze chunk split unbind to float double clone detach expand pixel_shuffle "
        "pixel_unshuffle channel_shuffle cat concat stack roll flip __getitem__ alias",
    ),
    (_interpolated, "interpolate"),
    (_padded, "pad"),
    (_dropped, "dropout dropout2d alpha_dropout"),
    (_sum, "add add_ __add__ __radd__ __iadd__"),
    (_difference, "sub sub_ subtract __sub__ __isub__"),
    (_reversed_difference, "rsub __rsub__"),
    (_negative, "neg neg_ __neg__"),
    (_product, "mul mul_ multiply __mul__ __rmul__ __imul__"),
    (_quotient, "div div_ divide true_divide __truediv__ __itruediv__"),
)
_FACTS = (
    *("size", "dim", "ndimension", "numel", "nelement", "__len__", "stride", "element_size"),
    *("is_floating_point", "is_complex", "is_contiguous", "register_hook"),
)
"""Methods that say something about a box and return no values of it."""
_PLACES = (torch, Tensor, functional, torch._C._nn)
_RULES: dict[Any, Rule] = {
    getattr(place, name): rule
    for rule, names in _GROUPS
    for name in names.split()
    for place in _PLACES
    if hasattr(place, name)
}
