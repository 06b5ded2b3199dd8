"""Finds the layout of every traced call: which axes are channels, positions and prefix tokens.

Attributes of the model are not used, because they can be wrong (``num_prefix_tokens`` is, for CaiT
and XCiT). Instead, a list of known grids grows along the forward: it starts with the image, and a
convolution or pooling on a known grid adds the grid of its output. The layout of a four-dimensional
output follows from the type of the module (convolution: NCHW; linear or layer norm: NHWC), else
from an input or a part's output that is the same tensor, else from which pair of axes is a known
grid. For tokens, prefix = T - h*w.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from timmscope_registry.hooks.layers import Layout
from timmscope_registry.hooks.trace import BATCH, Call

Grid = tuple[int, int]

MAX_PREFIX = 16
"""Largest number of prefix tokens; more tokens beside a grid are not taken for prefix tokens."""

_MAX_FACTOR = 64
"""Largest factor by which one step may reduce a grid."""

# Parts of these modules have an axis of blocks, or of states instead of positions, and their sizes
# can look like a grid: 16 blocks of 16 tokens, 49 states.
_BLOCKED = {
    "NestLevel": "transformer_encoder",
    "MobileVitV2Block": "transformer",
    "EfficientViM": "norm",
}

_RESAMPLING = ("Upsample", "PixelShuffle", "PixelUnshuffle")
_CHANNELS_FIRST = ("BatchNorm2d", "GroupNorm", "Conv2d", "ConvTranspose2d")


@dataclass(frozen=True)
class Reading:
    """The layout of one output; attributes as in `Layer`."""

    layout: Layout
    channels: int
    grid: Grid | None = None
    prefix_tokens: int = 0


class LayoutReader:
    """Finds the layout of calls, which must come in the order in which they finished.

    Args:
        image: channels, height and width of the model's input.
        modules: the model's modules by name.
    """

    def __init__(self, image: tuple[int, int, int], modules: dict[str, nn.Module]) -> None:
        self._colours, *size = image
        self._image = (size[0], size[1])
        self._grids: list[Grid] = [self._image]  # most recent last
        self._readings: dict[int, Reading] = {}  # by id of the tensor: the trace keeps all alive
        self._sequences: set[int] = set()  # ids of outputs (B, C, T)
        self._finished: list[tuple[Call, Reading | None]] = []
        self._blocked = tuple(
            f"{path}.{inner}." if path else f"{inner}."
            for path, module in modules.items()
            if (inner := _BLOCKED.get(type(module).__name__))
        )

    def read(self, call: Call) -> Reading | str:
        """Return the layout of the call's output, or why it is not a layer."""
        outcome = self._read(call)
        self._finished.append((call, None if isinstance(outcome, str) else outcome))
        self._learn(call, outcome)
        return outcome

    def read_part(self, part: Call) -> Reading | str:
        """Return the same for one tensor of the latest call, which returned several."""
        outcome = self._read(part)
        self._learn(part, outcome)
        return outcome

    def _learn(self, call: Call, outcome: Reading | str) -> None:
        if isinstance(outcome, str):
            return
        self._readings[id(call.output)] = outcome
        if outcome.grid is not None and math.prod(outcome.grid) > 1:
            if outcome.grid in self._grids:
                self._grids.remove(outcome.grid)
            self._grids.append(outcome.grid)

    def _read(self, call: Call) -> Reading | str:
        output = call.output
        if output is None:
            return f"it returns a {call.returned}, not one tensor"
        shape = tuple(output.shape)
        if not output.is_floating_point():
            return f"it returns {output.dtype}, not activations"
        if not shape or call.input is None or shape[0] != BATCH:
            return f"its output {shape} does not hold one entry per image"
        if 0 in shape:
            return f"its output {shape} is empty"
        if f"{call.path}.".startswith(self._blocked) and output.ndim > 2:
            return f"its output {shape} is in blocks or states, not in image order"
        if output.ndim == 2:
            return Reading("vector", shape[1])
        same = self._same_tensor(call)
        if same is not None:
            return same
        if output.ndim == 4:
            return self._read_map(call, output)
        if output.ndim == 3:
            return self._read_tokens(call, output)
        return f"its output {shape} has {output.ndim} dimensions"

    def _same_tensor(self, call: Call) -> Reading | None:
        """The reading of an earlier call whose output is this output, or its elementwise input."""
        for tensor in (call.output, call.input):
            reading = self._readings.get(id(tensor))
            if reading is None or call.output is None or tensor is None:
                continue
            if tensor is call.output:
                return reading
            if tensor.shape == call.output.shape and _elementwise(call.module):
                return reading
        return None

    # -- four dimensions -------------------------------------------------------------------------

    def _read_map(self, call: Call, output: Tensor) -> Reading | str:
        _, first, second, third = output.shape
        channels_first = Reading("NCHW", first, (second, third))
        channels_last = Reading("NHWC", third, (first, second))
        kind = _kind(call.module)
        if kind == "spatial":
            if self._spatial_source(call) or self._plausible((second, third)):
                return channels_first
        elif kind == "features":
            if self._plausible((first, second)):
                return channels_last
        elif kind == "channels":
            if self._plausible((second, third)):
                return channels_first
        else:
            return self._read_untyped(call, channels_first, channels_last)
        return f"its output {tuple(output.shape)} does not lie on the image's grid"

    def _read_untyped(self, call: Call, first: Reading, last: Reading) -> Reading | str:
        shape = None if call.output is None else call.output.shape
        parts = [
            (part.output, reading)
            for part, reading in reversed(self._finished[call.parts_start :])
            if reading is not None and part.output is not None and part.output.ndim == 4
        ]
        for tensor, reading in parts:
            if tensor.shape == shape:
                return reading
        # A leaf may be softmax or dropout on an attention matrix, unless its input is a map.
        source = self._reading(call.input)
        exact = source is None and _is_leaf(call.module)
        options = [
            option
            for option in (first, last)
            if option.grid is not None and self._plausible(option.grid, exact=exact)
        ]
        if len(options) == 1:
            return options[0]
        if not options:
            shape_text = None if shape is None else tuple(shape)
            return f"its output {shape_text} does not lie on the image's grid"
        for layout in (
            [reading.layout for _, reading in parts]
            + ([source.layout] if source is not None else [])
            + [r.layout for _, r in reversed(self._finished) if r is not None]
        ):
            for option in options:
                if option.layout == layout:
                    return option
        return first

    def _spatial_source(self, call: Call) -> bool:
        """Whether the input of a convolution or pooling lies on a known grid."""
        source = call.input
        if source is None or source.ndim != 4:
            return False
        reading = self._reading(source)
        if reading is not None:
            return reading.layout == "NCHW"
        return self._plausible((source.shape[2], source.shape[3]))

    def _reading(self, tensor: Tensor | None) -> Reading | None:
        """The layout of a tensor, if a module returned it or it is the image at some size."""
        if tensor is None:
            return None
        reading = self._readings.get(id(tensor))
        if reading is None and tensor.ndim == 4 and tensor.shape[1] == self._colours:
            return Reading("NCHW", self._colours, (tensor.shape[2], tensor.shape[3]))  # CrossViT
        return reading

    def _plausible(self, grid: Grid, *, exact: bool = False) -> bool:
        """Whether a grid is known or, unless `exact`, follows from the latest one by a stride."""
        if grid in self._grids or grid == (1, 1):
            return True
        return not exact and any(grid == derived for derived in _derived(self._grids[-1]))

    # -- three dimensions ------------------------------------------------------------------------

    def _read_tokens(self, call: Call, output: Tensor) -> Reading | str:
        _, count, channels = output.shape
        if self._is_sequence(call, output):
            self._sequences.add(id(output))
            return f"its output {tuple(output.shape)} has channels before positions (1-D layers)"
        source = self._readings.get(id(call.input))
        if source is not None and source.layout == "tokens" and _length(call.input) == count:
            return Reading("tokens", channels, source.grid, source.prefix_tokens)
        for grid, prefix in self._token_grids(source, count):
            return Reading("tokens", channels, grid, prefix)
        if count <= MAX_PREFIX:
            return Reading("tokens", channels, None, count)
        return f"its {count} tokens fit no grid of the image"

    def _is_sequence(self, call: Call, output: Tensor) -> bool:
        """Whether an output comes from layers that take (B, C, T): EfficientViM."""
        if type(call.module).__name__.endswith("1d") and _is_leaf(call.module):
            return True
        for part, _ in reversed(self._finished[call.parts_start :]):
            if part.output is not None and part.output.shape == output.shape:
                return id(part.output) in self._sequences
        return id(call.input) in self._sequences and _elementwise(call.module)

    def _token_grids(self, source: Reading | None, count: int) -> Iterator[tuple[Grid, int]]:
        """Grids that explain `count` tokens, the most likely first, with their prefix tokens."""
        recent = [grid for grid in reversed(self._grids) if grid != self._image]
        if source is not None and source.grid is not None and math.prod(source.grid) > 1:
            recent.insert(0, source.grid)
        for grid in recent:
            cells = math.prod(grid)
            if cells <= count <= cells + min(MAX_PREFIX, cells - 1):
                yield grid, count - cells
        # A stride without a convolution (LeViT), or patches cut without one (NaFlexViT). Only the
        # latest grid is tried, because numbers of channels can be squares too.
        for prefix in dict.fromkeys([source.prefix_tokens if source else 0, 0]):
            for derived in _derived(recent[0] if recent else self._image):
                if math.prod(derived) == count - prefix and count - prefix > 1:
                    yield derived, prefix


