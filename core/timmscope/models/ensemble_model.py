"""Makes one model of several, whose logits are the mean of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from timmscope.models.classes import ClassNames
from timmscope.models.ensemble import Ensemble, Member
from timmscope.models.hooked_model import HookedModel
from timmscope.models.loading import member_text
from timmscope_registry import ModelError


def ensemble(models: Sequence[HookedModel]) -> HookedModel:
    """Make a model whose logits are the mean of several models' logits.

    The attribution of a logit is then the mean of the members' attributions, and an attack of the
    ensemble attacks the mean. Layers of the first member are called `0.NAME`, of the second
    `1.NAME` and so on; members that share a module share the layers of the first of them, whose
    second call is `0.NAME#1`. Pictures are preprocessed for the first member; members of another
    input size get the images scaled to it.

    Args:
        models: at least two classifiers with the same classes and channels; one module behind
            several defences counts as several.

    Raises:
        ModelError: there are fewer than two, or their classes or channels differ.
    """
    if len(models) < 2:
        raise ModelError(f"an ensemble of {len(models)} models: give at least two")
    first = models[0]
    names: ClassNames | None = None
    for each in models:
        if not each.num_classes or each.num_classes != first.num_classes:
            raise ModelError(
                f"members of an ensemble need the same classes: {first.id} has "
                f"{first.num_classes}, {each.id} {each.num_classes}"
            )
        if each.input_size[0] != first.input_size[0]:
            raise ModelError(
                f"members of an ensemble need the same channels: {first.id} takes "
                f"{first.input_size[0]}, {each.id} {each.input_size[0]}"
            )
        if each.classes is None:
            continue
        names = names or each.classes
        index = names.differs_at(each.classes)
        if index is not None:
            raise ModelError(
                f"members of an ensemble need the same classes: class {index} of {each.id} is "
                f"{each.classes.short(index)!r}, and {names.short(index)!r} before it"
            )
    members = [Member(each.module, each.preprocessing, each.defences) for each in models]
    channels = first.input_size[0]
    made = HookedModel(
        Ensemble(members, first.num_classes),
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        input_size=first.input_size,
        id="ensemble:" + "|".join(member_text(each.id) for each in models),
    )
    made.preprocessing = replace(first.preprocessing, mean=made.mean, std=made.std)
    made._given_classes = names
    return made
