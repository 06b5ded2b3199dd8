"""Hook points by name: ``blocks.4``, ``blocks.4.act#0``, ``logits``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from timmscope_registry.errors import LayerNotFound, UnsupportedModel
from timmscope_registry.hooks.layers import LOGITS, LayerCatalogue


@dataclass(frozen=True)
class Point:
    """A call of a module: where a context acts.

    Attributes:
        name: as it was asked for.
        module: the module.
        number: which of its calls in a forward.
        overwritten: whether the model changes the output in place later.
    """

    name: str
    module: nn.Module
    number: int
    overwritten: bool

    @property
    def key(self) -> tuple[nn.Module, int]:
        """What makes two points the same place."""
        return (self.module, self.number)


def find_point(
    name: str, root: nn.Module, catalogue: LayerCatalogue, counts: Mapping[str, int]
) -> Point:
    """Return the hook point of that name.

    A module may be a hook point without being a layer: its output is one tensor that does not lie
    on the image (windows), or it runs only at times (attention dropout under `plain_attention`).

    Raises:
        LayerNotFound: no module is called so, or it is not called that often in a forward.
        UnsupportedModel: the module does not return one tensor.
    """
    path, hash_, digits = name.partition("#")
    modules = dict(root.named_modules(remove_duplicate=False))
    module = root if path == LOGITS and not hash_ else modules.get(path)
    if module is None or path == "" or (hash_ and not digits.isdecimal()):
        catalogue.resolve(name)  # raises with the nearest names
        raise LayerNotFound(f"no hook point is called {name!r}", name=name)
    reason = catalogue.refusal(name) or ""
    if reason.startswith("it returns a "):
        nearest = catalogue.nearest(name)
        raise UnsupportedModel(f"{name} cannot be hooked: {reason}; nearest: {', '.join(nearest)}")
    first = next(known for known, part in root.named_modules() if part is module)
    calls = counts.get(first, 1)
    number = int(digits) if hash_ else calls - 1
    if number >= calls:
        raise LayerNotFound(
            f"{path} is called {calls} time(s) in a forward, so there is no {name}; "
            f"the last call is {path}#{calls - 1}",
            name=name,
            nearest=(f"{path}#{calls - 1}",),
        )
    overwritten = name in catalogue and catalogue.resolve(name).overwritten
    return Point(name, module, number, overwritten)
