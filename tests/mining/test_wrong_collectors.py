"""Rows or states that differ from a collector's declaration are refused and never stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from timmscope import HookedModel
from timmscope.collectors import Collector, Column, LayerBatch, RowCollector
from timmscope.mining import mine
from timmscope_registry import ParameterError, PluginError, get_registry, set_registry

THREE = {"q": Column(shape=(3,), dtype="float32", fill=-1)}


class Rows(RowCollector):
    """Returns the rows and columns that a test gives it."""

    name = "wrong"

    def __init__(self, rows: Callable[[int], Any], columns: Callable[[], Any] = THREE.copy) -> None:
        super().__init__()
        self._given, self._columns = rows, columns

    def columns(self, layer: Any) -> Any:
        return self._columns()

    def reduce(self, layer: Any, activation: Tensor) -> Any:
        return self._given(len(activation))


class State(Collector):
    """Returns the state that a test gives it."""

    name = "wrong"
    needs = ("pooled",)

    def __init__(self, state: Any) -> None:
        self._state = state

    def fresh(self) -> Any:
        return State(self._state)

    def update(self, batch: LayerBatch) -> None: ...

    def merge(self, other: Collector) -> None: ...

    def state(self) -> Any:
        return self._state

    def load(self, state: Any) -> None: ...


def run(model: HookedModel, pictures: Path, out: Path, *collectors: Any) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "shard_size": 12, "top_k": 2, "workers": 0}
    mine(model, pictures, out, layers=["layer1"], collectors=collectors, **settings)


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (lambda n: {"q": torch.zeros(n, 4)}, r"'q' as \(4, 4\) float32"),
        (lambda n: {"q": torch.zeros(n, 1)}, r"'q' as \(4, 1\) float32"),  # would be broadcast
        (lambda n: {"q": torch.zeros(3)}, r"'q' as \(3,\) float32"),  # so would this
        (lambda n: {"q": torch.zeros(n, 3).double()}, r"'q' as \(4, 3\) float64"),
        (lambda n: {"q": torch.zeros(n, 3).bfloat16()}, r"'q' as \(4, 3\) bfloat16"),
        (lambda n: {"q": torch.zeros(n, 3), "z": torch.zeros(n)}, "rows q, z, its columns say q"),
        (lambda n: {}, "rows none, its columns say q"),  # rows would hold whatever memory held
        (lambda n: None, "nothing, its columns say q"),
        (lambda n: {"q": np.zeros((n, 3))}, "'q' is an array of type float64; expected a tensor"),
    ],
)
def test_rows_that_differ_from_their_columns_are_refused_by_name(
    small_model: HookedModel, pictures: Path, tmp_path: Path, rows: Any, what: str
) -> None:
    line = rf"^collector wrong failed in layer layer1, images 0 to 3 \(TypeError: .*{what}.*\)"
    with pytest.raises(PluginError, match=line):
        run(small_model, pictures, tmp_path / "s", Rows(rows))
    assert not list((tmp_path / "s").rglob("*.h5"))


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        (lambda: {"q": Column(shape=(3,), dtype="float33", fill=0)}, "float33"),
        (lambda: {"q": Column(shape=(3,), dtype="object", fill=0)}, "expected numbers"),
        (lambda: {"q": Column(shape=(-3,), dtype="int8", fill=0)}, r"'q' has the shape \(-3,\)"),
        (lambda: {"q": Column(shape=(), dtype="int8", fill=128)}, "cannot hold its fill 128"),
        (lambda: {"q": Column(shape=(), dtype="int32", fill=float("nan"))}, "hold its fill nan"),
        (lambda: {"a/b": THREE["q"]}, "'a/b' is no name"),
        (lambda: {"q": (3,)}, "'q' is a tuple"),
        (lambda: None, "returned nothing"),
        (lambda: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_columns_that_no_shard_can_hold_are_refused_before_the_first_image(
    small_model: HookedModel, pictures: Path, tmp_path: Path, columns: Any, what: str
) -> None:
    line = rf"^collector wrong has no usable columns for layer layer1 \(.*{what}"
    with pytest.raises(PluginError, match=line):
        run(small_model, pictures, tmp_path / "s", Rows(lambda n: {}, columns))
    assert not (tmp_path / "s/manifest.json").exists()


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (None, "its state is nothing"),
        ({"a": np.array([object()])}, "'a' of its state is an array of type object"),
        ({"a": np.array(["text"])}, "'a' of its state is an array of type <U4"),
        ({"a": [[1], [1, 2]]}, "'a' of its state is a list"),
        ({"a/b": np.zeros(2)}, "'a/b' is no name"),
        ({1: np.zeros(2)}, "1 is no name"),
    ],
)
def test_a_state_that_hdf5_cannot_hold_is_refused_by_name(
    small_model: HookedModel, pictures: Path, tmp_path: Path, state: Any, what: str
) -> None:
    line = rf"^collector wrong failed in layer layer1, images 0 to 11 \(.*{what}"
    with pytest.raises(PluginError, match=line):
        run(small_model, pictures, tmp_path / "s", State(state))
    assert not list((tmp_path / "s").rglob("*.h5*"))


class Meddling(State):
    """Changes the rows that it receives."""

    def fresh(self) -> Any:
        return self

    def update(self, batch: LayerBatch) -> None:
        batch.rows["pooled"][:] -= 1  # type: ignore[index]


def test_a_collector_cannot_change_the_rows_that_are_stored(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    line = r"^collector wrong failed in layer layer1, images 0 to 11 \(ValueError: .*read-only"
    with pytest.raises(PluginError, match=line):
        run(small_model, pictures, tmp_path / "s", Meddling({}))


def test_two_collectors_of_the_same_rows_and_a_class_instead_of_a_collector_are_refused(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    twice = Rows(lambda n: {}, lambda: {"pooled": THREE["q"]})
    with pytest.raises(ParameterError, match="wrong keeps rows 'pooled' of layer1, which another"):
        run(small_model, pictures, tmp_path / "s", twice)
    with pytest.raises(ParameterError, match="is not a collector; pass an instance"):
        run(small_model, pictures, tmp_path / "s", State)


def test_an_error_of_a_plugins_collector_names_the_plugin(
    small_model: HookedModel, pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "foo.py").write_text(
        "from timmscope_registry import CollectorSpec, hookimpl\n"
        "@hookimpl\n"
        "def timmscope_collectors():\n"
        f"    yield CollectorSpec(name='odd', summary='.', impl='{__name__}:State')\n"
    )
    set_registry(None)
    get_registry().load_file(tmp_path / "foo.py")
    try:
        with pytest.raises(PluginError, match=r"^collector .odd. of foo\.py failed in layer"):
            run(small_model, pictures, tmp_path / "s", State(None))
    finally:
        set_registry(None)
