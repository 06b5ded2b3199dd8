"""`Steps` are what an evaluation does one after the other; a journal lets it be resumed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from timmscope.durable import make_folder
from timmscope.progress import task
from timmscope.results import to_json
from timmscope.results.result import Result
from timmscope.store.lock import StoreLock
from timmscope.store.records import RECORDS, Journal, Record
from timmscope_registry import StoreCorrupted, StoreError

R = TypeVar("R", bound=Result)


class Steps(ABC, Generic[R]):
    """The steps of an evaluation in a fixed order, each with one record.

    Attributes:
        total: number of steps.
        settings: everything that decides the records, as JSON values.
    """

    name: ClassVar[str]
    """Name of the file of settings, without `.json`."""
    what: ClassVar[str]
    """What the folder holds, for messages, as in `an evaluation`."""
    title: ClassVar[str]
    """What is done, beside the progress."""

    total: int
    settings: dict[str, Any]

    @abstractmethod
    def run(self, index: int) -> Record:
        """Do a step, and return its record."""

    def seen(self, record: Record) -> None:
        """Take note of the record of a step, whether it was done now or by an earlier process."""

    @abstractmethod
    def summarise(self, journal: Journal) -> R:
        """Combine the records of all steps."""


def complete(steps: Steps[R], out: Path | None) -> R:
    """Do the steps that are missing, and return what all of them say together.

    Args:
        steps: the steps.
        out: folder of the journal and the result; None to keep nothing.

    Raises:
        StoreMismatch: the folder holds the steps of something else.
        StoreCorrupted: its records were damaged or edited.
        StoreError: it holds other files, or cannot be written.
    """
    with _locked(out, steps.name):
        journal = Journal(out, steps.settings, steps.name, steps.what)
        with _records_of_others(out):
            for record in journal:
                steps.seen(record)
        with task(steps.title, total=steps.total) as advance:
            advance(journal.count)
            for index in range(journal.count, steps.total):
                record = to_json(steps.run(index))
                journal.add(record)
                steps.seen(record)
                advance(1)
        with _records_of_others(out):
            result = steps.summarise(journal)
        if out is not None:
            result.save(out)
    return result


@contextmanager
def _records_of_others(folder: Path | None) -> Iterator[None]:
    """Report records that are none of these steps, although their digests are right.

    Raises:
        StoreCorrupted: what reads them has met another form.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        if folder is None:
            raise
        raise StoreCorrupted(
            f"{folder / RECORDS} has records of something else ({type(error).__name__}: "
            f"{error}); delete it, and everything is computed again"
        ) from error


def _locked(folder: Path | None, what: str) -> AbstractContextManager[object]:
    """Create the folder and lock it, so that no other process writes to it."""
    if folder is None:
        return nullcontext()
    try:
        make_folder(folder)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot create this folder ({error.strerror}); choose another"
        ) from error
    return StoreLock(folder, what)
