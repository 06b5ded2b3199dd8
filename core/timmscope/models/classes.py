"""What a model's outputs are called, so that people may write `tiger cat` instead of 282."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from torch import nn

from timmscope_registry import ObjectiveError, nearest


class ClassNames(Sequence[str]):
    """Names of a model's classes by index, found again by name, synonym or WordNet id.

    Args:
        names: one name a class; synonyms are separated by a comma and a blank, as ImageNet's are.
        keys: further unique keys a class, for example WordNet ids (`n02123159`).
    """

    def __init__(self, names: Iterable[str], keys: Iterable[str] = ()) -> None:
        self._names = list(names)
        self._keys = list(keys)
        self._found: dict[str, list[int]] = {}
        for index, name in enumerate(self._names):
            for synonym in {name, *name.split(", ")}:
                self._found.setdefault(_fold(synonym), []).append(index)
        for index, key in enumerate(self._keys):
            self._found.setdefault(_fold(key), []).append(index)

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._names[index]

    def __repr__(self) -> str:
        return f"ClassNames({len(self)}: {', '.join(self._names[:3])}, …)"

    def short(self, index: int) -> str:
        """The first synonym of a class: `tabby` for `tabby, tabby cat`."""
        return self._names[index].split(", ")[0]

    def find(self, name: str) -> int:
        """Index of the class of that name, any case.

        Raises:
            ObjectiveError: no class or several classes have that name.
        """
        found = self._found.get(_fold(name), [])
        if len(found) == 1:
            return found[0]
        if found:
            extra = self._keys or self._names
            choices = ", ".join(f"{index} ({extra[index]})" for index in found)
            raise ObjectiveError(f"class {name!r} names several classes: {choices}; use the number")
        close = nearest(_fold(name), self._found)
        hint = f"; did you mean {' or '.join(repr(item) for item in close)}?" if close else ""
        raise ObjectiveError(f"no class is called {name!r}{hint}")


def _fold(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def imagenet_classes(module: nn.Module) -> ClassNames | None:
    """Names of the ImageNet variant that a timm model was made for, by timm's own tables.

    None where the number of outputs fits no variant.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(module)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    count = info.num_classes()
    names = [info.index_to_description(index) for index in range(count)]
    return ClassNames(names, [info.index_to_label_name(index) for index in range(count)])
