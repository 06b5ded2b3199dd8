"""`Plan` defines what a pass computes: layers, rows, reductions, and their record in a manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from timmscope.collectors import (
    Collector,
    Column,
    Extrema,
    LayerBatch,
    Maps,
    Pooled,
    RowCollector,
    Statistics,
    TopK,
)
from timmscope.collectors.registered import TOP_K_ID, recorded_collector, registered_id
from timmscope.images import ImageSource
from timmscope.store import (
    CollectorRecord,
    ColumnRecord,
    ImagesRecord,
    LayerRecord,
    Manifest,
    ModelRecord,
    Store,
)
from timmscope_registry import (
    ImageError,
    ParameterError,
    UnsupportedModel,
    get_registry,
)
from timmscope_registry.versions import package_version

from .collector_errors import declared_columns, instantiate, storable_state

if TYPE_CHECKING:
    from timmscope.models import HookedModel
    from timmscope_registry.hooks import Layer

BATCH_SIZE = 32
SHARD_SIZE = 1024
_MOST_SHARDS = 1 << 14
TOP_K = 100
PRECISION = "float32"
PRECISIONS = ("float32", "bfloat16")
PRECISION_ALIASES = {"bf16": "bfloat16"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compute at each layer.

    Attributes:
        layers: layers in execution order.
        rows: row collectors by layer name.
        reducers: empty collectors that reduce rows, copied for every layer and shard.
        batch_size: images per forward; part of the result, since it may change the last bits.
        shard_size: images per shard.
        threads: threads of a forward on the CPU; part of the result, like `batch_size`.
        precision: ``float32`` or ``bfloat16`` (autocast; rows are always float32).
        memory_format: memory layout of activations, ``contiguous`` or ``channels_last``.
        folded: the copy of the model without batch norms that the pass runs, if there is one.

    Raises:
        ParameterError: a setting is wrong, two collectors have one name or keep the same rows, or a
            collector needs rows that are not kept.
        PluginError: a collector declares columns that a shard cannot hold.
    """

    layers: tuple[Layer, ...]
    rows: dict[str, tuple[RowCollector, ...]]
    reducers: tuple[Collector, ...]
    batch_size: int = BATCH_SIZE
    shard_size: int = SHARD_SIZE
    threads: int = 1
    precision: str = PRECISION
    memory_format: str = "contiguous"
    folded: HookedModel | None = field(default=None, repr=False, compare=False)
    _declared: dict[tuple[str, str], dict[str, Column]] = field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size", "threads"):
            if getattr(self, name) < 1:
                raise ParameterError(f"{name} must be at least 1", parameter=name)
        if self.precision not in PRECISIONS:
            raise ParameterError(
                f"unknown precision {self.precision!r}; "
                f"choose one of {', '.join([*PRECISIONS, *PRECISION_ALIASES])}",
                parameter="precision",
            )
        names = [collector.name for collector in self.collectors]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ParameterError(
                f"two collectors are called {', '.join(sorted(twice))}", parameter="collectors"
            )
        for layer in self.layers:
            kinds = self._declare(layer)
            for collector in self.reducers:
                if missing := [kind for kind in collector.needs if kind not in kinds]:
                    raise ParameterError(
                        f"collector {collector.name!r} reads {', '.join(missing)} rows, which are "
                        f"not kept of layer {layer.name}; that layer has {', '.join(kinds)}",
                        parameter="collectors",
                    )

    def _declare(self, layer: Layer) -> set[str]:
        """Ask each row collector once for its columns, and return all kinds of rows of a layer."""
        kinds: set[str] = set()
        for collector in self.rows[layer.name]:
            columns = declared_columns(collector, layer)
            if twice := kinds & columns.keys():
                raise ParameterError(
                    f"the collector {collector.name} keeps rows {min(twice)!r} of {layer.name}, "
                    "which another collector keeps too; rename one of them",
                    parameter="collectors",
                )
            self._declared[layer.name, collector.name] = columns
            kinds |= columns.keys()
        return kinds

    @property
    def collectors(self) -> list[Collector]:
        """Every collector once, row collectors first."""
        rows = {row.name: row for layer in self.layers for row in self.rows[layer.name]}
        return [*rows.values(), *self.reducers]

    def columns(self, layer: Layer) -> dict[str, Column]:
        """Return the columns of a layer by kind of row."""
        return {
            kind: column
            for collector in self.rows[layer.name]
            for kind, column in self.declared(layer.name, collector.name).items()
        }

    def declared(self, layer: str, collector: str) -> dict[str, Column]:
        """Return the columns that a collector declared for a layer when the plan was made."""
        return self._declared[layer, collector]

    def ranges(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the batches of the shard with images `start` to `stop` - 1, as ranges of ids."""
        size = self.batch_size
        return [(low, min(low + size, stop)) for low in range(start, stop, size)]

    def manifest(self, model: HookedModel, source: ImageSource) -> Manifest:
        """Return the manifest of a pass over some images before it starts.

        Raises:
            ImageError: the source's fingerprint is not text.
        """
        fingerprint: object = source.fingerprint()
        if not isinstance(fingerprint, str):
            kind = type(fingerprint).__name__
            raise ImageError(f"{source!r} has a fingerprint of type {kind}; expected text")
        return Manifest(
            model=ModelRecord(
                id=model.id,
                weights_sha256=model.weights_sha256,
                preprocessing=asdict(model.preprocessing),
                defences=tuple(defence.text() for defence in model.defences),
            ),
            images=ImagesRecord(
                location=source.location.encode("utf-8", "backslashreplace").decode(),
                count=len(source),
                fingerprint=fingerprint,
            ),
            layers=tuple(self._record(layer) for layer in self.layers),
            collectors=tuple(
                CollectorRecord(name=c.name, id=registered_id(c), parameters=c.parameters())
                for c in self.collectors
            ),
            batch_size=self.batch_size,
            shard_size=self.shard_size,
            threads=self.threads,
            precision=self.precision,
            memory_format=self.memory_format,
            folded=self.folded is not None,
            versions={
                name: package_version(name) or "unknown" for name in ("timmscope", "torch", "timm")
            },
        )

    def _record(self, layer: Layer) -> LayerRecord:
        return LayerRecord(
            name=layer.name,
            module_type=layer.module_type,
            layout=layer.layout,
            shape=layer.shape,
            channels=layer.channels,
            grid=layer.grid,
            stride=layer.stride,
            prefix_tokens=layer.prefix_tokens,
            kinds={
                kind: ColumnRecord(shape=column.shape, dtype=np.dtype(column.dtype).name)
                for kind, column in self.columns(layer).items()
            },
        )


def make_plan(
    model: HookedModel,
    old: Manifest | None,
    *,
    layers: Sequence[str] | None,
    maps: Sequence[str],
    top_k: int | None,
    collectors: Iterable[Collector | str],
    batch_size: int | None,
    shard_size: int | None,
    threads: int | None,
    precision: str | None,
    count: int,
) -> Plan:
    """Resolve the names of layers and collectors, and add the default collectors.

    Settings that are not given (None, or no maps) are taken from `old`, the manifest of the store
    that exists already; `count` is the number of images.
    """
    if old is not None:
        known = [layer for layer in old.layers if layer.name in model.layers]
        layers = layers if layers is not None or not known else [layer.name for layer in known]
        maps = maps or [layer.name for layer in known if "maps" in layer.kinds]
        top = old.collector(TOP_K_ID)
        if top_k is None and top is not None and isinstance(top.parameters.get("k"), int):
            top_k = top.parameters["k"]
        batch_size = old.batch_size if batch_size is None else batch_size
        shard_size = old.shard_size if shard_size is None else shard_size
        threads = old.threads if threads is None else threads
        precision = precision or old.precision
    wanted = [*(default_layers(model) if layers is None else layers), *maps]
    found = {layer.name: layer for layer in map(model.layers.resolve, wanted)}
    chosen = tuple(sorted(found.values(), key=lambda layer: layer.order))
    if not chosen:
        raise ParameterError("no layer is given; name at least one", parameter="layers")
    precision = precision or PRECISION
    precision = PRECISION_ALIASES.get(precision, precision)
    # In bfloat16 a folded weight is rounded with its scale: twice the error of a separate norm.
    fold = precision == PRECISION if old is None else old.folded
    with_maps = {model.layers.resolve(name).name for name in maps}
    extra = [c if isinstance(c, Collector) else _named_collector(c) for c in collectors]
    rows = [Pooled(), Extrema(), *(c for c in extra if isinstance(c, RowCollector))]
    return Plan(
        layers=chosen,
        rows={
            layer.name: (*rows, *([Maps()] if layer.name in with_maps else [])) for layer in chosen
        },
        reducers=(
            TopK(k=TOP_K if top_k is None else top_k),
            Statistics(),
            *(c for c in extra if not isinstance(c, RowCollector)),
        ),
        batch_size=BATCH_SIZE if batch_size is None else batch_size,
        shard_size=default_shard_size(count) if shard_size is None else shard_size,
        threads=torch.get_num_threads() if threads is None else threads,
        precision=precision,
        memory_format=_memory_format(model) if old is None else old.memory_format,
        folded=_folded(model, chosen) if fold else None,
    )


def default_shard_size(count: int) -> int:
    """Return the images per shard for a number of images: at most 16,384 shards, if possible."""
    return max(SHARD_SIZE, -(-count // (_MOST_SHARDS * SHARD_SIZE)) * SHARD_SIZE)


def _memory_format(model: HookedModel) -> str:
    """Return channels_last for a convolutional model on a CPU, where it is 15 to 40 % faster.

    The layers' layouts decide, not timing, so that every run decides the same.
    """
    layouts = [layer.layout for layer in model.layers.values() if layer.grid is not None]
    convolutional = 2 * layouts.count("NCHW") > len(layouts)
    return "channels_last" if model.device.type == "cpu" and convolutional else "contiguous"


def _folded(model: HookedModel, layers: Iterable[Layer]) -> HookedModel | None:
    from timmscope.models.folding import fold_batch_norms

    return fold_batch_norms(model, [layer.name for layer in layers])


def _named_collector(name: str) -> Collector:
    if not isinstance(name, str):
        raise ParameterError(
            f"{name!r} is not a collector; pass an instance of Collector, or a registered name",
            parameter="collectors",
        )
    return instantiate(get_registry().collector(name))


def recorded_collectors(
    store: Store, given: Iterable[Collector] = (), *, reducers_only: bool = False
) -> list[Collector]:
    """Return the collectors of a store, empty, in the manifest's order.

    Args:
        store: the store.
        given: the caller's collectors, for those that no plugin registers.
        reducers_only: leave out row collectors, whose rows are in the shards.

    Raises:
        StoreError: a collector is neither registered nor given, or refuses its parameters.
        PluginError: a plugin is not installed, or does not work.
    """
    own = list(given)
    every = [
        recorded_collector(each.name, each.id, each.parameters, where=store.path.name, given=own)
        for each in store.manifest.collectors
    ]
    return [each for each in every if not (reducers_only and isinstance(each, RowCollector))]


def recorded_plan(store: Store, model: HookedModel, given: Iterable[Collector] = ()) -> Plan:
    """Return the plan that a store was mined with; see `recorded_collectors` for `given`."""
    manifest = store.manifest
    every = recorded_collectors(store, given)
    rows = [collector for collector in every if isinstance(collector, RowCollector)]
    layers = [model.layers.resolve(record.name) for record in manifest.layers]
    kinds = {record.name: record.kinds for record in manifest.layers}
    return Plan(
        layers=tuple(layers),
        rows={
            layer.name: tuple(
                row for row in rows if not isinstance(row, Maps) or "maps" in kinds[layer.name]
            )
            for layer in layers
        },
        reducers=tuple(c for c in every if not isinstance(c, RowCollector)),
        batch_size=manifest.batch_size,
        shard_size=manifest.shard_size,
        threads=manifest.threads,
        precision=manifest.precision,
        memory_format=manifest.memory_format,
        folded=_folded(model, layers) if manifest.folded else None,
    )


def default_layers(model: HookedModel) -> list[str]:
    """Return the last layer with a grid and the layer of pooled features before the classifier.

    The first shows what the deepest units respond to and where; the second is the model's embedding
    of an image. The features are the last vector that is computed before the classifier runs. The
    classifier is the layer that timm's configuration names; without a name, vectors with as many
    units as the model has classes are taken for logits. Layers after the classifier start, such as
    a head around it, are not considered.

    Raises:
        UnsupportedModel: the model has neither a grid nor a vector.
    """
    from timmscope_registry.hooks import LOGITS

    spatial, feature = None, None
    config = getattr(model.module, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    classified = False
    for name, layer in model.layers.items():
        if layer.grid is not None and layer.grid[0] * layer.grid[1] > 1:
            spatial = name
        classified = classified or name == LOGITS or f"{name}.".startswith(heads)
        if classified or layer.layout != "vector":
            continue
        if heads or layer.channels != model.num_classes:
            feature = name
    chosen = [name for name in (spatial, feature) if name is not None]
    if not chosen:
        raise UnsupportedModel(f"{model.id} has no layer with a grid or a vector; name the layers")
    return chosen


def bytes_per_image(plan: Plan) -> int:
    """Estimate the bytes per image on disk: its rows and its share of reductions and names."""
    total = 256
    for layer in plan.layers:
        for column in plan.columns(layer).values():
            total += int(np.prod(column.shape)) * np.dtype(column.dtype).itemsize
        for collector in plan.reducers:
            whole = sum(array.nbytes for array in _typical_state(collector, layer, plan).values())
            total += whole // plan.shard_size + 1
    return total


def _typical_state(collector: Collector, layer: Layer, plan: Plan) -> dict[str, np.ndarray]:
    """Return a collector's state after a few random rows, to estimate its size."""
    rng = np.random.default_rng(0)
    count = min(plan.shard_size, 64)
    columns = {kind: c for kind, c in plan.columns(layer).items() if kind in collector.needs}
    rows = {
        kind: rng.normal(size=(count, *column.shape)).astype(column.dtype)
        for kind, column in columns.items()
        if np.prod(column.shape) <= 1 << 16
    }
    if len(rows) < len(columns):
        return {}
    with suppress(Exception):  # an estimate must not end a pass, which names what fails itself
        sample = collector.fresh()
        sample.update(LayerBatch(layer=layer.name, ids=np.arange(count), rows=rows))
        return storable_state(sample.state())
    return {}
