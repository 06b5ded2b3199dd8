"""A technique that reads several stores gets the rows of the right layer of each store."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from timmscope import (
    HookedModel,
    LayerNotFound,
    ParameterError,
    Rows,
    Store,
    StoreError,
    StoresTechnique,
    Table,
    mine,
)


class Listing(StoresTechnique):
    """Lists its sources."""

    def analyse(self, sources: list[Rows]) -> Table:
        rows = [
            {
                "title": rows.title,
                "count": len(rows),
                "grey": float(rows.pictures.thumbnails(rows.ids[:1], 1)[0, 0, 0, 0])
                if rows.layer
                else None,
            }
            for rows in sources
        ]
        return Table(provenance=self.provenance(seed_used=self.seed), rows=rows)


class OneLayer(Listing):
    """Reads the same layer of all stores."""

    one_layer: ClassVar[bool] = True


@pytest.fixture
def stores(linear_model: HookedModel, tmp_path: Path) -> list[Store]:
    """Two stores of three images each, `dark` (grey 0) and `light` (grey 1), of two layers."""
    found = []
    for name, grey in (("dark", 0), ("light", 255)):
        (tmp_path / name).mkdir()
        for number in range(3):
            pixels = np.full((4, 4, 3), grey, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
        place = tmp_path / f"{name}.scope"
        found.append(mine(linear_model, tmp_path / name, place, layers=["flatten", "fc"]))
    return found


def titles(result: Any) -> list[str]:
    return [row["title"] for row in result.rows]


def test_all_layers_of_each_store_are_read_by_default(stores: list[Store]) -> None:
    dark, light = stores
    assert titles(Listing()(dark)) == ["flatten of dark.scope", "fc of dark.scope"]
    assert titles(Listing()([dark, str(light.path)], layer="fc")) == [
        "fc of dark.scope",
        "fc of light.scope",
    ]
    assert titles(Listing()([dark, light], layer=["fc", "flatten", "fc"])) == [
        "fc of dark.scope",
        "flatten of dark.scope",
        "fc of light.scope",
        "flatten of light.scope",
    ]
    mixed = Listing()([light.layer("fc"), np.ones((2, 3))], layer="flatten")
    assert titles(mixed) == ["fc of light.scope", "the array"]


def test_one_layer_is_the_given_one_or_the_only_common_one(
    stores: list[Store], linear_model: HookedModel, tmp_path: Path
) -> None:
    dark, light = stores
    only = mine(linear_model, tmp_path / "dark", tmp_path / "only.scope", layers=["fc"])
    flat = mine(linear_model, tmp_path / "dark", tmp_path / "flat.scope", layers=["flatten"])
    assert titles(OneLayer()([light, only])) == ["fc of light.scope", "fc of only.scope"]
    assert titles(OneLayer()(stores, layer=["fc"])) == ["fc of dark.scope", "fc of light.scope"]
    with pytest.raises(ParameterError, match=r"the stores share 2 layers.*one of flatten, fc"):
        OneLayer()(stores)
    with pytest.raises(ParameterError, match=r"dark\.scope holds 2 layers: choose one"):
        OneLayer()(dark)
    with pytest.raises(ParameterError, match="one layer, but 2 are given: fc, flatten"):
        OneLayer()(stores, layer=["fc", "flatten"])
    with pytest.raises(ParameterError, match=r"share no layer: only\.scope holds fc; flat\.scope"):
        OneLayer()([only, flat])
    with pytest.raises(LayerNotFound, match=r"flat\.scope has no layer 'fc'"):
        OneLayer()([only, flat], layer="fc")


def test_conditions_and_the_seed_apply_to_every_store(stores: list[Store]) -> None:
    result = OneLayer()(stores, layer="fc", where="name != '1.png'", seed=7)
    assert [row["count"] for row in result.summary()] == [2, 2]
    assert result.provenance.seed == result.provenance.call["seed_used"] == 7
    with pytest.raises(ParameterError, match=r"fc of light\.scope has no image that meets"):
        OneLayer()([stores[1]], layer="fc", where="name == 'x'")


def test_each_store_may_have_its_own_location_of_images(
    stores: list[Store], tmp_path: Path
) -> None:
    places = [
        shutil.move(tmp_path / name, tmp_path / f"{name}-moved") for name in ("dark", "light")
    ]
    result = Listing()(stores, layer="fc", location=places)
    assert [row["grey"] for row in result.summary()] == [0, 1]
    assert Listing()(stores[1], layer="fc", location=places[1]).summary()[0]["grey"] == 1
    for wrong in (places[0], [*places, places[0]]):
        with pytest.raises(ParameterError, match="of images for 2 stores: give one for each"):
            Listing()(stores, layer="fc", location=wrong)


def test_a_source_that_is_not_a_store_is_an_error_of_one_line(
    stores: list[Store], tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="not a store"):
        Listing()([stores[0], tmp_path])
    with pytest.raises(ParameterError, match="reads a store, its layer or an array, not int"):
        Listing()([stores[0], 3])
