"""Checks the machine, the plugins' implementations and stores, for ``timmscope doctor``."""

from __future__ import annotations

import os
import platform
import re
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from timmscope_registry import (
    PluginError,
    Problem,
    StoreCorrupted,
    TimmscopeError,
    get_registry,
)
from timmscope_registry.loading import SLOW_S
from timmscope_registry.plugin_faults import described, plugin_traceback

_OPENMP = re.compile(
    r"/(lib(?:gomp|omp|iomp5)[^/]*\.so[^/\s]*|[^/]*(?:libiomp5md|vcomp)[^/]*\.dll)$"
)


def machine() -> dict[str, str]:
    """Return versions and devices that are known only after torch is imported."""
    import faiss
    import h5py
    import torch

    device = "cpu"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        device = f"cuda: {', '.join(names)}"
    elif torch.backends.mps.is_available():
        device = "mps"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "device": device,
        "processors": str(os.cpu_count()),
        "torch threads": str(torch.get_num_threads()),
        "oneDNN": "yes" if torch.backends.mkldnn.is_available() else "no",
        "HDF5": h5py.version.hdf5_version,
        "FAISS": f"{faiss.__version__} ({faiss.get_compile_options().strip().lower()})",
        "OpenMP": ", ".join(Path(file).name for file in openmp_libraries()) or "unknown",
    }


def import_implementations() -> tuple[dict[str, float], list[str], list[Problem]]:
    """Import every implementation, because a slow or broken one is otherwise found at first use.

    Returns:
        The seconds spent on each plugin's implementations, a note on each implementation that took
        over `SLOW_S`, and a problem for each that cannot be imported.
    """
    spent: dict[str, float] = {}
    notes, problems = [], []
    for entry in get_registry().entries():
        plugin = entry.plugin
        start = time.perf_counter()
        try:
            entry.load()
        except PluginError as error:
            if error.__cause__ is None:  # only an optional dependency is missing
                continue
            problems.append(
                Problem(
                    plugin=plugin.id,
                    stage="implementation",
                    message=str(error),
                    hint="tell its authors; everything else works",
                    traceback=plugin_traceback(error.__cause__),
                )
            )
        took = time.perf_counter() - start
        spent[plugin.id] = spent.get(plugin.id, 0.0) + took
        if took > SLOW_S:
            notes.append(
                f"{described(entry)} takes {1000 * took:.0f} ms to import at first use "
                f"({entry.spec.impl})"
            )
    return spent, notes, problems


def openmp_libraries() -> list[str]:
    """Return the files of the loaded OpenMP libraries; an empty list without ``/proc``."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8")
    except OSError:
        return []
    files = {line.partition("/")[2] for line in maps.splitlines() if "/" in line}
    return sorted(f"/{file}" for file in files if _OPENMP.search(f"/{file}"))


def openmp_problems(libraries: Iterable[str]) -> list[Problem]:
    """Return a problem if several LLVM or Intel runtimes are loaded, which can crash or hang."""
    makers: dict[str, list[str]] = {}
    for file in libraries:
        makers.setdefault("gnu" if "gomp" in Path(file).name else "llvm", []).append(file)
    clashing = makers.get("llvm", [])
    if len(clashing) < 2:
        return []
    return [
        Problem(
            plugin="OpenMP",
            stage="package",
            message=f"{len(clashing)} LLVM or Intel runtimes are loaded: {', '.join(clashing)}",
            hint="install torch and faiss from one place, both by pip or both by conda",
        )
    ]


def check_stores(paths: Iterable[Path]) -> tuple[list[dict[str, Any]], list[Problem]]:
    """Return facts and problems of stores and their indexes, without reading the shards."""
    facts, problems = [], []
    for path in paths:
        try:
            fact, found = _check_store(path)
        except TimmscopeError as error:
            problems.append(
                Problem(
                    plugin=str(path),
                    stage="store",
                    message=str(error),
                    hint=f"timmscope verify {path} --repair"
                    if isinstance(error, StoreCorrupted)
                    else "",
                )
            )
        else:
            facts.append(fact)
            problems += found
    return facts, problems


def _check_store(path: Path) -> tuple[dict[str, Any], list[Problem]]:
    from timmscope.index.files import salvaged_record
    from timmscope.index.ownership import missing_rows
    from timmscope.index.verify import examine_indexes, index_files
    from timmscope.mining.verify import wrong_sizes
    from timmscope.store import Store

    store = Store.open(path)
    problems = []
    if not store.complete:
        left = store.manifest.shard_count - len(store.manifest.shards)
        problems.append(
            Problem(
                plugin=str(path),
                stage="store",
                message=f"{left} of {store.manifest.shard_count} shards are not mined yet",
                hint="run the command that mined it again",
            )
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        damaged = examine_indexes(store)
    problems += [
        Problem(
            plugin=str(path),
            stage=stage,
            message=f"{each.file}: {each.reason}",
            hint=f"timmscope verify {path} --repair",
        )
        for stage, found in (
            ("store", wrong_sizes(store.path, store.manifest)),
            ("index", damaged),
        )
        for each in found
    ]
    indexes = []
    for file in index_files(store.path):
        record = salvaged_record(file)
        if record is None:
            continue
        missing = missing_rows(record, store)
        indexes.append({"layer": record.layer, "backend": record.backend, "missing_rows": missing})
        if missing:
            problems.append(
                Problem(
                    plugin=str(path),
                    stage="index",
                    message=f"the index of {record.layer} is missing {missing} rows of the store",
                    hint=f"timmscope index add {path} {record.layer}",
                )
            )
    fact = {
        "store": str(path),
        "model": store.manifest.model.id,
        "images": len(store),
        "shards": f"{len(store.manifest.shards)}/{store.manifest.shard_count}",
        "layers": list(store.layers),
        "indexes": indexes,
        "made_with": store.manifest.versions,
    }
    return fact, problems
