"""Hook points by name: ``blocks.4``, ``blocks.4.act#0``, ``logits``."""

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
    """A call of a module: where a context acts.

    Attributes:
        name: as it was asked for.
        module: the module.
        number: which of its calls in a forward.
        overwritten: whether the model may change the output in place later.
        handed_on: whether the module returns its argument itself, untouched.
    """

    name: str
    module: nn.Module
    number: int
    overwritten: bool
    handed_on: bool

    @property
    def key(self) -> tuple[nn.Module, int]:
        """What makes two points the same place."""
        return (self.module, self.number)


class HookPoints:
    """All hook points of a model.

    A module may be a hook point without being a layer: its output is one tensor that does not lie
    on the image (windows), or it runs only at times (attention dropout under `plain_attention`).
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
        self._handed_on: set[tuple[nn.Module, int]] = set()
        self._counts: Counter[nn.Module] = Counter()
        for call in calls:
            self._counts[call.module] += 1
            key = (call.module, call.number)
            if call.output is None:
                self._returned[key] = call.returned
            else:
                self._overwritten[key] = call.overwritten
            if call.handed_on:
                self._handed_on.add(key)

    def find(self, name: str) -> Point:
        """Return the hook point of that name.

        Raises:
            LayerNotFound: no module is called so, or it is not called that often in a forward.
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
        # Nothing is known of a module that did not run in the trace: better one copy too many.
        overwritten = self._overwritten.get(key, True)
        return Point(name, module, number, overwritten, key in self._handed_on)
