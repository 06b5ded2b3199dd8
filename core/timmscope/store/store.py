"""`Store` reads what one pass of a model over a data set has written."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import numpy as np
import numpy.typing as npt

from timmscope.collectors.merge_tree import MergeTree
from timmscope.collectors.registered import recorded_collector
from timmscope.images import ImageSource, LabelTable, SourceByName, open_images
from timmscope.images.tables import decode
from timmscope.trust import is_trusted
from timmscope_registry import (
    ImageError,
    LayerNotFound,
    StoreError,
    did_you_mean,
    nearest,
)

from . import shards
from .checked_hdf5 import read_group
from .manifest import LayerRecord, Manifest
from .shard_strings import ShardStrings
from .shards import ShardFiles
from .store_layer import StoreLayer

if TYPE_CHECKING:
    from timmscope.collectors import Collector
    from timmscope.images import Images

    from .metadata import Metadata

C = TypeVar("C", bound="Collector")

_UNREADABLE = ("status", "path", "reason")


class ImageTable:
    """The store's images, by id: `paths`, `labels`, `status`, `reasons`, `sizes`.

    Attributes:
        metadata: columns that the caller's file adds; see `Store.with_metadata`.
    """

    def __init__(self, files: ShardFiles, metadata: Metadata | None = None) -> None:
        self._files = files
        self.metadata = metadata

    def __len__(self) -> int:
        return self._files.manifest.images.count

    @cached_property
    def paths(self) -> ShardStrings:
        """Name of every image; a sequence that reads the names of a shard when they are needed."""
        self._files.require_all()
        return ShardStrings(self._files, "path")

    @cached_property
    def labels(self) -> LabelTable:
        """Label of every image, None where there is none; from the metadata if it has labels."""
        added = {} if self.metadata is None else self.metadata.columns
        if "label" in added:
            spans = (self._files.manifest.span(n) for n in range(self._files.manifest.shard_count))
            return LabelTable.of_columns(added["label"].block(*span).values for span in spans)
        return LabelTable.of_columns(self._columns("label"))

    @cached_property
    def status(self) -> np.ndarray:
        """0 for an image that was read, 1 for one that could not be; (N,) uint8."""
        return self._column("status")

    @cached_property
    def reasons(self) -> ShardStrings:
        """Why each image could not be read; empty for images that could."""
        self._files.require_all()
        return ShardStrings(self._files, "reason")

    @cached_property
    def sizes(self) -> np.ndarray:
        """Width and height in pixels before preprocessing, (N, 2) int32; 0 when unreadable."""
        return np.stack([self._column("width"), self._column("height")], axis=1)

    @property
    def readable(self) -> np.ndarray:
        """Whether each image was read, (N,) bool."""
        return np.asarray(self.status == shards.READ)

    def unreadable(self) -> list[tuple[int, str, str]]:
        """Return id, name and reason of every unreadable image in the shards that are finished."""
        found: list[tuple[int, str, str]] = []
        for number, shard in self._files.manifest.shards.items():
            if shard.unreadable:
                status, paths, reasons = (self._files.column(number, c) for c in _UNREADABLE)
                found += [
                    (shard.start + i, decode(bytes(paths[i])), decode(bytes(reasons[i])))
                    for i in np.flatnonzero(status != shards.READ).tolist()
                ]
        return found

    def where(self, condition: str | npt.ArrayLike) -> np.ndarray:
        """Return whether each image meets a condition, (N,) bool.

        Args:
            condition: a mask (N,), ids, or text as in ``label == 'dog' and 300 < width <= 640``.
                Columns are ``id``, ``path``, ``name`` (after the last slash), ``folder`` (before
                it), ``label``, ``width``, ``height``, ``readable`` and those of the metadata.
                The text may hold comparisons (``== != < <= > >=``, chained), ``in`` with a list
                or to find text in text, ``and``, ``or``, ``not``. A missing value is ``None`` and
                equals only ``None``.

        Raises:
            ParameterError: the condition is wrong; the message says where in it.
            StoreError: the store is not finished.
        """
        from .columns import select_images

        return select_images(self._files, condition, self.metadata)

    def column(self, name: str) -> LabelTable | npt.NDArray[np.float64]:
        """Return a column: labels (N,) if it holds text, (N,) float64 if it holds numbers.

        Args:
            name: a column of text or numbers that conditions may name; see `where`.

        Raises:
            ParameterError: there is no such column; the message names those there are.
            StoreError: the store is not finished.
        """
        from .columns import column

        return column(self._files, name, self.metadata)

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate(list(self._columns(name)))

    def _columns(self, name: str) -> Iterator[np.ndarray]:
        """Yield a column of the table, shard by shard."""
        self._files.require_all()
        for number in range(self._files.manifest.shard_count):
            yield self._files.column(number, name)


class Store:
    """A store opened for reading; see `Store.open`. It may be pickled and shared between threads.

    Attributes:
        path: the folder.
        manifest: what the store was made from.
        files: reads the store's HDF5 files.
        images: the images, by id.
        trust: whether it may open the model and the images that it records, even if this user has
            not made it.
    """

    def __init__(self, path: Path, manifest: Manifest, *, trust: bool = False) -> None:
        self.path = path
        self.trust = trust
        self.manifest = manifest
        self.files = ShardFiles(path, manifest)
        self.images = ImageTable(self.files)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, trust: bool = False) -> Store:
        """Open a store.

        Args:
            path: the folder.
            trust: whether it may open the model and the images that it records. Stores that `mine`
                and `merge` made for this user are trusted anyway, as are those in the folders of
                the variable ``TIMMSCOPE_TRUST``.

        Raises:
            StoreError: the folder holds no store, or one in another schema than this release's.
            StoreCorrupted: the manifest is damaged. Damaged shards raise when they are read.
        """
        folder = Path(path).resolve()
        return cls(folder, Manifest.read(folder), trust=trust)

    def __len__(self) -> int:
        return self.manifest.images.count

    def __repr__(self) -> str:
        manifest = self.manifest
        done = "" if self.complete else f", only {len(manifest.shards)} shards done"
        part = "part {} of {} of ".format(*manifest.part) if manifest.part else ""
        return (
            f"<Store {self.path.name}: {part}{len(self)} images, {len(self.layers)} layers of "
            f"{self.manifest.model.id}{done}>"
        )

    @property
    def complete(self) -> bool:
        """Whether the pass over the images is finished."""
        return self.manifest.complete

    def source(self, images: Images | None = None) -> ImageSource:
        """Open the images that the store was mined from, under the store's ids.

        Images are found by name, so others may have been added or removed since.

        Args:
            images: where they are now; by default where they were during the pass.

        Raises:
            ImageError: the images are no longer there.
            StoreError: `images` is missing, and the images were in memory or the store is not
                trusted.
        """
        location = self.manifest.images.location
        if images is None:
            if not location:
                raise StoreError(
                    f"{self.path.name} was mined from images in memory; pass them as images="
                )
            self.require_trust()
        try:
            source = open_images(location if images is None else images)
        except ImageError as error:
            if images is not None:
                raise
            raise ImageError(
                f"{error}; if the images of {self.path.name} have moved, say where they are now: "
                "images= in Python (of a technique location=), --images on the command line",
                path=error.path,
            ) from error
        names = self.images.paths
        if len(source) == len(names) and all(map(operator.eq, source.paths, names)):
            return source
        return SourceByName(source, names)

    def require_trust(self) -> None:
        """Check that the store may open the model and the images that it records.

        Raises:
            StoreError: this user has not made the store, and does not trust it.
        """
        wanted = f"the model {self.manifest.model.id!r}"
        if self.manifest.images.location:
            wanted += f" and images at {self.manifest.images.location!r}"
        if not (self.trust or is_trusted(self.path, self.manifest.trust_digest(), wanted)):
            raise StoreError(
                f"{self.path}: you have not made this store, and it wants to open {wanted}; if you "
                "trust it, add --trust (in Python Store.open(…, trust=True)), else pass your own "
                "model and images"
            )

    def with_metadata(self, file: str | os.PathLike[str]) -> Store:
        """Return the same store with the columns of a CSV file added to its images.

        Conditions may name them (`ImageTable.where`); ``_`` replaces characters that a name cannot
        hold. A column ``label`` replaces the store's labels. A column holds numbers if all its
        values are numbers, else text. Images without a row, and empty cells, have missing values.

        Args:
            file: values separated by commas, semicolons or tabs; the first line names the columns.
                One of them is ``path``, ``name`` or ``id`` and says to which image a row belongs.

        Raises:
            ParameterError: the file cannot be read, or its rows belong to no image or to several.
        """
        from .metadata import read_metadata

        other = Store(self.path, self.manifest, trust=self.trust)
        other.images.metadata = read_metadata(file, self.images.paths)
        return other

    @property
    def layers(self) -> Mapping[str, LayerRecord]:
        """The mined layers by name, in execution order."""
        return {layer.name: layer for layer in self.manifest.layers}

    def layer(self, name: str) -> StoreLayer:
        """Return one layer's rows and reductions.

        Raises:
            LayerNotFound: it was not mined; the message has the nearest name and all mined layers.
        """
        record = self.manifest.layer(name)
        if record is None:
            names = list(self.layers)
            parts = [f"{self.path.name} has no layer {name!r}", did_you_mean(name, names)]
            parts.append(f"it holds {', '.join(names)}")
            raise LayerNotFound(
                "; ".join(filter(None, parts)), name=name, nearest=nearest(name, names)
            )
        return StoreLayer(self, record)

    @overload
    def collector(self, layer: str, which: str) -> Collector: ...

    @overload
    def collector(self, layer: str, which: C | type[C]) -> C: ...

    def collector(self, layer: str, which: str | Collector | type[Collector]) -> Collector:
        """Return a collector in the state that it had at a layer at the end of the pass.

        Args:
            layer: name of a mined layer.
            which: the collector's name or registered id; for a collector that no plugin registers,
                its class or an instance.

        Raises:
            LayerNotFound: the layer was not mined.
            StoreError: the pass did not use that collector, or only its class can read its state.
            PluginError: the collector's plugin is not installed, or does not work.
            StoreCorrupted: the state cannot be read.
        """
        layer = self.layer(layer).name
        name = which if isinstance(which, str) else which.name
        record = self.manifest.collector(name)
        if record is None:
            names = ", ".join(each.name for each in self.manifest.collectors)
            raise StoreError(f"{self.path.name} has no collector {name!r}; it holds {names}")
        whole = recorded_collector(
            record.name,
            record.id,
            record.parameters,
            where=self.path.name,
            given=() if isinstance(which, str) else (which,),
        )
        group = f"{record.name}/{shards.layer_group(layer)}"
        if self.manifest.merged is not None:
            with self.files.open(shards.MERGED, self.manifest.merged) as file:
                whole.load(read_group(file, group))
            return whole
        self.files.require_all()
        tree = MergeTree(whole)
        for number, shard in self.manifest.shards.items():
            with self.files.open(shards.reduced_file(number), shard.reduced) as file:
                tree.add(read_group(file, group))
        return tree.merged()
