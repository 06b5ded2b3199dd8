"""Combines the records of an evaluation of robustness, and makes its checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from timmscope.evaluation.under_attack.checks import (
    NAMES,
    Bench,
    Check,
    Outcome,
    Pair,
    judge_adaptive,
    judge_attacks,
    judge_black_box,
    judge_gradients,
    judge_outputs,
    judge_transfer,
)
from timmscope.evaluation.under_attack.checks.check import not_applicable
from timmscope.evaluation.under_attack.plan import Plan
from timmscope.evaluation.under_attack.result import Robustness
from timmscope.results.result import Provenance
from timmscope.store.records import Record
from timmscope_registry import ImageError, TechniqueError

_FACTS = ("forwards", "backwards", "queries", "zero_gradients")


class _Table:
    """The rows of the user's attacks, filled record by record."""

    def __init__(self, plan: Plan) -> None:
        self._place: dict[tuple[int, int], int] = {}
        self.rows: list[dict[str, Any]] = []
        for number, run in enumerate(plan.runs):
            for target in () if run.check else run.targets:
                self._place[number, target] = len(self.rows)
                self.rows.append(
                    {
                        "attack": run.label,
                        "norm": run.norm,
                        "epsilon": run.epsilon if run.attack.kind == "fixed" else None,
                        "source": run.source,
                        "target": target,
                    }
                )
        shape = len(self.rows), len(plan.names)
        names = ("radius", "radius_8bit", *_FACTS)
        self.arrays = {name: torch.full(shape, torch.nan, dtype=torch.float64) for name in names}

    def add(self, record: Record) -> None:
        numbers = torch.tensor(record["numbers"], dtype=torch.long)
        sizes = torch.tensor(record["size"], dtype=torch.float64)
        for target, judged in record["targets"].items():
            row = self._place.get((record["run"], int(target)))
            if row is None:
                continue
            right = torch.tensor(judged["right"], dtype=torch.bool)
            for name, broken in (("radius", "broken"), ("radius_8bit", "broken_8bit")):
                hit = torch.tensor(judged[broken], dtype=torch.bool)
                radius = torch.where(hit, sizes, torch.inf)
                self.arrays[name][row, numbers] = torch.where(right, radius, 0.0)
            for name in _FACTS:
                self.arrays[name][row, numbers] = torch.tensor(record[name], dtype=torch.float64)


def summarise(
    records: Iterable[Record], plan: Plan, settings: dict[str, Any], seed: int
) -> Robustness:
    """Combine the records.

    Raises:
        ImageError: no image can be read.
        TechniqueError: no attack can run on the first model.
    """
    names = list(plan.names)
    count, table = len(names), _Table(plan)
    labels = torch.full((count,), -1)
    right = torch.full((len(plan.subjects), count), torch.nan, dtype=torch.float64)
    unreadable: dict[int, str] = {}
    refused: dict[int, dict[str, list[str]]] = {}
    probes: dict[int, Record] = {}
    checked: dict[int, list[Record]] = {}
    for record in records:
        if record["step"] == "images":
            numbers = torch.tensor(record["numbers"], dtype=torch.long)
            labels[numbers] = torch.tensor(record["labels"], dtype=torch.long)
            for place, own in enumerate(record["right"]):
                right[place, numbers] = torch.tensor(own, dtype=torch.float64)
            unreadable |= {int(number): why for number, why in record["missing"].items()}
        elif record["step"] == "probe":
            probes[record["model"]] = record
        elif plan.runs[record["run"]].check:
            checked.setdefault(record["run"], []).append(record)
        else:
            table.add(record)
            for number, why in record["refused"].items():
                refused.setdefault(record["run"], {}).setdefault(why, []).append(number)
    if len(unreadable) == count:
        raise ImageError(
            f"none of the {count} images can be read; the first error is: "
            f"{next(iter(unreadable.values()))}"
        )
    if not plan.bench:
        _require_any(table, refused)
    first = plan.subjects[0].model
    result = Robustness(
        provenance=Provenance.now(
            technique="timmscope:robustness",
            family="evaluation",
            parameters={name: settings[name] for name in ("attacks", "epsilons", "checks")},
            model=first.id,
            weights_sha256=first.weights_sha256,
            seed=seed,
            call={name: settings[name] for name in ("models", "images", "labels", "batch_size")},
            named={
                f"{label}.{parameter}": named
                for label, attack in plan.attacks.items()
                for parameter, named in attack._named_in_call().items()
            },
        ),
        models=[subject.name for subject in plan.subjects],
        roles=[subject.role for subject in plan.subjects],
        images=names,
        labels=labels,
        labels_from=plan.truth.origin,
        right=right,
        rows=table.rows,
        epsilons={norm: list(radii) for norm, radii in _judged_radii(plan).items()},
        refused=[
            {
                "attack": plan.runs[run].title,
                "model": plan.subjects[plan.runs[run].source].name,
                "images": len(numbers),
                "reason": why,
            }
            for run, reasons in refused.items()
            for why, numbers in reasons.items()
        ],
        unreadable=[{"image": names[number], "reason": why} for number, why in unreadable.items()],
        checks=[],
        radius=table.arrays["radius"],
        radius_8bit=table.arrays["radius_8bit"],
        forwards=table.arrays["forwards"],
        backwards=table.arrays["backwards"],
        queries=table.arrays["queries"],
        zero_gradients=table.arrays["zero_gradients"],
    )
    for place in plan.checked:
        own = _Evidence(plan, result, place, probes.get(place), checked)
        result.checks.extend(check.row(place) for check in own.checks())
    return result


