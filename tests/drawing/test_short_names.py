"""Captions name images by as much of their paths as tells them apart."""

from __future__ import annotations

import pytest

from timmscope.drawing import short_names


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/cat.jpg", "b/dog.png"], ["cat", "dog"]),
        (["a/012.png", "b/012.png", "b/013.png"], ["a/012", "b/012", "b/013"]),
        (["a/x/1.png", "b/x/1.png"], ["a/x/1", "b/x/1"]),
        (["a/1.png", "a/1.jpg"], ["1.png", "1.jpg"]),
        (["a/1.png", "a/1.jpg", "b/1.jpg"], ["a/1.png", "a/1.jpg", "b/1.jpg"]),
        (["a/1.png", "a/1.png"], ["1", "1"]),
        (["x.tar/1.png", "1.png"], ["x.tar/1", "1"]),
        (["row 7", "row 8"], ["row 7", "row 8"]),
        (["", "a"], ["", "a"]),
        ([], []),
    ],
)
def test_names_are_as_long_as_they_must_be(paths: list[str], names: list[str]) -> None:
    assert short_names(paths) == names


def test_names_are_told_apart_from_others_that_are_not_shown() -> None:
    others = [f"{folder}/{number:03d}.png" for folder in range(19) for number in range(1000)]
    assert short_names(["3/012.png"], others) == ["3/012"]
    assert short_names(["0/012.png"], others[:1000]) == ["012"]
