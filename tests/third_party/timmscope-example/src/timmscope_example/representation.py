"""Labels as points in feature space."""

from typing import Any

import numpy as np

from timmscope import ParameterError, Rows, StoreTechnique, Table


class ClassDistances(StoreTechnique):
    """Euclidean distances between the mean rows of the labels, nearest first; one streamed pass."""

    def analyse(self, source: Rows, images: Any) -> Table:
        """A pair of labels a row."""
        if images is not None:
            raise ParameterError(f"{self.title()} takes no images", parameter="images")
        names, code = source.labels.names, source.labels.codes
        known = np.unique(code[code >= 0])
        if len(known) < 2:
            raise ParameterError(
                f"{self.title()} compares labels, {source.title} has {len(known)}: mine a folder "
                "of folders, or give a column `label` with --metadata",
                parameter="source",
            )
        sums, counts, start = np.zeros((len(names), source.dim)), np.bincount(code[code >= 0]), 0
        for _, rows in source.batches(self.title()):
            here = code[start : start + len(rows)]
            start += len(rows)
            np.add.at(sums, here[here >= 0], rows[here >= 0])
        means = {label: sums[label] / counts[label] for label in known.tolist()}
        pairs = [
            {"label": names[a], "other": names[b], "distance": float(np.linalg.norm(x - y))}
            for a, x in means.items()
            for b, y in means.items()
            if a < b
        ]
        pairs.sort(key=lambda pair: pair["distance"])
        return Table(provenance=self.provenance(source), rows=pairs)