def _length(tokens: Tensor | None) -> int:
    return 0 if tokens is None else tokens.shape[1]


def _derived(grid: Grid) -> Iterator[Grid]:
    """Yield the grids that a stride gives: exact divisions first, then rounded up and down."""
    height, width = grid
    rounded: list[Grid] = []
    for factor in range(2, _MAX_FACTOR + 1):
        if factor > height and factor > width:
            break
        if height % factor == 0 and width % factor == 0:
            yield height // factor, width // factor
        else:
            rounded.append((math.ceil(height / factor), math.ceil(width / factor)))
            rounded.append((height // factor, width // factor))
    yield from (option for option in rounded if min(option) > 0)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _kind(module: nn.Module) -> str:
    """Classify a module by its type.

    Returns:
        ``spatial`` if it works on positions, ``channels`` if its channels are on axis 1,
        ``features`` if they are on the last axis; else an empty string.
    """
    names = [kind.__name__ for kind in type(module).__mro__]
    if isinstance(module, nn.Linear | nn.Embedding):
        return "features"
    leaf = _is_leaf(module)  # a container may permute axes, whatever its name
    if any("Pool2d" in n or n in _RESAMPLING for n in names):
        return "spatial" if leaf else ""
    if (leaf and names[0].endswith("2d")) or any(n in _CHANNELS_FIRST for n in names):
        return "spatial" if any("Conv" in n or "Pad" in n for n in names) else "channels"
    if isinstance(module, nn.LayerNorm | nn.RMSNorm) or "RmsNorm" in names:
        return "features"
    return ""


def _elementwise(module: nn.Module) -> bool:
    """Whether a module is a leaf that cannot move elements to other positions."""
    return _is_leaf(module) and not isinstance(module, nn.Flatten | nn.Unflatten | nn.PixelShuffle)
