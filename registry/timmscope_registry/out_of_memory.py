"""Recognises that memory is used up, because every library has its own error for it."""

from __future__ import annotations

import errno
import re

from timmscope_registry.errors import TimmscopeError
from timmscope_registry.plugin_faults import one_line

_RUNTIME_ERRORS = re.compile(
    "DefaultCPUAllocator"  # torch on a CPU
    "|out of memory"  # torch on an accelerator
    "|bad_alloc"  # C++
)
_OTHER_ERRORS = re.compile(  # no looser, since messages may hold names of files
    r"^OSError: out of memory"  # Pillow
    r"|\(memory allocation failed[^()]*\)'?$"  # HDF5
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error, or one that led to it, says that there is not enough memory."""
    found: BaseException | None = error
    while found is not None:
        if _says_so(found):
            return True
        context = None if found.__suppress_context__ else found.__context__
        found = found.__cause__ or context
    return False


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    if isinstance(error, TimmscopeError) or not isinstance(error, Exception):
        return False
    text = one_line(error)
    if isinstance(error, RuntimeError) and _RUNTIME_ERRORS.search(text):
        return True
    return _OTHER_ERRORS.search(text) is not None
