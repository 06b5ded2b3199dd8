"""Finds hook points by name: ``blocks.4``, ``blocks.4.act#0``, ``stage4[1]``, ``logits``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from timmscope_registry.errors import LayerNotFound, UnsupportedModel
from timmscope_registry.hooks.layers import LOGITS, LayerCatalogue
from timmscope_registry.hooks.parts import described
from timmscope_registry.hooks.trace import Call

_NAME = re.compile(r"(?P<path>.*?)(?:#(?P<number>\d+))?(?P<place>(?:\[[^\[\]]*\])*)", re.DOTALL)

OUT = "out"
"""Name of the root module's output where it is several tensors: ``out[0]``, ``out[boxes]``."""


def root_name(modules: Container[str], *, several: bool) -> str:
    """Return the name of the root module's output: ``logits``, or ``out`` for several tensors."""
    return OUT if several and OUT not in modules else LOGITS


@dataclass(frozen=True)
class Point:
    """A hook point: one tensor that one call of one module returns in a forward.

    Attributes:
        name: the name under which it was requested.
        module: the module.
        number: index of the call among the module's calls in one forward.
        overwritten: whether the model may later change the output in place.
        returns_input: whether the module returns its argument itself, unchanged.
        place: where the tensor lies in an output of several; empty if the output is one tensor.
    """

    name: str
    module: nn.Module
    number: int
    overwritten: bool
    returns_input: bool
    place: str = ""

    @property
    def key(self) -> tuple[nn.Module, int, str]:
        """Module, call number and place, by which two points are the same tensor."""
        return (self.module, self.number, self.place)


class HookPoints:
    """All hook points of a model.

    A module may be a hook point without being a layer: its output may be one tensor that is not
    arranged like the image (attention windows), or it may run only in some forwards (attention
    dropout under `plain_attention`).
    """

    def __init__(
        self,
        root: nn.Module,
        catalogue: LayerCatalogue,
        calls: Iterable[Call],
        hidden: Mapping[str, str],
    ) -> None:
        self._modules = dict(root.named_modules(remove_duplicate=False))
        self._modules.pop("", None)
        self._root = root
        self._catalogue = catalogue
        self._hidden = {self._modules[path] for path in hidden if path in self._modules}
        self._counts: Counter[nn.Module] = Counter()
        # By module, call number and place: whether the tensor is overwritten, or is an argument.
        self._tensors: dict[tuple[nn.Module, int, str], tuple[bool, bool]] = {}
        self._others: dict[tuple[nn.Module, int], tuple[str, tuple[str, ...]]] = {}
        for call in calls:
            self._counts[call.module] += 1
            if call.output is None:
                self._others[call.module, call.number] = call.returned, tuple(call.parts)
            for place, part in ({"": call} if call.output is not None else call.parts).items():
                facts = part.overwritten, part.returns_input
                self._tensors[call.module, call.number, place] = facts

    def find(self, name: str) -> Point:
        """Return the hook point of that name.

        Raises:
            LayerNotFound: no module has that name, a forward calls it fewer times, or it returns no
                tensor at that place.
            UnsupportedModel: the module returns several tensors and the name says not which, or it
                returns none.
        """
        path, digits, place = self._split(name)
        module = self._root if self._is_root(path, digits) else self._modules.get(path)
        if module in self._hidden:
            self._catalogue.resolve(path)  # raises with the reason
        if module is None:
            self._catalogue.resolve(name)  # raises with the nearest names
            raise LayerNotFound(f"no hook point is called {name!r}", name=name)
        calls = max(1, self._counts[module])
        number = int(digits) if digits else calls - 1
        if number >= calls:
            raise LayerNotFound(
                f"{path} is called {calls} time(s) in a forward, so there is no {name}; "
                f"the last call is {path}#{calls - 1}",
                name=name,
                nearest=(f"{path}#{calls - 1}",),
            )
        if self._counts[module] and (module, number, place) not in self._tensors:
            raise self._no_tensor(name, name.removesuffix(place), place, module, number)
        # For a module that did not run in the trace this is unknown: rather copy needlessly.
        overwritten, returns_input = self._tensors.get((module, number, place), (True, False))
        return Point(name, module, number, overwritten, returns_input, place)

    def _split(self, name: str) -> tuple[str, str, str]:
        """Split a name into the module's path, the number of the call and the tensor's place."""
        if name in self._modules:
            return name, "", ""
        match = _NAME.fullmatch(name)
        assert match is not None, "every part of the pattern may be empty"
        path, digits, place = match["path"], match["number"] or "", match["place"]
        if digits or not place:
            return path, digits, place
        # A module may itself be called `w[0]`: the longest name of a module counts.
        for end in (index for index in range(len(name), 0, -1) if name[:index] in self._modules):
            if name[end:].startswith("["):
                return name[:end], "", name[end:]
        return path, digits, place

    def _is_root(self, path: str, digits: str) -> bool:
        if path == OUT and path not in self._modules:
            return bool(self._others.get((self._root, 0), ("", ()))[1])
        return path == LOGITS and (not digits or path not in self._modules)

    def _no_tensor(
        self, name: str, base: str, place: str, module: nn.Module, number: int
    ) -> UnsupportedModel | LayerNotFound:
        if (module, number) not in self._others:
            return LayerNotFound(
                f"{base} returns one tensor, so there is no {name}", name=name, nearest=(base,)
            )
        returned, places = self._others[module, number]
        does = f"{base} returns {described(returned, base, places)}"
        nearest = tuple(base + other for other in places) or self._catalogue.nearest(base)
        if place:
            return LayerNotFound(f"{does}: there is no {name}", name=name, nearest=nearest)
        advice = "name one of them" if places else f"nearest: {', '.join(nearest)}"
        return UnsupportedModel(f"{does}, and a hook point must be one tensor; {advice}")
