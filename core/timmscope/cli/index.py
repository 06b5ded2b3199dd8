"""``timmscope index``: build, extend, thin out, tune and look at the index of a layer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cyclopts import App, Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help
from timmscope.number_list import number_list
from timmscope_registry import ParameterError

if TYPE_CHECKING:
    from timmscope.index import VectorIndex
    from timmscope.store import Store

Metric = Literal["cosine", "l2", "ip"]

app = App(
    name="index",
    help="Keep an index of a layer's rows, to search a store by.",
    help_flags=("--help", "-h"),
    version_flags=(),
    help_format="plaintext",
    default_parameter=Parameter(negative=""),
)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@app.command(help="Build the index of a layer anew.")
@plain_help
def build(
    store: Path,
    layer: str,
    /,
    *,
    metric: Metric = "cosine",
    backend: str = "auto",
    recall: float = 0.95,
    memory: str | None = None,
    seed: int = 0,
    json: parameters.Json = False,
) -> None:
    """Build the index of a layer anew, and keep it in the store.

    Parameters
    ----------
    store
        Store that ``timmscope mine`` made; it may be unfinished.
    layer
        Layer of the store.
    metric
        What near means: angle (``cosine``), distance (``l2``) or inner product (``ip``).
    backend
        Engine, as ``timmscope plugins`` lists them; ``auto`` chooses by the other settings.
    recall
        Share of the 10 true neighbours that searches are to find on average.
    memory
        Most memory that searches may keep, as in ``2G`` or ``500M``; by default no limit.
    seed
        Of everything random.
    """
    from timmscope.index import VectorIndex

    rows = _open(store).layer(layer)
    limit = None if memory is None else _bytes(memory)
    index = VectorIndex.build(
        rows, metric=metric, backend=backend, recall=recall, memory=limit, seed=seed
    )
    index.save()
    _tell(store, index, json=json)


@app.command(help="Add the rows that the store has gained since.")
@plain_help
def add(store: Path, layer: str, /, *, json: parameters.Json = False) -> None:
    """Add the rows that the store has gained since the index was built.

    Parameters
    ----------
    store
        Store that holds the index.
    layer
        Layer of the index.
    """
    index = _load(_open(store), layer)
    added = index.add_missing()
    if added:
        index.save()
    _tell(store, index, json=json, done={"rows_added": added})


@app.command(help="Take rows out of the index.")
@plain_help
def remove(
    store: Path,
    layer: str,
    /,
    *,
    ids: str | None = None,
    where: str | None = None,
    metadata: parameters.Metadata = None,
    compact: parameters.Flag = False,
    json: parameters.Json = False,
) -> None:
    """Take rows out of the index; the store keeps them.

    Parameters
    ----------
    store
        Store that holds the index.
    layer
        Layer of the index.
    ids
        Ids of images, as in ``3,17,100-199``.
    where
        Images that meet a condition, as in ``"label == 'dog' and width > 300"``.
    compact
        Give back what removed rows still take up.
    """
    import numpy as np

    opened = _open(store)
    if metadata is not None:
        opened = opened.with_metadata(metadata)
    if ids is None and where is None and not compact:
        raise ParameterError("nothing to remove is named: expected --where, --ids or --compact")
    index = _load(opened, layer)
    held = index.ids
    chosen = np.zeros(len(opened), dtype=bool)
    if ids is not None:
        named = _ids(ids, len(opened))
        unknown = np.setdiff1d(named, held)
        if len(unknown):
            raise ParameterError(
                f"--ids: the index has no row {unknown[0]} ({len(unknown)} of {len(named)} are not "
                "in it)",
                parameter="ids",
            )
        chosen[named] = True
    if where is not None:
        met = opened.images.where(where)
        chosen = chosen & met if ids is not None else met
    gone = held[chosen[held]]
    if len(gone):
        index.remove(gone)
    if compact:
        index.compact()
    if len(gone) or compact:
        index.save()
    _tell(store, index, json=json, done={"rows_removed": len(gone)})


@app.command(help="Choose the quickest settings that reach a recall.")
@plain_help
def tune(
    store: Path,
    layer: str,
    /,
    *,
    recall: float = 0.95,
    json: parameters.Json = False,
) -> None:
    """Choose the quickest search settings that reach a recall, measured on rows of the index.

    Parameters
    ----------
    store
        Store that holds the index.
    layer
        Layer of the index.
    recall
        Share of the 10 true neighbours that searches are to find on average.
    """
    index = _load(_open(store), layer)
    index.tune(recall)
    index.save()
    _tell(store, index, json=json)


@app.command(help="Show what an index is and what it lacks.")
@plain_help
def info(store: Path, layer: str | None = None, /, *, json: parameters.Json = False) -> None:
    """Show what an index is, how well it finds, and which rows of the store it lacks.

    Parameters
    ----------
    store
        Store that holds the index.
    layer
        Layer of the index; may be left out where there is only one.
    """
    _tell(store, _load(_open(store), layer), json=json)


def _open(path: Path) -> Store:
    from timmscope.store import Store

    return Store.open(path)


def _load(store: Store, layer: str | None) -> VectorIndex:
    """The index kept; that it lacks rows is told in the table."""
    import warnings

    from timmscope.index import VectorIndex

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return VectorIndex.load(store, layer)


def _tell(
    store: Path, index: VectorIndex, *, json: bool, done: dict[str, int] | None = None
) -> None:
    facts = index.info()
    if json:
        output.print_json({"store": str(store), **(done or {}), **facts})
        return
    for what, count in (done or {}).items():
        verb = what.removeprefix("rows_")
        output.say(f"{verb} {count:,} row{'' if count == 1 else 's'}\n")
    output.table(("index", str(facts["layer"])), _lines(facts), keep=["index"])
    place = f"{store} {facts['layer']}"  # commands stand below, where they are never wrapped
    if facts["missing_rows"]:
        output.say(f"\nthe missing rows are added by: timmscope index add {place}")
    if facts["facts"].get("tombstones"):
        output.say(f"\nspace is given back by: timmscope index remove {place} --compact")


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of an index, in words."""
    engine: dict[str, Any] = facts["facts"]
    lines = [
        ("rows", f"{facts['count']:,}, of {facts['dim']} values each"),
        ("compared by", str(index_words(facts["metric"]))),
        ("type", str(engine.get("type", facts["backend"]))),
    ]
    if "chosen" in engine:
        lines.append(("chosen because", str(engine["chosen"])))
    recall = engine.get("recall") or {}
    if recall.get("queries"):
        reached = f"{recall['reached']:.4f} of the {recall['k']} nearest"
        lines.append(
            ("recall", f"{reached} ({recall['queries']:,} searches, {recall['wanted']} wanted)")
        )
    elif engine.get("exact"):
        lines.append(("recall", "exact"))
    parameters = engine.get("parameters")
    if parameters:
        lines.append(("settings", ", ".join(f"{k} {v}" for k, v in parameters.items())))
    if engine.get("tombstones"):
        lines.append(("removed, still stored", f"{engine['tombstones']:,} rows"))
    elif facts["removed"]:
        lines.append(("removed", f"{facts['removed']:,} rows"))
    if facts["failed"]:
        lines.append(("left out", f"{facts['failed']:,} images that could not be read"))
    if facts["non_finite"]:
        lines.append(("left out", f"{facts['non_finite']:,} rows with NaN or infinity"))
    if facts["missing_rows"]:
        lines.append(("missing", f"{facts['missing_rows']:,} rows of the store"))
    lines.append(("size", f"{facts['size'] / 1e6:,.1f} MB"))
    if facts["path"]:
        lines.append(("file", str(facts["path"])))
    return lines


def index_words(metric: Metric) -> str:
    """What a metric compares by."""
    from timmscope.index.metrics import SCORE_NAMES

    return SCORE_NAMES[metric]


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise ParameterError(
            f"--memory is {text!r}, expected a size as in 2G or 500M", parameter="memory"
        )
    return int(float(found[1]) * UNITS[found[2]])


def _ids(text: str, images: int) -> list[int]:
    """Numbers of a list with ranges, each once and in order, of a store with so many images."""
    try:
        return sorted(number_list(text, images))
    except ValueError as error:
        raise ParameterError(f"--ids: {error}", parameter="ids") from None
