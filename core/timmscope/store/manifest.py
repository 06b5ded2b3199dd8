"""The manifest records what a store was made from, and which files its folder must hold.

It holds no time stamps, and no paths except the location of the images, so two runs over the same
images with the same model write the same manifest, byte for byte. It is written when a pass starts
and when it ends; in between, a line per finished shard is added to the journal. The bounds here
hold for the manifest of a stranger too, so no reader meets sizes that make no sense.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

import timmscope.checked_json as checked_json
from timmscope.safe_files import open_regular
from timmscope_registry import StoreCorrupted, StoreError

from . import files
from .journal import read_journal

SCHEMA = 3
"""Version of the store's format that this release writes."""
NAME = "manifest.json"
MOST_SHARDS = 1 << 20
"""Number of shards that a store can have."""
_MOST_BYTES = 1 << 30
"""Size of a manifest that is read; one with the most shards has half of it."""


def _row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if int(np.prod(shape, dtype=object)) > 1 << 40:
        raise ValueError("rows are too large")
    return shape


def _plain_name(name: str) -> str:
    if not name.isprintable():
        raise ValueError(f"{name!r} is no name")
    return name


Name = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain_name)]
RowType = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
    "float16", "float32", "float64", "complex64", "complex128",
]  # fmt: skip
Count = Annotated[int, Field(ge=0, le=1 << 40)]
Size = Annotated[int, Field(ge=1, le=1 << 40)]
Shape = Annotated[tuple[Count, ...], AfterValidator(_row_shape)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )


class ModelRecord(_Record):
    """The model; `preprocessing` and `defences` are what changes the pixels that it receives."""

    id: str
    weights_sha256: Digest
    preprocessing: dict[str, Any]
    defences: tuple[str, ...] = ()
    """Registered ids and parameters, in the order in which images meet the defences."""


class ImagesRecord(_Record):
    """The images; `location` is where to open them again (empty for images in memory)."""

    location: str
    count: Size
    fingerprint: str


class ColumnRecord(_Record):
    """Shape of one image's row, and the name of its NumPy type."""

    shape: Shape
    dtype: RowType


class LayerRecord(_Record):
    """One mined layer, as the model's catalogue describes it.

    `kinds` describes the kinds of rows that the store keeps of it: ``pooled``, ``max``, ``argmax``,
    ``maps`` or a plugin's.
    """

    name: Name
    module_type: str
    layout: str
    shape: Shape
    channels: Size
    grid: tuple[Size, Size] | None
    stride: tuple[float, float] | None
    prefix_tokens: Count
    kinds: dict[str, ColumnRecord]

    @model_validator(mode="after")
    def _one_value_per_unit(self) -> Self:
        for kind in self.kinds.keys() & {"pooled", "max", "argmax"}:
            if self.kinds[kind].shape != (self.channels,):
                raise ValueError(f"layer {self.name} has {self.channels} units, its {kind} differ")
        return self

    def cell(self, position: int) -> tuple[int, int]:
        """Return row and column of a cell numbered as in ``argmax``; (-1, -1) for -1."""
        if position < 0:
            return (-1, -1)
        return divmod(position, self.grid[1]) if self.grid else (0, position)


class CollectorRecord(_Record):
    """One collector: its name, registered id (None if no plugin registers it), and parameters."""

    name: Name
    id: str | None
    parameters: dict[str, Any]


