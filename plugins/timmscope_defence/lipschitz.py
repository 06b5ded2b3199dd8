"""Lipschitz constants: by how much the outputs of a network can change per change of its input.

The network runs as it is, on a `Lipschitz` instead of a tensor. Each function of PyTorch that it
calls has a rule here that says by how much it can stretch a change; one without a rule is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from timmscope import UnsupportedModel
from timmscope_defence.operator_norm import operator_norm

Rule = Callable[..., "Lipschitz | tuple[Lipschitz, ...]"]
_ROUNDING = 1 + 5e-5
"""By how much norms that are approached from below are enlarged."""
_DENSE = 1024
"""Smaller side of a matrix up to which its norm is computed from all its singular values."""


@dataclass
class Factors:
    """The layers that were met, with their factors.

    Attributes:
        names: names of the weights' modules, by the id of the weight.
        norms: norms of convolutions that are known already.
        measured: whether norms are computed; without, they count as 1.
        found: name of the layer or function, and the factor by which it can stretch a change.
    """

    names: dict[int, str]
    norms: dict[object, float]
    measured: bool = True
    found: list[tuple[str, float]] = field(default_factory=list)

    def add(self, func: Callable[..., Any], weight: object, factor: float) -> float:
        """Note a factor of a layer, and return it."""
        name = getattr(func, "__name__", str(func)).strip("_")
        self.found.append((self.names.get(id(weight), name), factor))
        return factor


class Lipschitz(Tensor):
    """A stage of a network, with a bound of its change per change of the input, in L2.

    `‖h(x) − h(x')‖₂ ≤ constant · ‖x − x'‖₂` for all images x and x' of one shape.

    - linear maps multiply the constant by their largest singular value, of a convolution at the
      size of its input;
    - activations multiply it by their largest slope, and maxima by the root of how many windows
      share a value;
    - sums add the constants of both parts, concatenations the squares.

    As a tensor it holds NaN, so that compiled functions, which do not ask for its constant, never
    return what looks like a result.

    Attributes:
        value: the stage for black images, which has its shape.
        constant: the bound.
        factors: the layers so far.
        sharing: stages that share memory with this one, itself included.
    """

    value: Tensor
    constant: float
    factors: Factors
    sharing: list[Lipschitz]

    @classmethod
    def of(cls, value: Tensor, constant: float, factors: Factors) -> Lipschitz:
        """Return a stage with that value and bound."""
        made = value.detach().new_full((), torch.nan).expand(value.shape).as_subclass(cls)
        made.value, made.constant, made.factors = value.detach(), constant, factors
        made.sharing = [made]
        return made

    def then(self, value: Tensor, factor: float = 1.0) -> Lipschitz:
        """Return the next stage."""
        return Lipschitz.of(value, self.constant * factor, self.factors)

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Lipschitz({tuple(self.value.shape)}, {self.constant:.4g})"

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Apply a function of PyTorch.

        Raises:
            UnsupportedModel: the function has no rule here.
        """
        rule = _RULES.get(func)
        name = getattr(func, "__name__", str(func))
        given = kwargs or {}
        with torch.no_grad():
            if rule is not None and _fits(rule, args, given):
                made = rule(func, *args, **given)
                in_place = name.startswith("__i") or (name[-1:] == "_" != name[-2:-1])
                if (in_place or given.get("inplace")) and isinstance(args[0], Lipschitz):
                    return args[0]._become(cast(Lipschitz, made))
                return made
            if name == "__get__" or name in _FACTS:
                fact = func(*_values(args), **given)
                if not isinstance(fact, Tensor):
                    return fact
        raise UnsupportedModel(_refusal(name))

    def _become(self, made: Lipschitz) -> Lipschitz:
        """Take the bound of another stage, as the tensor of a function that works in place does.

        Of what shares its memory, some values change, and the others do not.
        """
        if made is not self:
            for other in self.sharing:
                other.constant = math.hypot(other.constant, made.constant)
            self.value, self.constant = made.value, made.constant
        return self


def _fits(rule: Rule, args: tuple[Any, ...], named: Mapping[str, Any]) -> bool:
    """Whether no stage is where a rule does not look for one."""
    if rule in _OF_SEVERAL:
        return True
    rest = (*args[1:], *named.values())
    return isinstance(args[0], Lipschitz) and not any(isinstance(each, Lipschitz) for each in rest)


def _refusal(name: str) -> str:
    known = {
        "softmax": "softmax, as in attention,",
        "scaled_dot_product_attention": "attention",
        "layer_norm": "layer normalisation",
        "group_norm": "group normalisation",
        "instance_norm": "instance normalisation",
        "__rdiv__": "a division by activations",
        "reciprocal": "a division by activations",
    }
    return (
        f"a Lipschitz bound does not reach through {known.get(name, name)}: it knows linear and "
        "convolutional layers, batch normalisation, pooling, sums and common activations; "
        "randomized-smoothing certifies any model"
    )


