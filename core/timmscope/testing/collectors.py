"""Checks of collectors: states that merge in any order, and a pass that resumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from timmscope.collectors import Collector, Extrema, LayerBatch, Pooled, RowCollector, State
from timmscope.mining import mine, verify
from timmscope.models import HookedModel
from timmscope.store import Store
from timmscope.testing.conformance import Case, check
from timmscope.testing.models import Tripwire, tiny_images, tiny_model
from timmscope.testing.subjects import tiny_pictures

IMAGES = 40
TOLERANCE = 1e-9
"""Relative tolerance for sums in another order."""


@check("collector")
def parameters_recreate_it(case: Case) -> None:
    """`settings` names the parameters of `__init__`, and `fresh` has the same parameters."""
    made = _made(case)
    assert made.parameters() == made.fresh().parameters()
    assert made.name == case.entry.spec.name, f"its name is {made.name!r}"


@check("collector")
def state_can_be_loaded(case: Case) -> None:
    """A collector that loads a state has exactly that state, and can be updated and merged."""
    seen = _fed(case, [slice(None)])
    again = seen.fresh()
    again.load(seen.state())
    assert not _differing(seen.state(), again.state(), 0.0)
    first, rest = slice(0, 11), slice(11, IMAGES)
    fed, merged, other = seen.fresh(), seen.fresh(), seen.fresh()
    fed.load(_fed(case, [first]).state())
    for batch in _batches(case, [rest]):
        fed.update(batch)
    merged.load(_fed(case, [first]).state())
    other.load(_fed(case, [rest]).state())
    merged.merge(other)
    for how, state in (("fed", fed.state()), ("merged", merged.state())):
        differ = _differing(seen.state(), state, TOLERANCE)
        assert not differ, f"{', '.join(differ)} are lost if a loaded state is {how}"


@check("collector")
def empty_is_neutral(case: Case) -> None:
    """Merging with an empty collector, in either order, changes nothing."""
    seen = _fed(case, [slice(None)])
    state = {name: array.copy() for name, array in seen.state().items()}
    seen.merge(seen.fresh())
    assert not _differing(state, seen.state(), 0.0)
    empty = seen.fresh()
    empty.merge(_fed(case, [slice(None)]))
    assert not _differing(state, empty.state(), 0.0)


@check("collector")
def batches_do_not_matter(case: Case) -> None:
    """Images one by one, in batches and all at once give the same state."""
    whole = _fed(case, [slice(None)]).state()
    for size in (1, 7, 16):
        spans = [slice(start, start + size) for start in range(0, IMAGES, size)]
        differ = _differing(whole, _fed(case, spans).state(), TOLERANCE)
        assert not differ, f"{', '.join(differ)} depend on batches of {size}"


@check("collector")
def merge_is_associative_and_commutative(case: Case) -> None:
    """Parts that are merged in any order give the state of the whole."""
    whole = _fed(case, [slice(None)]).state()
    spans = [slice(0, 11), slice(11, 12), slice(12, IMAGES)]

    def part(number: int) -> Collector:
        return _fed(case, [spans[number]])

    for first, second, third in ((0, 1, 2), (2, 1, 0), (1, 2, 0)):
        left = part(first)
        left.merge(part(second))
        left.merge(part(third))
        right, rest = part(first), part(second)
        rest.merge(part(third))
        right.merge(rest)
        for state in (left.state(), right.state()):
            differ = _differing(whole, state, TOLERANCE)
            assert not differ, f"{', '.join(differ)} depend on the order of merging"


@check("collector")
def rows_are_only_read(case: Case) -> None:
    """`update` does not change the rows that it reads."""
    batch = _batches(case, [slice(None)])[0]
    before = {kind: rows.copy() for kind, rows in batch.rows.items()}
    _made(case).update(batch)
    assert all(np.array_equal(before[kind], rows) for kind, rows in batch.rows.items())


@check("collector")
def interrupted_pass_can_be_resumed(case: Case) -> None:
    """A pass that is interrupted and resumed ends with the same bytes as an uninterrupted one."""
    model, pictures = tiny_model(), tiny_pictures(case.folder)
    whole = _mined(case, model, pictures, "whole")
    wire = model.module.get_submodule("tripwire")
    assert isinstance(wire, Tripwire)
    wire.armed = wire.passed + 8  # in the second shard; the model also runs before the pass
    try:
        _mined(case, model, pictures, "broken")
    except Exception as error:
        assert "tripwire" in str(error), f"another error was raised: {error}"
    else:
        raise AssertionError("the pass ended before it could be interrupted")
    left = Store.open(case.folder / "broken.scope").manifest
    assert 0 < len(left.shards) < left.shard_count, f"{len(left.shards)} shards were done"
    wire.armed = 0
    broken = _mined(case, model, pictures, "broken")
    for part in (broken, whole):
        assert verify(part.path).ok
    layer = whole.layer("act2")
    for kind in layer.record.kinds:
        assert np.array_equal(layer.rows(kind)[:], broken.layer("act2").rows(kind)[:])
    made = _made(case)
    if not isinstance(made, RowCollector):
        one, other = whole.collector("act2", made), broken.collector("act2", made)
        assert not _differing(one.state(), other.state(), 0.0)


def _made(case: Case) -> Collector:
    kind = case.entry.load()
    assert isinstance(kind, type), f"{case.entry.spec.impl} is not a class"
    assert issubclass(kind, Collector), f"{kind.__name__} is not a subclass of Collector"
    made: Collector = kind(**case.parameters)
    return made


def _fed(case: Case, spans: Sequence[slice]) -> Collector:
    made = _made(case)
    for batch in _batches(case, spans):
        made.update(batch)
    return made


def _batches(case: Case, spans: Sequence[slice]) -> list[LayerBatch]:
    """Return the rows of a tiny model's layer in batches, as a pass makes them."""
    import torch

    model, made = tiny_model(), _made(case)
    layer = model.layers["act1"]
    with torch.no_grad(), model.record("act1") as recording:
        model(tiny_images(IMAGES))
    reducers: list[RowCollector] = [Pooled(), Extrema()]
    if isinstance(made, RowCollector):
        reducers = [made]
    rows: dict[str, np.ndarray] = {}
    for reducer in reducers:
        found = reducer.reduce(layer, recording["act1"])
        columns = reducer.columns(layer)
        assert found.keys() == columns.keys(), f"{reducer.name} returns {', '.join(found)}"
        for kind, column in columns.items():
            values = found[kind].numpy()
            assert values.shape == (IMAGES, *column.shape), f"{kind} rows are {values.shape}"
            rows[kind] = values.astype(column.dtype)
    ids = np.arange(100, 100 + IMAGES)
    return [
        LayerBatch(
            layer="act1", ids=ids[span], rows={kind: values[span] for kind, values in rows.items()}
        )
        for span in spans
    ]


def _mined(case: Case, model: HookedModel, pictures: object, name: str) -> Store:
    given = [] if case.entry.plugin.distribution == "timmscope" else [_made(case)]
    return mine(
        model, str(pictures), case.folder / f"{name}.scope", layers=["act2"], shard_size=6,
        batch_size=3, workers=0, collectors=given,
    )  # fmt: skip


def _differing(one: State, other: State, tolerance: float) -> list[str]:
    if one.keys() != other.keys():
        return sorted(one.keys() ^ other.keys())
    return [name for name in one if not _close(one[name], other[name], tolerance)]


def _close(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not tolerance or one.dtype.kind != "f":
        return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
    return bool(np.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True))
