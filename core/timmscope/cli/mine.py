"""``timmscope mine``: one pass over a data set, kept in a store."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.names import names
from timmscope.cli.text import plain_help
from timmscope_registry import ParameterError, TimmscopeError

if TYPE_CHECKING:
    import numpy as np

    from timmscope.store import Store
    from timmscope.store.manifest import PrecisionError

SHOWN = 10
"""Unreadable images named one by one; all are in the store."""


@plain_help
def mine(
    model: parameters.Model,
    images: parameters.DataSet,
    /,
    *,
    store: Annotated[Path, Parameter(name=["--output", "-o"])],
    layers: Annotated[
        tuple[str, ...], Parameter(name=["--layers", "--layer", "-l"], show_default=False)
    ] = (),
    maps: parameters.Repeated = (),
    collector: parameters.Repeated = (),
    top_k: int | None = None,
    batch_size: str | None = None,
    shard_size: int | None = None,
    precision: Literal["float32", "bfloat16", "bf16"] | None = None,
    ranges: Annotated[str | None, Parameter(show_default=False)] = None,
    workers: int | None = None,
    device: parameters.Device = None,
    json: parameters.Json = False,
) -> None:
    """Run a model over images and keep its activations in a store.

    A pass that was interrupted goes on where it stopped when the same command is given again.

    Parameters
    ----------
    store
        Folder to make, by custom ``NAME.scope``.
    layers
        Layer to mine; may be repeated, or several with commas between. By default the last one
        with a grid and the pooled features.
    maps
        Layer whose full maps to keep as well; large: their size is said first. May be repeated.
    collector
        A plugin's collector to feed as well, by name; may be repeated.
    top_k
        How many of the strongest images to keep for every unit; by default 100.
    batch_size
        Images a forward; by default 32. ``auto``: as many as memory allows, up to 64 (256 on an
        accelerator).
    shard_size
        Images in a file of the store; by default 1024.
    precision
        Type of number the model runs in; by default float32. The error of bf16 (bfloat16) is
        measured on the first images, told at the end and kept in the store.
    ranges
        ``i/n``: mine only the i-th of n parts, each with its own --output, at the same time or on
        several machines; ``timmscope merge`` joins them.
    workers
        Processes that decode images; by default one a processor, at most 2.
    """
    part = None if ranges is None else _part(ranges)
    with telling(store):
        from timmscope.mining import mine as run
        from timmscope.models import load_model

        made = run(
            load_model(model, device=device),
            images,
            store,
            layers=names(layers) or None,
            maps=names(maps),
            collectors=names(collector),
            batch_size=None if batch_size is None else _batch_size(batch_size),
            shard_size=shard_size,
            top_k=top_k,
            precision=precision,
            ranges=part,
            workers=workers,
        )
    summarise(made, store, json=json)


def summarise(made: Store, named: Path, *, json: bool) -> None:
    """Print what a pass, or a merge of parts, left behind.

    Args:
        made: the store.
        named: its folder, as the user wrote it.
        json: print JSON.
    """
    from timmscope.store.nonfinite import nonfinite_counts

    manifest = made.manifest
    bad = made.images.unreadable()
    odd = {layer: counts for layer, counts in nonfinite_counts(made).items() if counts.any()}
    size = sum(file.stat().st_size for file in made.path.rglob("*") if file.is_file())
    if json:
        output.print_json(
            {
                "store": str(named),
                "model": manifest.model.id,
                "images": manifest.image_count,
                "part": manifest.part,
                "unreadable": [
                    {"image_id": number, "path": path, "reason": reason}
                    for number, path, reason in bad
                ],
                "layers": list(made.layers),
                "nonfinite_units": {
                    layer: {int(unit): int(counts[unit]) for unit in counts.nonzero()[0]}
                    for layer, counts in odd.items()
                },
                "batch_size": manifest.batch_size,
                "precision": manifest.precision,
                "precision_error": manifest.precision_error and manifest.precision_error.layers,
                "bytes": size,
            }
        )
        return
    _layers(made)
    if bad:
        output.say()
        output.table(("unreadable image", "reason"), [entry[1:] for entry in bad[:SHOWN]])
        if len(bad) > SHOWN:
            output.say(f"… and {len(bad) - SHOWN} more")
    if manifest.precision_error is not None:
        _precision(manifest.precision, manifest.precision_error)
    output.say()
    for layer, counts in odd.items():
        output.say(_odd(layer, counts))
    skipped = f", {len(bad)} of them unreadable and skipped" if bad else ""
    part = "" if manifest.part is None else ", part {} of {}".format(*manifest.part)
    output.say(
        f"{named}: {manifest.image_count} images{part}{skipped}, through {manifest.model.id}; "
        f"{size / 1e6:.1f} MB"
    )
    if manifest.part:
        output.say("next: timmscope merge PARTS -o WHOLE.scope, once all parts are there")
        return
    gridded = [name for name, record in made.layers.items() if record.grid]
    seen = (gridded or list(made.layers))[-1]
    typed = shlex.quote(str(named))
    output.say(f"next: timmscope top {typed} {seen} 0")
    output.say(f"      timmscope search {typed} IMAGE")


def _layers(made: Store) -> None:
    output.table(
        ("layer", "layout", "units", "grid", "kept"),
        [
            (
                record.name,
                record.layout,
                record.channels,
                "×".join(map(str, record.grid)) if record.grid else "",
                ", ".join(record.kinds),
            )
            for record in made.layers.values()
        ],
        right=("units",),
    )


def _precision(name: str, error: PrecisionError) -> None:
    """A table of a lower precision's error, layer by layer."""
    kinds = list(dict.fromkeys(kind for row in error.layers.values() for kind in row))
    output.say()
    output.table(
        (f"{name} error", *kinds),
        [
            (layer, *("" if kind not in row else _percent(row[kind]) for kind in kinds))
            for layer, row in error.layers.items()
        ],
        right=kinds,
    )
    output.say(
        f"root mean square of the difference to float32, over that of the values; on the first "
        f"{error.images} images"
    )


def _percent(share: float | None) -> str:
    return "overflow" if share is None else f"{100 * share:.2g} %"


def _odd(layer: str, counts: np.ndarray) -> str:
    """One line on the units of a layer that are not always finite."""
    units = int((counts > 0).sum())
    worst = int(counts.argmax())
    return (
        f"{layer}: {units} of {len(counts)} units are NaN or infinite at some images, most often "
        f"unit {worst}, at {counts[worst]}; top and statistics leave those values out"
    )


def _batch_size(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise ParameterError(
            f"--batch-size {text!r}: expected a number of images, or auto", parameter="batch_size"
        )
    return int(text)


def _part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and number.strip().isdecimal() and parts.strip().isdecimal()):
        raise ParameterError(f"--ranges {text}: expected i/n, as in 2/4", parameter="ranges")
    return int(number), int(parts)


@contextmanager
def telling(store: Path) -> Iterator[None]:
    """Show on stderr what mining or merging has to say, and after Ctrl-C how to go on."""
    log, lines = logging.getLogger("timmscope.mining"), _Lines(logging.INFO)
    before = log.level
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(_how_to_go_on(store))
        raise
    finally:
        log.setLevel(before)
        log.removeHandler(lines)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        output.complain(record.getMessage())


def _how_to_go_on(store: Path) -> str:
    from timmscope.store import Manifest

    try:
        manifest = Manifest.read(store.resolve())
    except TimmscopeError:
        return "before the first shard: give the same command to begin again"
    done, of = len(manifest.shards), len(manifest.own_shards)
    return f"with {done} of {of} shards done: give the same command again to go on"