def lipschitz_of(
    network: Callable[[Tensor], Any], module: nn.Module, images: Tensor, *, measured: bool = True
) -> Lipschitz:
    """Return the logits of a network as a stage with its bound, per pixel unit of the images.

    Args:
        network: takes images `(B, C, H, W)` in [0, 1].
        module: the module whose weights it uses, for the names of layers.
        images: `(B, C, H, W)`, of which shape and device matter.
        measured: compute the norms of layers; without, only whether there is a bound matters.

    Raises:
        UnsupportedModel: a function of the network has no rule.
    """
    names = {
        id(weight): name.rpartition(".")[0] or name for name, weight in module.named_parameters()
    }
    factors = Factors(names, _known.setdefault(module, {}), measured)
    first = Lipschitz.of(torch.zeros_like(images, dtype=torch.float64), 1.0, factors)
    with torch.no_grad():
        last = network(first)
    if not isinstance(last, Lipschitz):
        raise UnsupportedModel(
            "a Lipschitz bound does not reach the logits: a compiled function of the network takes "
            "tensors only"
        )
    return last


_known: WeakKeyDictionary[nn.Module, dict[object, float]] = WeakKeyDictionary()
"""Norms of the convolutions of each module, by weight, its version, and size."""


# Rules. Each takes the function and its arguments, of which at least one is a stage.


def _values(args: Iterable[Any]) -> Iterator[Any]:
    for arg in args:
        if isinstance(arg, list | tuple) and any(isinstance(item, Lipschitz) for item in arg):
            yield [item.value if isinstance(item, Lipschitz) else item for item in arg]
        else:
            yield arg.value if isinstance(arg, Lipschitz) else arg


def _weighted(func: Callable[..., Tensor], x: Any, weight: Any, bias: Any = None, *rest: Any,
              **named: Any) -> Lipschitz:  # fmt: skip
    """A linear layer or a convolution."""
    if not isinstance(x, Lipschitz) or isinstance(weight, Lipschitz) or isinstance(bias, Lipschitz):
        raise UnsupportedModel(
            "a Lipschitz bound knows no layers whose weights depend on the image"
        )
    matrix = weight.detach().to(x.value.dtype)

    def linear(images: Tensor) -> Tensor:
        return func(images, matrix, None, *rest, **named)

    if not x.factors.measured:
        return x.then(linear(x.value))
    known = x.factors.norms
    key = id(weight), weight._version, func, tuple(x.value.shape[1:]), repr((rest, named))
    if id(weight) not in x.factors.names or key not in known:
        if func is functional.linear and min(matrix.shape) <= _DENSE:
            factor = float(torch.linalg.matrix_norm(matrix.double(), 2))
        else:
            shape = (1, *x.value.shape[1:])
            factor = operator_norm(linear, shape, x.value) * _ROUNDING
        known[key] = factor
    return x.then(linear(x.value), x.factors.add(func, weight, known[key]))


def _linear(func: Callable[..., Tensor], x: Lipschitz, *rest: Any, **named: Any) -> Lipschitz:
    """A linear map without weights, such as a mean, of each row for itself or of all."""
    value = func(x.value, *rest, **named)
    if not x.factors.measured:
        return x.then(value)
    rows = len(x.value) if getattr(func, "__name__", "") in ("mean", "sum") else 1
    shape = (rows, *x.value.shape[1:])
    factor = operator_norm(lambda v: func(v, *rest, **named), shape, x.value) * _ROUNDING
    return x.then(value, x.factors.add(func, None, factor))


def _padded(func: Callable[..., Tensor], x: Lipschitz, pad: Any, mode: str = "constant",
            value: float | None = None) -> Lipschitz:  # fmt: skip
    if mode == "constant":
        return x.then(func(x.value, pad, mode, value))
    return _linear(func, x, pad, mode)


def _batch_norm(func: object, x: Lipschitz, mean: Any, var: Any, weight: Any = None,
                bias: Any = None, training: bool = False, momentum: float = 0.1,
                eps: float = 1e-5) -> Lipschitz:  # fmt: skip
    """Batch normalisation by statistics that are kept."""
    if training or var is None:
        raise UnsupportedModel(
            "a Lipschitz bound does not reach through batch normalisation by the statistics of a "
            "batch: put the network into eval mode"
        )
    scale = (var.double() + eps).rsqrt() * (1 if weight is None else weight.detach().double())
    return x.then(x.value, x.factors.add(functional.batch_norm, weight, float(scale.abs().max())))


