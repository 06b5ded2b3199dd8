"""An index on disk: the engine's own file, and beside it a record that says what it is.

Both change together or not at all, although they are two files: the new record waits under another
name while the index is replaced, and a reader that finds the old record beside the new index takes
the waiting one. Whatever is truncated or altered is found by its size or SHA-256 and named.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, ValidationError

from timmscope.index.metrics import Metric
from timmscope_registry import VectorIndexError

try:
    import fcntl
except ImportError:  # Windows has no flock; there, two writers are not told apart
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
_QUICK_BYTES = 64 << 20
"""Files up to this size are compared with their SHA-256 at every load."""


class IndexRecord(BaseModel):
    """What an index was made from and how; the JSON beside it.

    Attributes:
        schema_version: of this record.
        layer: the hook point whose pooled rows it holds, or a name of the user's.
        metric: what `search` returns.
        backend: name of the engine.
        dim: width of a row.
        count: number of rows.
        removed: rows that were there and were taken out again.
        failed: ids without a row, because the image could not be read.
        non_finite: ids left out because their row holds NaN or infinity.
        model: id of the model that made the rows.
        weights_sha256: of that model.
        precision: in which it ran.
        shards: SHA-256 of every shard of the store that was read, by number.
        facts: what the engine says of itself, and versions.
        size: bytes of the index file.
        sha256: of the index file.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    schema_version: int = SCHEMA
    layer: str
    metric: Metric
    backend: str
    dim: int
    count: int
    removed: int = 0
    failed: int = 0
    non_finite: int = 0
    model: str | None = None
    weights_sha256: str | None = None
    precision: str = "float32"
    shards: dict[int, str] = {}
    facts: dict[str, Any] = {}
    size: int = 0
    sha256: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `VectorIndex.build` that the index was made with."""
        return {"metric": self.metric, **self.facts.get("asked", {})}


def index_path(store: Path, layer: str) -> Path:
    """Where a store keeps the index of a layer."""
    return store / "index" / f"{quote(layer, safe='#')}.faiss"


def record_path(path: Path) -> Path:
    """Where the record of an index file is."""
    return path.with_name(path.name.removesuffix(".faiss") + ".json")


def write_index(path: Path, record: IndexRecord, write: Callable[[Path], None]) -> IndexRecord:
    """Replace an index and its record; a crash at any moment leaves the old or the new pair.

    Args:
        path: of the index file.
        record: without size and digest, which are filled in.
        write: writes the index to the path it is given.

    Raises:
        VectorIndexError: the files cannot be written.
    """
    waiting = _waiting(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            _alone(path),
            _temporary(path) as draft,
            _temporary(record_path(path)) as draft_record,
        ):
            _settle(path)
            write(draft)
            size, digest = _digest(draft)
            record = record.model_copy(update={"size": size, "sha256": digest})
            _sync(draft)
            _write(draft_record, record)
            with held(path, writing=True), held(draft, writing=True):
                draft_record.replace(waiting)
                _sync(path.parent)
                draft.replace(path)
                _sync(path.parent)
                waiting.replace(record_path(path))
                _sync(path.parent)
    except (OSError, RuntimeError) as error:
        raise VectorIndexError(f"the index {path} cannot be written: {_line(error)}") from error
    return record


def write_record(path: Path, record: IndexRecord) -> bool:
    """Replace the record of an index whose file stays as it is.

    Returns:
        False, and nothing was written, where another index is there now.

    Raises:
        VectorIndexError: it cannot be written.
    """
    try:
        with _alone(path), _temporary(record_path(path)) as draft:
            try:
                old = read_record(path, verify=False)
            except VectorIndexError:
                return False
            if old.sha256 != record.sha256:
                return False
            _write(draft, record)
            with held(path, writing=True):
                draft.replace(record_path(path))
                _sync(path.parent)
    except OSError as error:
        raise VectorIndexError(f"{record_path(path)} cannot be written: {_line(error)}") from error
    return True


def _write(path: Path, record: IndexRecord) -> None:
    text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    _sync(path)


def read_record(path: Path, *, verify: bool | None = None) -> IndexRecord:
    """Read the record of an index file, and check the file against it.

    Args:
        path: of the index file.
        verify: compare the SHA-256 too, which reads the whole file; else its size alone. By
            default only a file of at most 64 MiB is read, which takes no more than 0.1 s.

    Raises:
        VectorIndexError: one of the two is missing, altered, truncated or made by a newer version.
    """
    if not path.is_file():
        raise VectorIndexError(f"there is no index {path}: build one with `timmscope index build`")
    if verify is None:
        verify = path.stat().st_size <= _QUICK_BYTES
    size, digest = _digest(path) if verify else (path.stat().st_size, "")
    records = [record_path(path), _waiting(path)]
    found = [_parse(candidate) for candidate in records if candidate.is_file()]
    if not found:
        raise VectorIndexError(f"{records[0]} is missing, so {path} cannot be trusted: build again")
    for record in found:
        if record.size == size and (not verify or record.sha256 == digest):
            return record
    expected = found[0]
    if size != expected.size:
        what = f"has {size} bytes, {expected.size} were written"
    else:
        what = "was altered: its SHA-256 is not the one recorded"
    raise VectorIndexError(f"the index {path} {what}: build it again")


def any_record(path: Path) -> IndexRecord | None:
    """The record of an index file, which may be damaged or gone; None where it is lost as well."""
    for candidate in (record_path(path), _waiting(path)):
        with suppress(VectorIndexError):
            return _parse(candidate)
    return None


def _parse(path: Path) -> IndexRecord:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.get("schema_version")
        if isinstance(version, int) and version > SCHEMA:
            raise VectorIndexError(
                f"{path} was made by a newer timmscope (schema {version}, this release knows "
                f"{SCHEMA}): upgrade timmscope or build the index again"
            )
        return IndexRecord.model_validate(values)
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise VectorIndexError(
            f"{path} is no record of an index ({_line(error)}): build the index again"
        ) from error


def _settle(path: Path) -> None:
    """Put a record in place that a crash left waiting, if it is the index's."""
    waiting = _waiting(path)
    if waiting.is_file() and path.is_file() and _parse(waiting).sha256 == _digest(path)[1]:
        waiting.replace(record_path(path))
        _sync(path.parent)


def _waiting(path: Path) -> Path:
    return record_path(path).with_suffix(".json.next")


@contextmanager
def held(path: Path, *, writing: bool = False) -> Iterator[None]:
    """Keep an index and its record a pair: nobody replaces them while another reads them."""
    while True:
        file = _opened(path)
        if file is None:  # there is none to hold
            yield
            return
        try:
            _lock(file, writing=writing)
            if _is_still(path, file):  # nobody replaced it meanwhile
                yield
                return
        finally:
            os.close(file)


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        return None


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _lock(descriptor: int, *, writing: bool) -> None:
    """Wait for a lock that goes when the file is closed; some network file systems have none."""
    if fcntl is not None:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if writing else fcntl.LOCK_SH)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for other writers to the folder, and clear away what killed ones left of this index."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(folder, writing=True)
        for name in (path.name, record_path(path).name):
            for draft in path.parent.glob(f".{escape(name)}.*.tmp"):
                draft.unlink(missing_ok=True)
        yield
    finally:
        os.close(folder)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
