"""Names of a model's classes, so that users can write `tiger cat` instead of 282."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from torch import nn

from timmscope_registry import ObjectiveError, nearest


class ClassNames(Sequence[str]):
    """Names of a model's classes; `find` returns the index of a name, synonym or WordNet id.

    Args:
        names: one name per class; synonyms are separated by a comma and a space, as in ImageNet.
        keys: one further unique key per class, for example the WordNet id (`n02123159`).
    """

    def __init__(self, names: Iterable[str], keys: Iterable[str] = ()) -> None:
        self._names = list(names)
        self._keys = list(keys)
        self._indices: dict[str, list[int]] = {}
        for index, name in enumerate(self._names):
            for synonym in {name, *name.split(", ")}:
                self._indices.setdefault(_fold(synonym), []).append(index)
        for index, key in enumerate(self._keys):
            self._indices.setdefault(_fold(key), []).append(index)

    def differs_at(self, other: ClassNames) -> int | None:
        """Return the first class that has another name in the other list; None if all agree."""
        pairs = enumerate(zip(self._names, other, strict=False))
        return next((number for number, (one, two) in pairs if one != two), None)

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
        """Return the first synonym of a class: `tabby` for `tabby, tabby cat`."""
        return self._names[index].split(", ")[0]

    def find(self, name: str) -> int:
        """Return the index of the class of that name; upper and lower case are the same.

        Raises:
            ObjectiveError: no class or several classes have that name.
        """
        indices = self._indices.get(_fold(name), [])
        if len(indices) == 1:
            return indices[0]
        if indices:
            extra = self._keys or self._names
            choices = ", ".join(f"{index} ({extra[index]})" for index in indices)
            raise ObjectiveError(f"{name!r} names several classes: {choices}; use the number")
        close = nearest(_fold(name), self._indices)
        hint = f"; did you mean {' or '.join(repr(item) for item in close)}?" if close else ""
        raise ObjectiveError(f"no class is called {name!r}{hint}")


def _fold(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def timm_classes(module: nn.Module) -> ClassNames | None:
    """Class names of a timm model: those that its configuration holds, or else ImageNet's.

    ImageNet's are those of the variant with as many classes. None if neither fits the number of
    classes.
    """
    from timm.data import ImageNetInfo, infer_imagenet_subset

    config = getattr(module, "pretrained_cfg", None) or {}
    labels = config.get("label_names")
    if isinstance(labels, list | tuple) and len(labels) == getattr(module, "num_classes", None):
        described = config.get("label_descriptions")
        if isinstance(described, dict):
            return ClassNames([str(described.get(label, label)) for label in labels], labels)
        return ClassNames(map(str, labels))
    subset = infer_imagenet_subset(module)
    if subset is None:
        return None
    info = ImageNetInfo(subset)
    count = info.num_classes()
    names = [info.index_to_description(index) for index in range(count)]
    return ClassNames(names, [info.index_to_label_name(index) for index in range(count)])
