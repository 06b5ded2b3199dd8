"""The manifest records what a store was made from, and which files its folder must hold.

It holds no time stamps, and no paths except the location of the images, so two runs over the same
images with the same model write the same manifest, byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from timmscope_registry import StoreCorrupted, StoreError

from . import files

SCHEMA = 2
"""Version of the store's format that this release writes."""
NAME = "manifest.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class ModelRecord(_Record):
    """The model; `preprocessing` is everything that changes the pixels that it receives."""

    id: str
    weights_sha256: str
    preprocessing: dict[str, Any]


class ImagesRecord(_Record):
    """The images; `location` is where to open them again (empty for images in memory)."""

    location: str
    count: int
    fingerprint: str


class LayerRecord(_Record):
    """One mined layer, as the model's catalogue describes it.

    `kinds` are the kinds of rows that the store keeps of it: ``pooled``, ``max``, ``argmax``,
    ``maps`` or a plugin's.
    """

    name: str
    module_type: str
    layout: str
    shape: tuple[int, ...]
    channels: int
    grid: tuple[int, int] | None
    stride: tuple[float, float] | None
    prefix_tokens: int
    kinds: tuple[str, ...]

    def cell(self, position: int) -> tuple[int, int]:
        """Return row and column of a cell numbered as in ``argmax``; (-1, -1) for -1."""
        if position < 0:
            return (-1, -1)
        return divmod(position, self.grid[1]) if self.grid else (0, position)


class CollectorRecord(_Record):
    """One collector: its name, registered id (None if no plugin registers it), and parameters."""

    name: str
    id: str | None
    parameters: dict[str, Any]


class FileRecord(_Record):
    """Size of a file in bytes, and its SHA-256 digest."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Describe a file on disk."""
        return cls(size=path.stat().st_size, sha256=files.sha256(path))


class ShardRecord(_Record):
    """A finished range of images, `start` to `stop` - 1."""

    start: int
    stop: int
    unreadable: int
    rows: FileRecord
    reduced: FileRecord


class PrecisionError(_Record):
    """The error of a pass in a lower precision against float32, on the first `images` images.

    `layers` holds, by layer and kind of row, the root mean square of the difference divided by that
    of the values in float32; None where the lower precision overflowed.
    """

    images: int
    layers: dict[str, dict[str, float | None]]


