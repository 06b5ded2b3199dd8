"""The attacks that the checks need, all at one radius and on a sample of the images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timmscope.evaluation.under_attack.noise import RandomNoise
from timmscope.evaluation.under_attack.radii import radius_text, usual_radii
from timmscope.evaluation.under_attack.runs import Run, Subject, at_radius
from timmscope.parameters import registered_class
from timmscope.techniques.attack import AttackTechnique
from timmscope.techniques.balls import NORM_NAMES, Norm
from timmscope.techniques.lookup import settings_text
from timmscope_registry import ParameterError, PluginError, get_registry

MOST_IMAGES = 100
"""Largest number of images that are checked, evenly spread over the set."""
LONGER = (200, 5)
"""Steps and restarts of the attack that must change little: ten times the steps of PGD-20."""
_DRAWS = 2
"""Draws of a random defence at each of these steps, over which they average anyway."""
HALF = 0.5
"""Radius in pixel units at which an attack can make any image grey."""


@dataclass(frozen=True)
class Bench:
    """Where the checks attack.

    Attributes:
        norm: the norm of their attacks.
        epsilon: the radius at which most of them attack: the middle one of those that are judged.
        radii: all radii at which the accuracy must fall, the largest of them half the range.
    """

    norm: Norm
    epsilon: float
    radii: list[float]

    @classmethod
    def of(cls, radii: Mapping[Norm, Sequence[float]], shape: tuple[int, int, int]) -> Bench:
        """Choose L∞ if it is judged, else L2, else L∞ at its usual radii.

        Args:
            radii: the radii that are judged, by norm.
            shape: channels, height and width of an image.
        """
        norm: Norm = "l2" if "l2" in radii and "linf" not in radii else "linf"
        known = sorted(radii.get(norm) or usual_radii(norm, shape))
        half = HALF if norm == "linf" else HALF * math.sqrt(math.prod(shape))
        below = [radius for radius in known if radius < half]
        return cls(norm, known[(len(known) - 1) // 2], [*below, half])

    def radius_text(self, epsilon: float | None = None) -> str:
        """Return a radius in words, with its norm; by default the one of most attacks."""
        radius = self.epsilon if epsilon is None else epsilon
        return f"{NORM_NAMES[self.norm]} {radius_text(radius, self.norm)}"

    def runs(self, place: int, subjects: Sequence[Subject], first: int) -> list[Run]:
        """Return the attacks for the checks of a subject.

        Args:
            place: the subject.
            subjects: all subjects.
            first: number of the first run among all runs.
        """
        runs: list[Run] = []

        def add(check: str, attack: AttackTechnique | None, after: Sequence[str] = ()) -> None:
            if attack is not None:
                numbers = [first + n for n, run in enumerate(runs) if run.check in after]
                label = settings_text(attack)
                runs.append(Run(label, attack, place, (place,), check, tuple(numbers)))

        size = {"norm": self.norm, "epsilon": self.epsilon}
        add("fgsm", _attack("fgsm", **size))
        add("pgd-10", _attack("pgd", **size, steps=10))
        add("pgd-20", _attack("pgd", **size, steps=20))
        add("pgd-100", _attack("pgd", **size, steps=100, stop_when_fooled=True))
        add("pgd-20 margin", _attack("pgd", **size, steps=20, loss="margin", stop_when_fooled=True))
        if subjects[place].model.num_classes > 2:
            add("pgd-20 dlr", _attack("pgd", **size, steps=20, loss="dlr", stop_when_fooled=True))
        steps, restarts = LONGER
        more = {"draws": _DRAWS} if subjects[place].model.has_random_defence else {}
        longer = {"steps": steps, "restarts": restarts, "stop_when_fooled": True, **more}
        add("longer", _attack("pgd", **size, **longer), after=("pgd-20",))
        for number, radius in enumerate(self.radii):
            if radius != self.epsilon:
                attack = _attack("pgd", **size, steps=20, stop_when_fooled=True)
                add(f"radius {number}", attack and at_radius(attack, radius))
        white = tuple(run.check for run in runs if not run.check.startswith("radius"))
        add("noise", RandomNoise(norm=self.norm, epsilon=self.epsilon), after=white)
        for name in ("square", "hopskipjump"):
            add(name, _attack(name, **size), after=white)
        if (surrogate := self._surrogate(place, subjects)) is not None:
            add("mi-fgsm", _attack("mi-fgsm", **size, surrogate=surrogate))
        return runs

    def _surrogate(self, place: int, subjects: Sequence[Subject]) -> Any:
        """Return the model from which attacks may transfer: the undefended one, or another."""
        if subjects[place].role == "defended":
            return subjects[0].model
        return next((each.model for each in subjects if each.role == "other"), None)


def _attack(name: str, **parameters: Any) -> AttackTechnique | None:
    """Make a registered attack; None if none has the name, or it lacks such a parameter.

    An attack of least norm gets no radius.
    """
    try:
        entry = get_registry().technique(name)
        kind = registered_class(entry, AttackTechnique)  # type: ignore[type-abstract]
        if kind.kind == "minimum":
            parameters.pop("epsilon")
        return kind(**parameters)
    except (PluginError, ParameterError):
        return None


@dataclass(frozen=True)
class Outcome:
    """What an attack of a check did to the images of a sample.

    Attributes:
        count: images that were read.
        right: images that the model classifies right.
        broken: images that it broke within the radius of the checks.
        broken_8bit: of those, images that stay broken in 8 bits.
        refused: why the attack could not run; empty if it could.
    """

    count: int
    right: int
    broken: int
    broken_8bit: int
    refused: str = ""

    @property
    def robust(self) -> int:
        """Images that are classified right and not broken."""
        return self.right - self.broken

    @property
    def share(self) -> float:
        """Robust accuracy."""
        return self.robust / max(self.count, 1)
