"""Finds hook points by name: ``blocks.4``, ``blocks.4.act#0``, ``logits``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from timmscope_registry.errors import LayerNotFound, UnsupportedModel
from timmscope_registry.hooks.layers import LOGITS, LayerCatalogue
from timmscope_registry.hooks.trace import Call


@dataclass(frozen=True)
class Point:
    """A hook point: one call of one module in a forward.

    Attributes:
        name: the name under which it was requested.
        module: the module.
        number: index of the call among the module's calls in one forward.
        overwritten: whether the model may later change the output in place.
        returns_input: whether the module returns its argument itself, unchanged.
    """

    name: str
    module: nn.Module
    number: int
    overwritten: bool
    returns_input: bool

    @property
    def key(self) -> tuple[nn.Module, int]:
        """Module and call number, by which two points are the same place."""
        return (self.module, self.number)


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
        self._returned: dict[tuple[nn.Module, int], str] = {}
        self._overwritten: dict[tuple[nn.Module, int], bool] = {}
        self._returns_input: set[tuple[nn.Module, int]] = set()
        self._counts: Counter[nn.Module] = Counter()
        for call in calls:
            self._counts[call.module] += 1
            key = (call.module, call.number)
            if call.output is None:
                self._returned[key] = call.returned
            else:
                self._overwritten[key] = call.overwritten
            if call.returns_input:
                self._returns_input.add(key)

    def find(self, name: str) -> Point:
        """Return the hook point of that name.

        Raises:
            LayerNotFound: no module has that name, or a forward calls it fewer times.
            UnsupportedModel: the module does not return one tensor.
        """
        path, hash_, digits = name.partition("#")
        is_root = path == LOGITS and (not hash_ or path not in self._modules)
        module = self._root if is_root else self._modules.get(path)
        if module in self._hidden:
            self._catalogue.resolve(path)  # raises with the reason
        if module is None or (hash_ and not digits.isdecimal()):
            self._catalogue.resolve(name)  # raises with the nearest names
            raise LayerNotFound(f"no hook point is called {name!r}", name=name)
        calls = max(1, self._counts[module])
        number = int(digits) if hash_ else calls - 1
        if number >= calls:
            raise LayerNotFound(
                f"{path} is called {calls} time(s) in a forward, so there is no {name}; "
                f"the last call is {path}#{calls - 1}",
                name=name,
                nearest=(f"{path}#{calls - 1}",),
            )
        key = (module, number)
        if key in self._returned:
            nearest = ", ".join(self._catalogue.nearest(path))
            raise UnsupportedModel(
                f"{name} returns a {self._returned[key]}, and a hook point must return one tensor; "
                f"nearest: {nearest}"
            )
        # For a module that did not run in the trace this is unknown: rather copy needlessly.
        overwritten = self._overwritten.get(key, True)
        return Point(name, module, number, overwritten, key in self._returns_input)
