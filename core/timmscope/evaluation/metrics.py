"""Lists the metrics by name, and those that are used by default."""

from __future__ import annotations

from timmscope.evaluation.curves import Deletion, Insertion
from timmscope.evaluation.metric import Metric
from timmscope.evaluation.pointing import PointingGame
from timmscope.evaluation.randomisation import CascadingRandomisation
from timmscope.evaluation.sensitivity import SensitivityN

BY_NAME: dict[str, type[Metric]] = {
    kind.name: kind
    for kind in (Insertion, Deletion, PointingGame, SensitivityN, CascadingRandomisation)
}


def default_metrics(boxes: bool) -> list[Metric]:
    """Return every metric, but the pointing game only if there are boxes."""
    return [kind() for name, kind in BY_NAME.items() if boxes or name != PointingGame.name]