class FileRecord(_Record):
    """Size of a file in bytes, and its SHA-256 digest."""

    size: Count
    sha256: Digest

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Describe a file on disk."""
        return cls(size=path.stat().st_size, sha256=files.sha256(path))


class ShardRecord(_Record):
    """A finished range of images, `start` to `stop` - 1."""

    start: Count
    stop: Size
    unreadable: Count
    rows: FileRecord
    reduced: FileRecord


class PrecisionError(_Record):
    """The error of a pass in a lower precision against float32, on the first `images` images.

    `layers` holds, by layer and kind of row, the root mean square of the difference divided by that
    of the values in float32; None where the lower precision overflowed.
    """

    images: Count
    layers: dict[str, dict[str, float | None]]


class Manifest(_Record):
    """Everything about a store except its rows. `shards` maps a shard's number to its files."""

    schema_: int = Field(default=SCHEMA, alias="schema")
    model: ModelRecord
    images: ImagesRecord
    layers: tuple[LayerRecord, ...]
    collectors: tuple[CollectorRecord, ...]
    batch_size: Size
    shard_size: Size
    threads: Size
    """Threads of a forward on the CPU: another number can change the last bits of a row."""
    precision: str
    precision_error: PrecisionError | None = None
    """Error of a pass in bfloat16 against float32. Not part of the store's identity."""
    memory_format: str = "contiguous"
    """Memory layout of the model's activations: ``contiguous`` or ``channels_last``."""
    folded: bool = False
    """Whether batch norms were folded into the convolutions before them."""
    part: tuple[Size, Size] | None = None
    """(i, n) if the store holds only the i-th of n runs of shards, counted from 1."""
    versions: dict[str, str]
    shards: dict[int, ShardRecord] = Field(default_factory=dict)
    merged: FileRecord | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for what, names in (
            ("layers", [layer.name for layer in self.layers]),
            ("collectors", [collector.name for collector in self.collectors]),
        ):
            if len(set(names)) < len(names):
                raise ValueError(f"two {what} have one name")
        if self.shard_count > MOST_SHARDS:
            raise ValueError(f"{self.shard_count} shards, a store has at most {MOST_SHARDS}")
        number, parts = self.part or (1, 1)
        if not number <= parts <= self.shard_count:
            raise ValueError(f"part {number} of {parts}, of {self.shard_count} shards")
        for shard, record in self.shards.items():
            self._check_shard(shard, record)
        if self.merged is not None and (self.part is not None or self.missing):
            raise ValueError("it is merged, and shards are missing")
        return self

    def _check_shard(self, number: int, record: ShardRecord) -> None:
        if number not in self.own_shards or (record.start, record.stop) != self.span(number):
            raise ValueError(f"shard {number} with images {record.start} to {record.stop - 1}")
        if record.unreadable > record.stop - record.start:
            raise ValueError(f"shard {number} has {record.unreadable} unreadable images")

    def pass_digest(self) -> str:
        """Return a digest of what decides the rows; the same for all parts of a pass.

        The weights count, and not the id by which they were loaded.
        """
        identity = [item for item in self._identity() if item[0] not in ("part", "model")]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def trust_digest(self) -> str:
        """Return a digest of the pass and of the images' location, for the list of trusted stores.

        It does not change when shards are added.
        """
        text = f"{self.pass_digest()}\0{self.images.location}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def digest(self) -> str:
        """Return the SHA-256 of everything in ``manifest.json``, so also of all shards."""
        return checked_json.digest_of(self.model_dump(mode="json", by_alias=True))

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
        yield "defences", list(self.model.defences)
        yield "part", "the whole" if self.part is None else "{} of {}".format(*self.part)
        yield "number of images", self.images.count
        yield "images' fingerprint", self.images.fingerprint
        for many in ("layers", "collectors"):
            yield many, [record["name"] for record in data[many]]
            for record in data[many]:
                for key, value in record.items():
                    if key != "name":
                        yield f"{many[:-1]} {record['name']} {key}", value
        for key in ("batch_size", "shard_size", "threads", "precision", "memory_format", "folded"):
            yield key.replace("_", " "), data[key]

    def to_bytes(self) -> bytes:
        """Return the contents of ``manifest.json``."""
        return checked_json.dump(self.model_dump(mode="json", by_alias=True), indent=1)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json`` in one step."""
        files.write_bytes(folder / NAME, self.to_bytes())

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read ``manifest.json``, and the journal of a pass that is not finished.

        Raises:
            StoreError: there is none, it cannot be read now, or a release with another schema
                wrote it.
            StoreCorrupted: it is damaged, or was edited.
        """
        path = folder / NAME
        try:
            with open_regular(path, limit=_MOST_BYTES) as file:
                text = file.read()
            data = json.loads(text)
            schema = data["schema"]
            if isinstance(schema, bool) or not isinstance(schema, int):
                raise ValueError(f"its schema is {schema!r}")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(
                f"{folder}: not a store (no {NAME} in it); make one with timmscope mine"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, RecursionError, MemoryError) as error:
            if (failure := files.machine_error(error, path)) is not None:
                raise failure from error
            raise _damaged(path, error) from error
        if schema != SCHEMA:
            advice = "upgrade timmscope to open it" if schema > SCHEMA else "mine it again"
            raise StoreError(
                f"{folder}: written in store schema {schema}, this release reads {SCHEMA}; {advice}"
            )
        try:
            return cls.model_validate(checked_json.load(text)).with_journal(folder)
        except ValidationError as error:
            raise _damaged(path, error.errors()[0]["msg"]) from error
        except ValueError as error:
            raise _damaged(path, error) from error

    def with_journal(self, folder: Path) -> Manifest:
        """Return the manifest with the shards of the journal, if there is one.

        A shard that was mined again replaces the earlier one, and what was merged does not count.
        """
        added = {
            number: record
            for number, record in read_journal(folder, self.pass_digest())
            if self.shards.get(number) != record and number in self.own_shards
        }
        if not added:
            return self
        for number, record in added.items():
            self._check_shard(number, record)
        shards = dict(sorted({**self.shards, **added}.items()))
        return self.model_copy(update={"shards": shards, "merged": None})


def _damaged(path: Path, reason: object) -> StoreCorrupted:
    text = " ".join(str(reason).split())
    return StoreCorrupted(
        f"{path}: the manifest is damaged ({text}); restore it from a copy, or mine again",
        shard=NAME,
    )


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 120 else f"{text[:100]}… ({len(text)} characters)"