def _judged_radii(plan: Plan) -> dict[str, list[float]]:
    """Return the radii of the table by norm; those of single attacks count too."""
    radii: dict[str, set[float]] = {}
    for norm, given in plan.radii.items():
        own = {
            run.epsilon
            for run in plan.runs
            if run.norm == norm and run.epsilon is not None and not run.check
        }
        least = any(run.norm == norm and run.epsilon is None for run in plan.runs if not run.check)
        radii[norm] = own | (set(given) if least or not own else set())
    return {norm: sorted(each) for norm, each in radii.items()}


def _require_any(table: _Table, refused: dict[int, dict[str, list[str]]]) -> None:
    """Refuse a report in which no attack has attacked anything.

    Raises:
        TechniqueError: none has.
    """
    if refused and bool(table.arrays["radius"].isnan().all()):
        raise TechniqueError(next(iter(next(iter(refused.values())))))


class _Evidence:
    """What is known about one model for its checks."""

    def __init__(
        self,
        plan: Plan,
        result: Robustness,
        place: int,
        probe: Record | None,
        records: dict[int, list[Record]],
    ) -> None:
        self._plan, self._result, self._place, self._probe = plan, result, place, probe
        self._found = {
            run.check: self._outcome(number, records.get(number, []))
            for number, run in enumerate(plan.runs)
            if run.check and run.source == place
        }

    def checks(self) -> list[Check]:
        """Return all checks by number."""
        bench, probe, found = self._plan.bench, self._probe, self._found
        assert bench is not None
        made: list[Check] = []
        if probe is not None and probe["outputs"] is not None:
            made += [*judge_outputs(probe["outputs"]), *judge_gradients(probe["gradients"])]
        made += judge_attacks(found, bench)
        made.append(judge_black_box(found, bench))
        defended = self._plan.subjects[self._place].role == "defended"
        made.append(judge_transfer(self._pairs("other"), found, bench))
        made.append(judge_adaptive(self._pairs("model") if defended else [], defended))
        known = {check.number: check for check in made}
        reason = "no image can be read"
        return [known.get(number) or not_applicable(number, reason) for number in NAMES]

    def _outcome(self, number: int, records: list[Record]) -> Outcome:
        """Count what an attack of the checks did to the images of the sample."""
        run, place = self._plan.runs[number], str(self._place)
        refused = next((why for each in records for why in each["refused"].values()), "")
        count = right = broken = rounded = 0
        for record in records:
            own = record["targets"][place]
            inside = [self._plan.counts(number, size) for size in record["size"]]
            count += len(record["numbers"])
            right += sum(own["right"])
            broken += sum(b and i for b, i in zip(own["broken"], inside, strict=True))
            rounded += sum(b and i for b, i in zip(own["broken_8bit"], inside, strict=True))
        if run.after:  # the images that others broke are not in its records
            count, right = self._sample_counts()
        return Outcome(count, right, broken, rounded, refused)

    def _sample_counts(self) -> tuple[int, int]:
        numbers = self._plan.sample()
        own = self._result.right[self._place][numbers]
        return int(own.isfinite().sum()), int((own == 1).sum())

    def _pairs(self, role: str) -> list[Pair]:
        """Return the user's attacks on this model beside the same attacks made elsewhere.

        Args:
            role: of the models elsewhere.
        """
        result, pairs = self._result, []
        rows = {
            (row["attack"], row["epsilon"], row["source"]): number
            for number, row in enumerate(result.rows)
            if row["target"] == self._place
        }
        for (attack, epsilon, source), number in rows.items():
            own = rows.get((attack, epsilon, self._place))
            other_role = result.roles[source]
            if source == self._place or own is None or other_role != role:
                continue
            both = (result.radius[number] > 0) & (result.radius[own] > 0)
            for radius in self._radii(result.rows[number]):
                here, there = (
                    int((result.radius[each][both] <= radius).sum()) for each in (own, number)
                )
                title = f"{attack} at {self._text(result.rows[number]['norm'], radius)}"
                pairs.append(Pair(title, result.models[source], int(both.sum()), here, there))
        return pairs

    def _radii(self, row: dict[str, Any]) -> list[float]:
        known: list[float] = self._result.epsilons[row["norm"]]
        return known if row["epsilon"] is None else [row["epsilon"]]

    @staticmethod
    def _text(norm: Any, radius: float) -> str:
        return Bench(norm, radius, []).radius_text()