def _moved(func: Callable[..., Any], x: Any, *rest: Any, **named: Any) -> Any:
    """A function that moves values, or leaves some out."""
    found = func(x.value, *rest, **named)
    if isinstance(found, Tensor):
        return _share(x, found)
    return tuple(_share(x, each) for each in found)


def _share(x: Lipschitz, value: Tensor) -> Lipschitz:
    """Return a stage with values of another one, which may share its memory."""
    coarse = value.is_floating_point() and value.element_size() < 4  # too coarse for norms
    made = x.then(value.float() if coarse else value)
    x.sharing.append(made)
    made.sharing = x.sharing
    return made


def _indexed(func: Callable[..., Any], x: Lipschitz, index: Any) -> Lipschitz:
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is ... or isinstance(part, int | slice) for part in parts):
        raise UnsupportedModel("a Lipschitz bound does not reach through a choice by an index")
    return cast(Lipschitz, _moved(func, x, index))


def _expanded(func: Callable[..., Tensor], x: Lipschitz, *rest: Any, **named: Any) -> Lipschitz:
    found = func(x.value, *rest, **named)
    return x.then(found, math.sqrt(found.numel() / max(1, x.value.numel())))


def _joined(func: Callable[..., Tensor], parts: Any, *rest: Any, **named: Any) -> Lipschitz:
    stages = [part for part in parts if isinstance(part, Lipschitz)]
    constant = math.sqrt(sum(stage.constant**2 for stage in stages))
    values = [
        part.value if isinstance(part, Lipschitz) else part.to(stages[0].value.dtype)
        for part in parts
    ]
    return Lipschitz.of(func(values, *rest, **named), constant, stages[0].factors)


def _slope(slope: float | Callable[..., float]) -> Rule:
    """A function of each value, by its largest slope."""

    def rule(func: Callable[..., Tensor], x: Lipschitz, *rest: Any, **named: Any) -> Lipschitz:
        factor = slope if isinstance(slope, float) else slope(*rest, **named)
        if factor != 1:
            x.factors.add(func, None, factor)
        return x.then(x.value, factor)

    return rule


def _leaky(negative_slope: float = 0.01, inplace: bool = False) -> float:
    return max(1.0, abs(negative_slope))


def _elu(alpha: float = 1.0, *_: Any, **__: Any) -> float:
    return max(1.0, abs(alpha))


def _prelu(weight: Tensor) -> float:
    return max(1.0, float(weight.abs().max()))


def _max_pool(func: Callable[..., Any], x: Lipschitz, kernel_size: Any, stride: Any = None,
              *rest: Any, **named: Any) -> Lipschitz:  # fmt: skip
    """Maxima of windows: a value counts once for each window that it is in."""
    value = func(x.value, kernel_size, stride, *rest, **named)
    if not isinstance(value, Tensor):
        raise UnsupportedModel("a Lipschitz bound does not reach through indices of maxima")
    places = x.ndim - 2
    sizes = _each(kernel_size, places)
    steps = sizes if stride is None or stride == [] else _each(stride, places)
    apart = _each(named.get("dilation", rest[1] if len(rest) > 1 else 1), places)
    shared = math.prod(
        size if gap > 1 else math.ceil(size / step)
        for size, step, gap in zip(sizes, steps, apart, strict=True)
    )
    return x.then(value, x.factors.add(func, None, math.sqrt(shared)))


def _adaptive_max_pool(func: Callable[..., Any], x: Lipschitz, output_size: Any) -> Lipschitz:
    value = func(x.value, output_size)
    sides = zip(x.value.shape[2:], value.shape[2:], strict=True)
    shared = math.prod(1 if side % out == 0 else 2 for side, out in sides)
    return x.then(value, x.factors.add(func, None, math.sqrt(shared)))


def _each(size: Any, places: int) -> list[int]:
    return [int(each) for each in size] if isinstance(size, list | tuple) else [int(size)] * places


def _kept(func: Callable[..., Any], x: Lipschitz, *rest: Any, **named: Any) -> Lipschitz:
    """A copy, or the largest values of parts."""
    return x.then(func(x.value, *rest, **named))


def _dropped(func: Callable[..., Tensor], x: Lipschitz, p: float = 0.5, training: bool = True,
             inplace: bool = False) -> Lipschitz:  # fmt: skip
    if not training:
        return x
    raise UnsupportedModel("a Lipschitz bound knows no dropout: put the network into eval mode")


