"""Reads and preprocesses batches of images in worker processes.

A batch is a fixed range of ids and always has its full size: a grey image replaces an image that
cannot be read. So every forward has the same batches, however often a pass was killed before.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Listener
from threading import current_thread, main_thread
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import DataLoader, Dataset, get_worker_info

from timmscope.images import ImageSource
from timmscope_registry import ImageError, StoreError, TimmscopeError
from timmscope_registry.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from timmscope.models import Preprocessing

GREY = 0.5
_LONGEST_REASON = 400

T = TypeVar("T")


@dataclass(frozen=True)
class Loaded:
    """A batch of images ready for the model.

    Attributes:
        start: id of the first image.
        images: (B, C, H, W) in [0, 1].
        sizes: width and height of each image in pixels before preprocessing.
        reasons: why an image could not be read; "" for those that could.
    """

    start: int
    images: Tensor
    sizes: list[tuple[int, int]]
    reasons: list[str]


class Batches(Dataset[Loaded | TimmscopeError]):
    """Loads ranges of ids as batches; it can be pickled to a worker if its source can.

    Some errors are returned as values instead of being raised. If shared memory has no room for a
    batch, torch would lose the exception of the thread that sends the batch, and the main process
    would wait forever. Errors of a lost disk or of too little memory would be wrapped in a
    traceback.
    """

    def __init__(
        self, source: ImageSource, preprocessing: Preprocessing, ranges: Sequence[tuple[int, int]]
    ) -> None:
        self._source = source
        self._preprocessing = preprocessing
        self._ranges = ranges

    def __len__(self) -> int:
        return len(self._ranges)

    def __getitem__(self, index: int) -> Loaded | TimmscopeError:
        start, stop = self._ranges[index]
        images = torch.empty((stop - start, *self._preprocessing.input_size))
        if get_worker_info() is not None:
            try:
                images.share_memory_()
            except RuntimeError as error:
                return StoreError(
                    "no room in shared memory for a batch of images "
                    f"({images.nbytes / 1e6:.3g} MB: {' '.join(str(error).split())}); start again "
                    "with workers=0 or a smaller batch: finished shards are kept"
                )
        images.fill_(GREY)
        sizes, reasons = [], []
        for row, image_id in enumerate(range(start, stop)):
            size, reason = (0, 0), ""
            try:
                images[row], size = self._preprocessing.load(self._source, image_id)
            except Exception as error:  # one image must not end a pass over a million
                if is_out_of_memory(error):
                    return StoreError(
                        f"no memory to read {self._source.paths[image_id]}; start again with fewer "
                        "workers, or without this image: finished shards are kept"
                    )
                reason = f"{type(error).__name__}: {error}"
                if isinstance(error, ImageError):
                    reason = str(error).removeprefix(f"{error.path}: ")  # the store has the name
            if reason:
                if lost := self._source.unreachable():
                    return ImageError(
                        f"{self._source.location or 'the images'}: can no longer be reached "
                        f"({lost}); bring them back and start again: finished shards are kept"
                    )
                images[row] = GREY
                reason = " ".join(reason.split())[:_LONGEST_REASON]
            sizes.append(size)
            reasons.append(reason)
        return Loaded(start, images, sizes, reasons)


def load_batches(
    batches: Batches, *, workers: int, start_method: str | None = None
) -> Generator[Loaded, None, None]:
    """Yield all batches in order; `workers` processes read ahead (0: this process reads).

    Workers start by the platform's default method, or by `start_method` (`fork`, `forkserver`,
    `spawn`). They start with the first batch, run one thread each and never use the model. Forking
    is safe here: no worker enters OpenMP, each process opens its own HDF5 handles, and a forked
    worker does not hold the store's lock.

    Raises:
        StoreError: a worker died, had too little memory to read or send its images, or could not
            create a socket in the folder of temporary files.
        ImageError: the images as a whole can no longer be reached.
    """
    if workers:
        _require_socket()
    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=workers,
        collate_fn=_identity,
        worker_init_fn=_init_worker if workers else None,
        multiprocessing_context=start_method if workers else None,
        prefetch_factor=2 if workers else None,
        generator=torch.Generator(),  # by default it would draw from the caller's random state
    )
    iterator = iter(loader)
    with _default_sigchld():
        try:
            while True:
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                except (RuntimeError, EOFError, OSError) as error:  # of a worker or its connection
                    if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                        raise
                    raise StoreError(
                        "a process that reads images died, most likely for lack of memory; "
                        "start again with fewer workers: finished shards are kept"
                    ) from error.with_traceback(None)
                if isinstance(batch, TimmscopeError):
                    raise batch
                yield batch
        finally:  # a kept error must not keep the workers alive; if collected later, they hang
            del iterator


def _require_socket() -> None:
    """Create a socket as workers do to send batches, since torch waits forever if theirs fails."""
    if get_sharing_strategy() != "file_descriptor":
        return
    try:
        Listener(family="AF_UNIX").close()
    except OSError as error:
        raise StoreError(
            "processes that read images cannot create a socket in the folder of temporary files, "
            f"{tempfile.gettempdir()} ({error.strerror or error}); set TMPDIR to another folder, "
            "as in TMPDIR=/tmp, or start again with workers=0"
        ) from error


@contextmanager
def _default_sigchld() -> Iterator[None]:
    """Disable torch's handler of SIGCHLD, which raises wherever the main thread happens to be.

    That may be inside a collector. Without the handler, the iterator raises within seconds.
    """
    if not hasattr(signal, "SIGCHLD") or current_thread() is not main_thread():
        yield
        return
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _identity(batch: T) -> T:
    return batch


def _init_worker(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the main process
    warnings.filterwarnings("ignore", module="PIL")  # odd images that can be read
    sys.excepthook = _print_error


def _print_error(
    kind: type[BaseException], error: BaseException, where: TracebackType | None
) -> None:
    """Print an error of a worker's thread, except a closed connection.

    The thread that sends batches gets a closed connection if the pass ends at that moment.
    """
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, where)