class Manifest(_Record):
    """Everything about a store except its rows. `shards` maps a shard's number to its files."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    model: ModelRecord
    images: ImagesRecord
    layers: tuple[LayerRecord, ...]
    collectors: tuple[CollectorRecord, ...]
    batch_size: int
    shard_size: int
    precision: str
    precision_error: PrecisionError | None = None
    """Error of a pass in bfloat16 against float32. Not part of the store's identity."""
    memory_format: str = "contiguous"
    """Memory layout of the model's activations: ``contiguous`` or ``channels_last``."""
    folded: bool = False
    """Whether batch norms were folded into the convolutions before them."""
    part: tuple[int, int] | None = None
    """(i, n) if the store holds only the i-th of n runs of shards, counted from 1."""
    versions: dict[str, str]
    shards: dict[int, ShardRecord] = Field(default_factory=dict)
    merged: FileRecord | None = None

    @property
    def complete(self) -> bool:
        """Whether all shards are written, and for a whole store also the merged state."""
        return self.merged is not None if self.part is None else not self.missing

    @property
    def shard_count(self) -> int:
        """Number of shards of the whole store."""
        return -(-self.images.count // self.shard_size)

    @property
    def own_shards(self) -> range:
        """Numbers of the shards that this store holds when it is complete: all, or its part."""
        number, parts = self.part or (1, 1)
        return range(self.shard_count * (number - 1) // parts, self.shard_count * number // parts)

    @property
    def image_count(self) -> int:
        """Number of images in `own_shards`."""
        return sum(stop - start for start, stop in map(self.span, self.own_shards))

    @property
    def missing(self) -> list[int]:
        """Numbers of those of `own_shards` that are not written yet."""
        return [number for number in self.own_shards if number not in self.shards]

    def span(self, shard: int) -> tuple[int, int]:
        """Return the first image id of a shard and the id after its last."""
        start = shard * self.shard_size
        return start, min(start + self.shard_size, self.images.count)

    def collector(self, name: str) -> CollectorRecord | None:
        """Return a collector's record by name or registered id; None if the pass did not use it."""
        return next((each for each in self.collectors if name in (each.name, each.id)), None)

    def layer(self, name: str) -> LayerRecord | None:
        """Return a layer's record; None if the layer was not mined."""
        return next((layer for layer in self.layers if layer.name == name), None)

    def empty_whole(self) -> Manifest:
        """Return the description of the whole pass, of all parts, before its first shard."""
        return self.model_copy(update={"part": None, "shards": {}, "merged": None})

    def with_shard(self, number: int, record: ShardRecord) -> Manifest:
        """Return the manifest with one more finished shard; shards are sorted by number."""
        shards = dict(sorted({**self.shards, number: record}.items()))
        return self.model_copy(update={"shards": shards})

    def without_shards(self, numbers: set[int]) -> Manifest:
        """Return the manifest without some shards and without the merged state."""
        left = {number: shard for number, shard in self.shards.items() if number not in numbers}
        return self.model_copy(update={"shards": left, "merged": None})

    def differences(
        self, wanted: Manifest, *, ours: str = "the store", theirs: str = "this run"
    ) -> list[str]:
        """Return one line for each difference between this store and a run.

        Versions of libraries count only while the store is incomplete, because the missing shards
        would be computed by other code than those that exist.

        Args:
            wanted: the description of the run.
            ours: the name of this store in the lines.
            theirs: the name of the run.
        """
        here, there = dict(self._identity()), dict(wanted._identity())
        if here["weights"] != there["weights"]:  # of another model, everything else differs too
            here, there = ({key: d[key] for key in ("model", "weights")} for d in (here, there))
        if not self.complete:
            here |= {f"{name} version": value for name, value in self.versions.items()}
            there |= {f"{name} version": value for name, value in wanted.versions.items()}
        return [
            f"{key}: {ours} has {_short(here[key])}, {theirs} {_short(there[key])}"
            for key in sorted(here.keys() & there.keys())  # not the details of added layers
            if here[key] != there[key]
        ]

    def _identity(self) -> Iterator[tuple[str, Any]]:
        data = self.model_dump(mode="json")
        yield "model", self.model.id
        yield "weights", self.model.weights_sha256
        for key, value in data["model"]["preprocessing"].items():
            yield f"preprocessing {key}", value
        yield "part", "the whole" if self.part is None else "{} of {}".format(*self.part)
        yield "number of images", self.images.count
        yield "images' fingerprint", self.images.fingerprint
        for many in ("layers", "collectors"):
            yield many, [record["name"] for record in data[many]]
            for record in data[many]:
                for key, value in record.items():
                    if key != "name":
                        yield f"{many[:-1]} {record['name']} {key}", value
        for key in ("batch_size", "shard_size", "precision", "memory_format", "folded"):
            yield key.replace("_", " "), data[key]

    def to_bytes(self) -> bytes:
        """Return the contents of ``manifest.json``."""
        data = self.model_dump(mode="json", by_alias=True)
        return (json.dumps(data, indent=1) + "\n").encode()

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` in one step."""
        files.write_bytes(folder / NAME, self.to_bytes())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            StoreError: there is none, or a release with another schema wrote it.
            StoreCorrupted: it is damaged.
        """
        path = folder / NAME
        try:
            data = json.loads(path.read_bytes())
            schema = int(data["schema"])
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(
                f"{folder}: not a store (no {NAME} in it); make one with timmscope mine"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _damaged(path, error) from error
        if schema != SCHEMA:
            advice = "upgrade timmscope to open it" if schema > SCHEMA else "mine it again"
            raise StoreError(
                f"{folder}: written in store schema {schema}, this release reads {SCHEMA}; {advice}"
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise _damaged(path, error.errors()[0]["msg"]) from error


def _damaged(path: Path, reason: object) -> StoreCorrupted:
    text = " ".join(str(reason).split())
    return StoreCorrupted(
        f"{path}: the manifest is damaged ({text}); restore it from a copy, or mine again",
        shard=NAME,
    )


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"
