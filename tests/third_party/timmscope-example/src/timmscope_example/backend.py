"""Search at its simplest."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from timmscope import BuildHints, RecallBenchmark


class Dictionary:
    """Rows in a dictionary; a query is compared with each that may be found, in float64."""

    def __init__(self, dim: int, space: str, hints: BuildHints) -> None:
        self._dim, self._space = dim, space
        self._row_of: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._row_of)

    @property
    def ids(self) -> np.ndarray:
        """In the order they were added."""
        return np.fromiter(self._row_of, np.int64, len(self))

    def add(self, rows: np.ndarray, ids: np.ndarray) -> None:
        """Append rows."""
        self._row_of.update(zip(ids.tolist(), rows.copy(), strict=True))

    def finish(self, held_out: np.ndarray) -> None:
        """There is nothing to train."""

    def remove(self, ids: np.ndarray) -> None:
        """Drop rows."""
        for number in ids.tolist():
            del self._row_of[number]

    def compact(self) -> None:
        """Removed rows are gone already."""

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sorted by value, then id."""
        ids = np.sort(self.ids) if allowed is None else allowed
        rows = self.rows(ids).astype(np.float64)
        values, found = [], []
        for query in queries.astype(np.float64):
            if self._space == "ip":
                scores = rows @ query
                order = np.argsort(-scores, kind="stable")[:k]
            else:
                scores = np.sqrt(((rows - query) ** 2).sum(1))
                order = np.argsort(scores, kind="stable")[:k]
            values.append(scores[order])
            found.append(ids[order])
        return np.array(values, np.float32), np.array(found, np.int64)

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """`KeyError` for an id that is not there."""
        return np.array([self._row_of[number] for number in ids.tolist()], np.float32)

    def tune(self, benchmark: RecallBenchmark, recall: float, *, timed: bool) -> float:
        """It is exact."""
        return 1.0

    def save(self, path: Path) -> None:
        """As JSON: floats of 32 bits survive it."""
        rows = {number: row.tolist() for number, row in self._row_of.items()}
        Path(path).write_text(json.dumps(rows))

    @classmethod
    def load(
        cls, path: Path, dim: int, space: str, facts: dict[str, Any], *, mmap: bool
    ) -> "Dictionary":
        """Read it again."""
        engine = cls(dim, space, BuildHints())
        for number, row in json.loads(Path(path).read_text()).items():
            engine._row_of[int(number)] = np.array(row, np.float32)
        return engine

    def facts(self) -> dict[str, Any]:
        """It is exact, and remembers nothing that was removed."""
        return {"exact": True, "tombstones": 0}
