"""Names of classes and layers may hold the signs of the objectives' text form."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from timmscope import (
    HookedModel,
    LayerNotFound,
    ObjectiveError,
    channel,
    class_logit,
    direction,
    layer_energy,
    neuron,
    parse_objective,
)

NAMES = ["Apple", "scab", "Apple - scab", "a|b", "2*x", "x", "rust@3,4", "7", 'the "pear"', "-1"]


class Odd(nn.Module):
    """Layers whose names look like units, directions and sums; each adds another number."""

    def __init__(self, names: list[str], classes: int) -> None:
        super().__init__()
        self.num_classes = classes
        for number, name in enumerate(names):
            layer = nn.Conv2d(3, 3, 1, groups=3)
            nn.init.ones_(layer.weight)
            nn.init.constant_(layer.bias, 10.0**number)
            self.add_module(name, layer)
        self.head = nn.Linear(3, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name, layer in self.named_children():
            x = x if name == "head" else layer(x)
        return self.head(x.mean((2, 3)))


def odd(*layers: str, names: list[str] | None = None) -> HookedModel:
    module = Odd(list(layers), len(names or NAMES))
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "input_size": (3, 4, 4)}
    return HookedModel(module, class_names=names or NAMES, **plain)


def bound(model: HookedModel, text: str) -> str:
    return str(parse_objective(text).bind(model, torch.zeros(1, 3, 4, 4)))


@pytest.mark.parametrize("index", range(len(NAMES)))
def test_class_and_a_name_is_always_that_class(index):
    model = odd("conv")
    expected = f"class:{index}"
    if not NAMES[index].lstrip("-").isdecimal():
        assert bound(model, f"class:{NAMES[index]}") == expected
    assert bound(model, f"class:{json.dumps(NAMES[index])}") == expected
    assert bound(model, str(parse_objective(f"class:{json.dumps(NAMES[index])}"))) == expected


def test_digits_are_an_index_and_digits_in_quotes_are_a_name():
    model = odd("conv")
    assert bound(model, "class:3") == bound(model, "3") == "class:3"
    assert bound(model, 'class:"7"') == "class:7"
    assert bound(odd("conv", names=["7", "5", "6"]), 'class:"7" - class:"5"') == "class:0 - class:1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class:Apple - class:scab", "class:0 - class:1"),
        ('class:"Apple" - scab', "class:0 - class:1"),
        ("class:Apple + 2*class:a|b", "class:0 + 2.0*class:3"),
        ("2*class:pear + fig - class:x", "2.0*class:10 - class:5"),
        ("-class:pear + fig", "-class:10"),
    ],
)
def test_sums_are_read_as_sums_of_the_classes_that_exist(text, expected):
    assert bound(odd("conv", names=[*NAMES, "pear + fig"]), text) == expected


@pytest.mark.parametrize("text", ["Apple - scab", "class:x + class:Apple - scab", "2*x"])
def test_a_text_with_several_meanings_is_refused_with_both(text):
    with pytest.raises(ObjectiveError, match=r"has several meanings .* put names in quotes"):
        bound(odd("conv"), text)


def test_sums_in_python_keep_the_meaning_of_a_text():
    model = odd("conv")
    apple_scab = parse_objective("class:Apple - scab")
    twice = (2 * apple_scab + class_logit("x")).bind(model, None)
    assert str(twice) == "2.0*class:2 + class:5"


def test_layers_whose_names_look_like_units_or_directions_are_found():
    model = odd("w[0]", "k@v", "a - b", "2*y", "5", "top")
    image = torch.zeros(1, 3, 4, 4)  # each layer adds 1, 10, 100 …
    for text, value in {
        "w[0][2]": 1,
        '"w[0]"[2,1,1]': 1,
        "k@v[0]": 11,
        "k@v@[1, 0, 0]": 11,
        "a - b[1]": 111,
        "2*y[1]": 1111,
        "2*2*y[1]": 2222,
        "5[1]": 11111,
        "w[0]": 1,
        "k@v": 11**2,
        '"5"': 11111**2,
        '"top"': 111111**2,
        "a - b[1] - k@v[0]": 100,
    }.items():
        assert model.score(image, text).item() == pytest.approx(value), text


def test_a_unit_of_one_layer_that_is_the_name_of_another_is_refused():
    model = odd("w", "w[0]")
    with pytest.raises(ObjectiveError, match=r"\"w\[0\]\" and w\[0\]: put names in quotes"):
        bound(model, "w[0]")
    image = torch.zeros(1, 3, 4, 4)
    assert model.score(image, '"w"[0]').item() == pytest.approx(1)
    assert model.score(image, '"w[0]"').item() == pytest.approx(121)


def test_a_text_that_fits_nothing_is_refused_for_its_usual_meaning():
    model = odd("conv")
    with pytest.raises(LayerNotFound, match="no layer is called 'cnv'"):
        bound(model, "cnv[3]")
    with pytest.raises(ObjectiveError, match="units 0 to 2"):
        bound(model, "conv[3]")
    with pytest.raises(ObjectiveError, match="no class is called 'pear'"):
        bound(model, "class:pear - scab")


names = st.text(st.sampled_from('ab[]|*@"-+ 1.\\'), min_size=1, max_size=8).filter(
    lambda name: name == name.strip() and not name.lstrip("-").isdecimal()
)


@example("1[@]")
@given(names)
def test_any_name_comes_back_from_its_text(name):
    for objective in (
        class_logit(name),
        class_logit([name, name]),
        class_logit(name, 1, 2),
        channel(name, 3),
        neuron(name, 3, 1, 2),
        direction(name, [0.5]),
        channel(name, 3) - 2 * class_logit(name),
    ):
        assert parse_objective(str(objective)) == objective
    assert parse_objective(str(layer_energy(name))).name == name
