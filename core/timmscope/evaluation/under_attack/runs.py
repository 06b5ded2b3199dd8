"""Says which attack runs on which model, and on which models it is judged.

An attack that is made on one model and judged on another is oblivious if the other is the same
network behind a defence, and a transfer attack if it is another network; one that is made on the
model that it is judged on is direct, or adaptive if that model is defended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from timmscope.evaluation.under_attack.radii import radius_text
from timmscope.models import Defence, HookedModel, load_model
from timmscope.parameters import from_text
from timmscope.techniques.attack import AttackTechnique
from timmscope.techniques.balls import NORM_NAMES, Norm
from timmscope.techniques.base import Technique
from timmscope.techniques.lookup import settings_text
from timmscope_registry import ModelError, ParameterError

Role = Literal["model", "defended", "other"]
Chain = str | Defence | Sequence[str | Defence]
"""A defence, or several that act one after the other; as a text, joined by ` + `."""
Attacks = str | AttackTechnique | Sequence[str | AttackTechnique]


@dataclass(frozen=True)
class Subject:
    """A model that is judged, and the name of its rows."""

    name: str
    model: HookedModel
    role: Role


@dataclass(frozen=True)
class Run:
    """An attack at one radius, made on one model and judged on some.

    Attributes:
        label: name of the attack in the report.
        attack: the attack with its radius.
        source: the subject that it is made on.
        targets: the subjects on which its images are judged.
        check: the name under which checks find it; empty for what the user asked for.
        after: runs whose broken images it leaves out.
    """

    label: str
    attack: AttackTechnique
    source: int
    targets: tuple[int, ...]
    check: str = ""
    after: tuple[int, ...] = ()

    @property
    def norm(self) -> Norm:
        """The norm that the attack keeps small."""
        return self.attack.norm

    @property
    def epsilon(self) -> float | None:
        """The radius; None for an attack of least norm."""
        return self.attack.epsilon

    @property
    def title(self) -> str:
        """Attack and radius, for messages."""
        if self.epsilon is None:
            return self.label
        return f"{self.label} at {NORM_NAMES[self.norm]} {radius_text(self.epsilon, self.norm)}"


def named_attacks(given: Attacks) -> dict[str, AttackTechnique]:
    """Return the attacks by their names in the report.

    Raises:
        PluginError: there is no technique of a name.
        ParameterError: one is no attack of single images, has wrong parameters, or is there twice.
    """
    listed = [given] if isinstance(given, str | Technique) else list(given)
    found: dict[str, AttackTechnique] = {}
    for each in listed:
        attack = attack_of(each) if isinstance(each, str) else each
        if not isinstance(attack, AttackTechnique):
            raise ParameterError(
                f"{attack!r} is no attack: expected a text, as in 'pgd steps=50', or an attack "
                "technique",
                parameter="attacks",
            )
        label = settings_text(attack)
        if label in found:
            raise ParameterError(f"the attack {label} is given twice", parameter="attacks")
        found[label] = attack
    if not found:
        raise ParameterError("name at least one attack, as in 'pgd steps=50'", parameter="attacks")
    return found


def attack_of(text: str) -> AttackTechnique:
    """Return the attack of a text such as `pgd steps=50`.

    Raises:
        PluginError: there is no technique of this name.
        ParameterError: it is no attack of single images, or has wrong parameters.
    """
    return from_text(
        text,
        AttackTechnique,  # type: ignore[type-abstract]
        purpose="only attacks of single images are judged",
        parameter="attacks",
    )


def at_radius(attack: AttackTechnique, epsilon: float) -> AttackTechnique:
    """Return the attack with another radius."""
    return type(attack)(**{**dict(attack), "epsilon": epsilon})


def subjects_of(
    model: HookedModel, defences: Sequence[Chain], others: Sequence[str | HookedModel]
) -> list[Subject]:
    """Return the model, the model behind each defence, and the other models.

    Raises:
        ParameterError: a defence is none, or is given twice.
        ModelError: another model has other classes, or is given twice.
    """
    found = [Subject(model.id, model, "model")]
    for chain in defences:
        parts = chain.split(" + ") if isinstance(chain, str) else chain
        listed = [parts] if isinstance(parts, Defence) else list(parts)
        defended = model.defended([*model.defences, *listed])
        added = defended.defences[len(model.defences) :]
        if not added:
            raise ParameterError("a defence is empty: name it, as in 'jpeg'", parameter="defences")
        found.append(Subject(" + ".join(map(settings_text, added)), defended, "defended"))
    for other in others:
        loaded = load_model(other, device=model.device) if isinstance(other, str) else other
        if loaded.num_classes != model.num_classes:
            raise ModelError(
                f"{loaded.id} has {loaded.num_classes} classes, {model.id} {model.num_classes}: "
                "attacks are only transferred between models of the same classes"
            )
        known = (model.classes, loaded.classes)
        index = None if known[0] is None or known[1] is None else known[0].differs_at(known[1])
        if index is not None:
            raise ModelError(
                f"class {index} of {loaded.id} is {loaded.class_name(index)!r}, and of {model.id} "
                f"{model.class_name(index)!r}: attacks are only transferred between models of the "
                "same classes"
            )
        found.append(Subject(loaded.id, loaded, "other"))
    names = [subject.name for subject in found]
    for name in names:
        if names.count(name) > 1:
            raise ParameterError(f"{name} is given twice", parameter="defences")
    return found


def planned_runs(
    attacks: Mapping[str, AttackTechnique],
    radii: Mapping[Norm, Sequence[float]],
    subjects: Sequence[Subject],
) -> list[Run]:
    """Return what the user asked for: every attack at every radius, on every model.

    An attack of least norm runs once. So does one with a radius of its own.
    """
    runs: list[Run] = []
    for label, attack in attacks.items():
        once = attack.kind == "minimum" or attack.epsilon is not None
        variants = [attack] if once else [at_radius(attack, each) for each in radii[attack.norm]]
        for variant in variants:
            runs += [
                Run(label, variant, source, targets_of(source, subjects))
                for source in range(len(subjects))
            ]
    return runs


def targets_of(source: int, subjects: Sequence[Subject]) -> tuple[int, ...]:
    """Return where the images of an attack are judged: on its own model first, then on others.

    What is made on the bare model is judged on the defended ones and on other models; what is made
    on another model is judged on all.
    """
    if subjects[source].role == "defended":
        return (source,)
    return (source, *(place for place in range(len(subjects)) if place != source))
