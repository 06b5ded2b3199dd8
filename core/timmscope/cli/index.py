"""``timmscope index`` builds, extends, shrinks, tunes and shows the index of a layer."""

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
    help="Manage the index of a layer's rows, which makes searches fast.",
    help_flags=("--help", "-h"),
    version_flags=(),
    help_format="plaintext",
    default_parameter=Parameter(negative=""),
)
UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


@app.command(help="Build the index of a layer.")
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
    seed: parameters.Whole = 0,
    json: parameters.Json = False,
) -> None:
    """Build the index of a layer and save it in the store; an older one is replaced.

    Parameters
    ----------
    store
        Store that ``timmscope mine`` made; it may be unfinished.
    layer
        Layer of the store.
    metric
        Measure of nearness: angle (``cosine``), distance (``l2``) or inner product (``ip``).
    backend
        Index backend, as in ``timmscope plugins``; ``auto`` chooses by the other settings.
    recall
        Share of the 10 true neighbours that searches are to find on average.
    memory
        Most memory that searches may use, as in ``2G`` or ``500M``; by default no limit.
    seed
        Seed of all random numbers.
    """
    from timmscope.index import VectorIndex

    rows = _open(store).layer(layer)
    limit = None if memory is None else _bytes(memory)
    index = VectorIndex.build(
        rows, metric=metric, backend=backend, recall=recall, memory=limit, seed=seed
    )
    index.save()
    _print_info(store, index, json=json)


@app.command(help="Add the rows that the store has gained since the build.")
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
    missing = index.missing_rows
    added = index.add_missing()
    if missing:
        index.save()
    _print_info(store, index, json=json, done={"rows_added": added})


@app.command(help="Remove rows from the index.")
@plain_help
def remove(
    store: Path,
    layer: str,
    /,
    *,
    ids: str | None = None,
    where: parameters.Text = None,
    metadata: parameters.Metadata = None,
    compact: parameters.Flag = False,
    json: parameters.Json = False,
) -> None:
    """Remove rows from the index; the store keeps them.

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
        Free the space of removed rows.
    """
    import numpy as np

    opened = _open(store)
    if metadata is not None:
        opened = opened.with_metadata(metadata)
    if ids is None and where is None and not compact:
        raise ParameterError("nothing to remove: expected --where, --ids or --compact")
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
    _print_info(store, index, json=json, done={"rows_removed": len(gone)})


@app.command(help="Choose the fastest settings that reach a recall.")
@plain_help
def tune(
    store: Path,
    layer: str,
    /,
    *,
    recall: float = 0.95,
    json: parameters.Json = False,
) -> None:
    """Choose the fastest search settings that reach a recall, measured on rows of the index.

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
    _print_info(store, index, json=json)


@app.command(help="Show the facts of an index, and rows that it is missing.")
@plain_help
def info(store: Path, layer: str | None = None, /, *, json: parameters.Json = False) -> None:
    """Show the type, settings, recall and size of an index, and how many rows it is missing.

    Parameters
    ----------
    store
        Store that holds the index.
    layer
        Layer of the index; optional if the store has only one index.
    """
    _print_info(store, _load(_open(store), layer), json=json)


def _open(path: Path) -> Store:
    from timmscope.store import Store

    return Store.open(path)


def _load(store: Store, layer: str | None) -> VectorIndex:
    """Load an index without its warning of missing rows, which the table shows."""
    import warnings

    from timmscope.index import VectorIndex

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return VectorIndex.load(store, layer)


def _print_info(
    store: Path, index: VectorIndex, *, json: bool, done: dict[str, int] | None = None
) -> None:
    facts = index.info()
    if json:
        output.print_json({"store": str(store), **(done or {}), **facts})
        return
    for what, count in (done or {}).items():
        verb = what.removeprefix("rows_")
        output.say(f"{verb} {count:,} row{'' if count == 1 else 's'}\n")
    output.table(("index", str(facts["layer"])), _info_lines(facts), keep=["index"])
    place = f"{store} {facts['layer']}"  # outside the table, where commands are not wrapped
    if facts["missing_rows"]:
        output.say(f"\nadd the missing rows with: timmscope index add {place}")
    if facts["facts"].get("tombstones"):
        output.say(
            f"\nfree the space of removed rows with: timmscope index remove {place} --compact"
        )


def _info_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the table's rows: what is known about an index."""
    from timmscope.index.metrics import SCORE_NAMES

    engine: dict[str, Any] = facts["facts"]
    lines = [
        ("rows", f"{facts['count']:,}, of {facts['dim']} values each"),
        ("compared by", SCORE_NAMES[facts["metric"]]),
        ("type", str(engine.get("type", facts["backend"]))),
    ]
    if "chosen" in engine:
        lines.append(("chosen because", str(engine["chosen"])))
    recall = engine.get("recall") or {}
    if recall.get("queries"):
        reached = f"{recall['reached']:.4f} of the {recall['k']} nearest"
        lines.append(
            ("recall", f"{reached} ({recall['queries']:,} searches, target {recall['wanted']})")
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


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if found is None:
        raise ParameterError(
            f"--memory is {text!r}, expected a size as in 2G or 500M", parameter="memory"
        )
    return int(float(found[1]) * UNITS[found[2]])


def _ids(text: str, images: int) -> list[int]:
    """Return the sorted ids of a list with ranges, for a store of `images` images."""
    try:
        return sorted(number_list(text, images))
    except ValueError as error:
        raise ParameterError(f"--ids: {error}", parameter="ids") from None
