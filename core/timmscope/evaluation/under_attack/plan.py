"""The plan of an evaluation of robustness: models, attacks, radii, and what checks need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from timmscope.evaluation.under_attack.checks import MOST_IMAGES, Bench
from timmscope.evaluation.under_attack.labels import Truth
from timmscope.evaluation.under_attack.runs import Run, Subject, planned_runs
from timmscope.techniques.attack import AttackTechnique
from timmscope.techniques.balls import Norm
from timmscope.techniques.image_set import ImageSet


@dataclass(frozen=True)
class Plan:
    """Everything that is to be judged.

    Attributes:
        attacks: the attacks that were asked for, by their names.
        radii: the radii of each norm.
        subjects: the models; the first is the main one.
        runs: what the user asked for, then what checks need.
        checked: the subjects that are checked.
        bench: where the checks attack; None without checks.
        truth: what images are judged against.
        names: names of the images.
    """

    attacks: Mapping[str, AttackTechnique]
    radii: Mapping[Norm, Sequence[float]]
    subjects: Sequence[Subject]
    runs: Sequence[Run]
    checked: Sequence[int]
    bench: Bench | None
    truth: Truth
    names: Sequence[str]

    @classmethod
    def of(
        cls,
        attacks: Mapping[str, AttackTechnique],
        radii: Mapping[Norm, Sequence[float]],
        subjects: Sequence[Subject],
        truth: Truth,
        images: ImageSet,
        checks: bool,
    ) -> Plan:
        """Plan what was asked for; with `checks`, also what they need."""
        runs = planned_runs(attacks, radii, subjects)
        places = [n for n, each in enumerate(subjects) if each.role != "other"] if checks else []
        bench = Bench.of(radii, images.shape) if checks else None
        for place in places:
            runs += bench.runs(place, subjects, len(runs)) if bench is not None else []
        return cls(attacks, radii, subjects, runs, places, bench, truth, images.names)

    def sample(self) -> list[int]:
        """Return the numbers of the images that are checked, evenly spread."""
        count = len(self.names)
        return sorted({count * each // MOST_IMAGES for each in range(MOST_IMAGES)})

    def counts(self, place: int, size: float) -> bool:
        """Whether a change of that size, by a run, is inside the radius at which it is judged.

        A change by an attack of least norm that a check runs may be larger.
        """
        is_check = bool(self.runs[place].check)
        return (
            not is_check
            or self.bench is None
            or self.runs[place].epsilon is not None
            or (size <= self.bench.epsilon)
        )

    def settings(self, seed: int, chunk: int, fingerprint: str) -> dict[str, Any]:
        """Return everything that decides the report, as JSON values.

        Args:
            seed: seed of random numbers.
            chunk: images per chunk and per pass.
            fingerprint: digest of the images.
        """
        return {
            "models": [
                {
                    "id": each.model.id,
                    "role": each.role,
                    "weights_sha256": each.model.weights_sha256,
                    "preprocessing": each.model.preprocessing.to_dict(),
                }
                for each in self.subjects
            ],
            "images": {"count": len(self.names), "fingerprint": fingerprint},
            "labels": {"origin": self.truth.origin, "digest": self.truth.digest()},
            "attacks": {
                label: {"technique": each.technique_id(), "parameters": each._recorded_in_call()}
                for label, each in self.attacks.items()
            },
            "epsilons": {norm: list(radii) for norm, radii in self.radii.items()},
            "checks": [run.label for run in self.runs if run.check],
            "seed": seed,
            "batch_size": chunk,
        }
