"""`Notes` collects what a technique notes during a call, and joins chunks in image order."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from timmscope.parameters import technique_error
from timmscope.techniques.base import Technique, noting

_PLAIN = (bool, int, float, str, type(None))


class Notes:
    """What a technique notes about the images of one call.

    Args:
        technique: the technique; what another one notes meanwhile is left out, because an inner
            technique works on images of its own.
        images: number of images of the call; None if only notes for all images are possible.
    """

    def __init__(self, technique: Technique, images: int | None = None) -> None:
        self._technique = technique
        self._images = images
        self._noted: dict[str, dict[int, Any]] = {}  # by name and chunk
        self._chunks: list[list[int] | None] = []

    @contextmanager
    def of(self, rows: Iterable[int] | None = None) -> Iterator[None]:
        """Collect the notes that are made inside about images with these positions.

        Args:
            rows: positions of the images in the whole batch; None if their number is known only at
                the end, as that of synthesised images.
        """
        here, chunk = len(self._chunks), None if rows is None else list(rows)
        self._chunks.append(chunk)

        def add(technique: Technique, name: str, values: Any) -> None:
            if technique is not self._technique:
                return
            if not isinstance(name, str) or not name.strip():
                raise technique_error(technique, f"named a note {name!r}", expected="text")
            plain = _plain(values)
            if plain is _WRONG:
                did = f"noted {type(values).__name__} for {name!r}"
                wanted = "numbers, booleans or text, one or one per image"
                raise technique_error(technique, did, expected=wanted)
            if isinstance(plain, list) and chunk is not None:
                self._require_one_each(name, plain, len(chunk))
            self._noted.setdefault(name, {})[here] = plain

        token = noting.set(add)
        try:
            yield
        finally:
            noting.reset(token)

    def joined(self, images: int | None = None) -> dict[str, Any]:
        """Return the notes by name: a list with one value per image, or one value for all.

        Args:
            images: number of images, if it was not known at the start.

        Raises:
            TechniqueError: a note has fewer or more values than there are images.
        """
        count = self._images if images is None else images
        return {name: self._join(name, chunks, count) for name, chunks in self._noted.items()}

    def _join(self, name: str, noted: dict[int, Any], count: int | None) -> Any:
        first = next(iter(noted.values()))
        if self._chunks == [None]:
            if isinstance(first, list):
                self._require_one_each(name, first, count)
            return first
        same = len(noted) == len(self._chunks) and all(value == first for value in noted.values())
        if same and not isinstance(first, list):
            return first
        whole: list[Any] = [None] * (count or 0)
        for chunk, values in noted.items():
            rows = self._chunks[chunk] or []
            each = values if isinstance(values, list) else [values] * len(rows)
            for row, value in zip(rows, each, strict=True):
                whole[row] = value
        return whole

    def _require_one_each(self, name: str, values: list[Any], count: int | None) -> None:
        if len(values) == count:
            return
        did = f"noted {len(values)} value{'s' * (len(values) != 1)} of {name!r}"
        if count is None:
            raise technique_error(self._technique, did, expected="one value for all images")
        wanted = f"one for all, or one for each of {count} image{'s' * (count != 1)}"
        raise technique_error(self._technique, did, expected=wanted)


_WRONG = object()


def _plain(values: Any) -> Any:
    """Return values as JSON has them; `_WRONG` if they are neither plain nor a flat list."""
    if hasattr(values, "tolist"):  # tensors, arrays and NumPy's numbers
        values = values.tolist()
    if isinstance(values, list | tuple):
        plain = [_plain(value) for value in values]
        flat = not any(value is _WRONG or isinstance(value, list) for value in plain)
        return plain if flat else _WRONG
    if not isinstance(values, _PLAIN):
        return _WRONG
    return values if not isinstance(values, float) or math.isfinite(values) else None
