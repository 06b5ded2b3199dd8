"""Units are given by number, range or list; units that do not exist are refused."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from timmscope import ParameterError, UnitNumbers, chosen_units


class Holder(BaseModel):
    units: UnitNumbers | None = None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (17, (17,)),
        ("17", (17,)),
        ("3, 5,8-10 ,5", (3, 5, 8, 9, 10)),
        ([9, 2, 9], (9, 2)),
        ((0,), (0,)),
        (None, None),
    ],
)
def test_units_are_parsed_once_each_in_the_given_order(given, expected) -> None:
    assert Holder(units=given).units == expected


@pytest.mark.parametrize("given", ["", "a", "5-3", "-1", "1.5", [], [-2], -3, "1,,2", "0-99999999"])
def test_a_text_that_is_not_a_list_of_units_is_refused(given) -> None:
    with pytest.raises(
        ValidationError, match=r"neither a number nor a range|it is empty|there is no 99999999"
    ):
        Holder(units=given)


def test_units_are_checked_against_the_layer() -> None:
    assert chosen_units(None, "conv", 3) == [0, 1, 2]
    assert chosen_units((2, 0), "conv", 3) == [2, 0]
    assert chosen_units("1-2", "conv", 3) == [1, 2]
    with pytest.raises(ParameterError, match=r"conv has units 0 to 2, there is no unit 3$"):
        chosen_units((3,), "conv", 3)
    with pytest.raises(ParameterError, match=r"no unit 5; 1 more of the given units do not exist"):
        chosen_units((5, 1, 6), "conv", 3)