def _sum(func: object, one: Any, other: Any, *, alpha: float = 1) -> Lipschitz:
    stages = [part for part in (one, other) if isinstance(part, Lipschitz)]
    shapes = [part.shape if isinstance(part, Tensor) else () for part in (one, other)]
    shape = torch.broadcast_shapes(*shapes)
    constant = 0.0
    for part, times in ((one, 1.0), (other, float(abs(alpha)))):
        if isinstance(part, Lipschitz):
            constant += times * part.constant * _copies(part, shape)
    return Lipschitz.of(stages[0].value.new_zeros(shape), constant, stages[0].factors)


def _reversed_difference(func: object, one: Any, other: Any, *, alpha: float = 1) -> Lipschitz:
    return _sum(func, other, one, alpha=alpha)


def _negative(func: object, x: Lipschitz) -> Lipschitz:
    return x.then(x.value)


def _product(func: object, one: Any, other: Any) -> Lipschitz:
    if isinstance(one, Lipschitz) and isinstance(other, Lipschitz):
        raise UnsupportedModel(
            "a Lipschitz bound does not reach through a product of activations, as of "
            "squeeze-and-excite or attention; randomized-smoothing certifies any model"
        )
    x, factor = (one, other) if isinstance(one, Lipschitz) else (other, one)
    return _scaled(func, x, factor)


def _quotient(func: object, one: Any, other: Any) -> Lipschitz:
    if isinstance(other, Lipschitz):
        raise UnsupportedModel("a Lipschitz bound does not reach through a division by activations")
    return _scaled(func, one, 1 / other)


def _scaled(func: Any, x: Lipschitz, factor: Any) -> Lipschitz:
    largest = float(factor.detach().abs().max()) if isinstance(factor, Tensor) else abs(factor)
    shape = torch.broadcast_shapes(x.shape, factor.shape if isinstance(factor, Tensor) else ())
    x.factors.add(func, factor, largest)
    return x.then(x.value.new_zeros(shape), largest * _copies(x, shape))


def _copies(x: Lipschitz, shape: Sequence[int]) -> float:
    """How much longer a change becomes by broadcasting."""
    return math.sqrt(math.prod(shape) / max(1, x.value.numel()))


_GROUPS: tuple[tuple[Rule, str], ...] = (
    (_weighted, "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
    (_batch_norm, "batch_norm"),
    (
        _slope(1.0),
        "relu relu_ relu6 hardtanh hardtanh_ tanh tanh_ softplus softsign clamp clamp_ "
        "clamp_min clamp_min_ clamp_max clamp_max_ abs abs_ celu celu_",
    ),
    (_slope(0.25), "sigmoid sigmoid_"),
    (_slope(1 / 6), "hardsigmoid hardsigmoid_"),
    (_slope(1.0507009873554805 * 1.6732632423543772), "selu selu_"),
    (_slope(1.1290), "gelu"),
    (_slope(1.0999), "silu silu_"),
    (_slope(1.5), "hardswish hardswish_"),
    (_slope(1.0885), "mish mish_"),
    (_slope(_leaky), "leaky_relu leaky_relu_"),
    (_slope(_elu), "elu elu_"),
    (_slope(_prelu), "prelu"),
    (_max_pool, "max_pool1d max_pool2d max_pool3d"),
    (_adaptive_max_pool, "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"),
    (_kept, "amax amin clone"),
    (
        _linear,
        "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d mean sum interpolate",
    ),
    (
        _moved,
        "flatten reshape view permute transpose contiguous squeeze unsqueeze chunk split unbind to "
        "float double detach pixel_shuffle pixel_unshuffle channel_shuffle roll flip alias",
    ),
    (_indexed, "__getitem__"),
    (_expanded, "expand repeat"),
    (_joined, "cat concat stack"),
    (_padded, "pad"),
    (_dropped, "dropout dropout2d alpha_dropout"),
    (_sum, "add add_ __add__ __radd__ __iadd__ sub sub_ subtract __sub__ __isub__"),
    (_reversed_difference, "rsub __rsub__"),
    (_negative, "neg neg_ __neg__"),
    (_product, "mul mul_ multiply __mul__ __rmul__ __imul__"),
    (_quotient, "div div_ divide true_divide __truediv__ __itruediv__"),
)
_OF_SEVERAL = (_weighted, _joined, _sum, _reversed_difference, _product, _quotient)
"""Rules that take several stages, or one in any place."""
_FACTS = (
    *("size", "dim", "ndimension", "numel", "nelement", "__len__", "stride", "element_size"),
    *("is_floating_point", "is_complex", "is_contiguous", "register_hook"),
)
"""Methods that say something about a stage and return no values of it."""
_PLACES = (torch, Tensor, functional, torch._C._nn)
_RULES: dict[Any, Rule] = {
    getattr(place, name): rule
    for rule, names in _GROUPS
    for name in names.split()
    for place in _PLACES
    if hasattr(place, name)
}
