"""``timmscope mine`` runs a model over a data set once and keeps its activations in a store."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help
from timmscope.number_list import is_whole
from timmscope_registry import ParameterError, TimmscopeError

if TYPE_CHECKING:
    import numpy as np

    from timmscope.store import Store
    from timmscope.store.manifest import PrecisionError

SHOWN = 10
"""Number of unreadable images that are printed; the store lists all of them."""


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
    top_k: parameters.OptionalWhole = None,
    batch_size: str | None = None,
    shard_size: str | None = None,
    threads: parameters.OptionalWhole = None,
    precision: Literal["float32", "bfloat16", "bf16"] | None = None,
    ranges: Annotated[str | None, Parameter(show_default=False)] = None,
    workers: parameters.OptionalWhole = None,
    device: parameters.Device = None,
    defence: parameters.Defences = (),
    json: parameters.Json = False,
) -> None:
    """Run a model over images and keep its activations in a store.

    After an interruption, run the same command again to resume.

    Parameters
    ----------
    store
        Folder of the store, by convention ``NAME.scope``.
    layers
        Layer to mine; may be repeated, or several separated by commas. By default the last layer
        with a grid and the pooled features.
    maps
        Layer whose full maps are kept as well; may be repeated. Maps are large: their size is
        printed before the pass.
    collector
        A plugin's collector to run as well, by name; may be repeated.
    top_k
        How many of the strongest images to keep for every unit; by default 100.
    batch_size
        Images per forward pass; by default 32. ``auto``: as many as memory allows, up to 64 (256
        on an accelerator).
    shard_size
        Images per file of the store; by default ``auto``: 1024, or more for a store that would
        have over 16,384 files.
    threads
        Threads of a forward on the CPU; by default as many as torch uses. Part of the store: parts
        that are merged need the same number.
    precision
        Number type of the model's forward pass; by default float32. The error of bf16 (bfloat16) is
        measured on the first images, printed at the end and kept in the store.
    ranges
        ``i/n``: mine only the i-th of n parts. Each part has its own --output and may run at the
        same time or on another machine; ``timmscope merge`` merges them.
    workers
        Processes that decode images; by default one per processor, at most 2.
    """
    part = None if ranges is None else _parse_part(ranges)
    with mining_messages(store):
        from timmscope.mining import mine as run
        from timmscope.models import load_model

        made = run(
            load_model(model, device=device, defences=defence),
            images,
            store,
            layers=parameters.split_names(layers) or None,
            maps=parameters.split_names(maps),
            collectors=parameters.split_names(collector),
            batch_size=None if batch_size is None else _parse_size("batch_size", batch_size),
            shard_size=None if shard_size is None else _parse_size("shard_size", shard_size),
            threads=threads,
            top_k=top_k,
            precision=precision,
            ranges=part,
            workers=workers,
        )
    summarise(made, store, json=json)


def summarise(made: Store, named: Path, *, json: bool) -> None:
    """Print a store's facts after a pass or a merge; `named` is its path as the user wrote it."""
    from timmscope.store.nonfinite import nonfinite_counts

    manifest = made.manifest
    bad = made.images.unreadable()
    nonfinite = {layer: counts for layer, counts in nonfinite_counts(made).items() if counts.any()}
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
                    for layer, counts in nonfinite.items()
                },
                "batch_size": manifest.batch_size,
                "precision": manifest.precision,
                "precision_error": manifest.precision_error and manifest.precision_error.layers,
                "bytes": size,
            }
        )
        return
    _print_layers(made)
    if bad:
        output.say()
        output.table(("unreadable image", "reason"), [entry[1:] for entry in bad[:SHOWN]])
        if len(bad) > SHOWN:
            output.say(f"… and {len(bad) - SHOWN} more")
    if manifest.precision_error is not None:
        _print_precision_error(manifest.precision, manifest.precision_error)
    output.say()
    for layer, counts in nonfinite.items():
        output.say(_nonfinite_line(layer, counts))
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


def _print_layers(made: Store) -> None:
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


def _print_precision_error(name: str, error: PrecisionError) -> None:
    """Print a table of a lower precision's error in each layer."""
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
        "root mean square of the difference to float32, divided by that of the values, on the "
        f"first {error.images} images"
    )


def _percent(share: float | None) -> str:
    return "overflow" if share is None else f"{100 * share:.2g} %"


def _nonfinite_line(layer: str, counts: np.ndarray) -> str:
    """Return one line about the units of a layer that are NaN or infinite on some images."""
    units = int((counts > 0).sum())
    worst = int(counts.argmax())
    return (
        f"{layer}: {units} of {len(counts)} units are NaN or infinite on some images, most often "
        f"unit {worst}, on {counts[worst]}; top lists and statistics leave these values out"
    )


def _parse_size(name: str, text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not is_whole(text) or int(text) < 1:
        flag = f"--{name.replace('_', '-')}"
        raise ParameterError(
            f"{flag} {text!r}: expected a number of images, or auto", parameter=name
        )
    return int(text)


def _parse_part(text: str) -> tuple[int, int]:
    number, slash, parts = text.partition("/")
    if not (slash and is_whole(number.strip()) and is_whole(parts.strip())):
        raise ParameterError(f"--ranges {text}: expected i/n, as in 2/4", parameter="ranges")
    return int(number), int(parts)


@contextmanager
def mining_messages(store: Path) -> Iterator[None]:
    """Print the log of mining or merging on stderr, and say how to resume after Ctrl-C."""
    log, lines = logging.getLogger("timmscope.mining"), _StderrHandler(logging.INFO)
    before = log.level
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(_resume_hint(store))
        raise
    finally:
        log.setLevel(before)
        log.removeHandler(lines)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        output.print_stderr(record.getMessage())


def _resume_hint(store: Path) -> str:
    from timmscope.store import Manifest

    try:
        manifest = Manifest.read(store.resolve())
    except TimmscopeError:
        return "before the first shard: run the same command again to start over"
    done, of = len(manifest.shards), len(manifest.own_shards)
    return f"with {done} of {of} shards done: run the same command again to resume"
