"""A plugin whose techniques, collectors and model source each break one promise."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator

from timmscope import (
    AttackTechnique,
    AttributionTechnique,
    Collector,
    HookedModel,
    ModelName,
    load_model,
)
from timmscope_registry import (
    CollectorSpec,
    ModelError,
    ModelSourceSpec,
    ParameterError,
    TechniqueSpec,
    hookimpl,
)

_hooks = []


class _Plain(AttributionTechnique):
    """Gradient times input."""

    def attribute(self, model, images, objective):
        score, gradient = model.gradient(images, objective)
        return (gradient * images).sum(1), score


class Good(_Plain):
    """Gradient times input, without a fault."""

    power: float = Field(default=1.0, gt=0)
    """Exponent."""


class LeavesAHook(_Plain):
    """Leaves a hook on the model."""

    def attribute(self, model, images, objective):
        model.module.register_forward_hook(lambda *a: None)
        return super().attribute(model, images, objective)


class SwitchesToEval(_Plain):
    """Leaves the model in eval mode."""

    def attribute(self, model, images, objective):
        model.module.eval()
        return super().attribute(model, images, objective)


class LeavesAHookWhenBroken(_Plain):
    """Removes its hook only if no error is raised."""

    def attribute(self, model, images, objective):
        handle = model.module.register_forward_hook(lambda *a: None)
        outcome = super().attribute(model, images, objective)
        handle.remove()
        return outcome


class SwallowsErrors(_Plain):
    """Returns a made-up result if the model raises."""

    def attribute(self, model, images, objective):
        try:
            return super().attribute(model, images, objective)
        except RuntimeError:
            return images.sum(1), torch.zeros(len(images))


class DrawsFromTheGlobalGenerator(_Plain):
    """Adds noise that the seed does not determine."""

    def attribute(self, model, images, objective):
        noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(len(_hooks)))
        _hooks.append(None)
        return super().attribute(model, (images + noise).clamp(0, 1), objective)


class DependsOnItsBatch(_Plain):
    """Divides by the largest value of the batch."""

    def attribute(self, model, images, objective):
        maps, score = super().attribute(model, images, objective)
        return maps / maps.abs().max(), score


class Undocumented(_Plain):
    factor: float = 1.0


class HasAFlagOfTheCommand(_Plain):
    """A field named like the command's own flag."""

    seed: int = 0
    """Not this one."""


class SwallowsCtrlC(_Plain):
    """Catches KeyboardInterrupt."""

    def attribute(self, model, images, objective):
        try:
            for _ in self.track(range(3)):
                pass
        except KeyboardInterrupt:
            pass
        return super().attribute(model, images, objective)


class ReportsAWrongTotal(_Plain):
    """Reports a total of ten steps and takes three."""

    def attribute(self, model, images, objective):
        for _ in self.track(range(3), total=10):
            pass
        return super().attribute(model, images, objective)


class ReturnsNan(_Plain):
    """Returns maps of NaN."""

    def attribute(self, model, images, objective):
        maps, score = super().attribute(model, images, objective)
        return maps * torch.nan, score


class RefusesInManyLines(_Plain):
    """Raises an error with a message of two lines."""

    def attribute(self, model, images, objective):
        raise ParameterError("first\nsecond", parameter="x")


class FailsOutOfBounds(_Plain):
    """Raises IndexError on models with tokens."""

    def attribute(self, model, images, objective):
        if "token" in model.id:
            raise IndexError("list index out of range")
        return super().attribute(model, images, objective)


class UnfreezesTheModel(_Plain):
    """Leaves the parameters requiring gradients."""

    def attribute(self, model, images, objective):
        model.module.requires_grad_(True)
        return super().attribute(model, images, objective)


class ConvertsTheModel(_Plain):
    """Leaves the model in float32."""

    def attribute(self, model, images, objective):
        model.module.float()
        return super().attribute(model, images, objective)


class ReplacesAForward(_Plain):
    """Changes the model once; later runs change nothing more."""

    def attribute(self, model, images, objective):
        model.module.tripwire.forward = model.module.tripwire.forward
        return super().attribute(model, images, objective)


class LeavesAHookOnAParameter(_Plain):
    """Leaves an autograd hook on a parameter."""

    def attribute(self, model, images, objective):
        weight = next(model.module.parameters())
        weight.register_post_accumulate_grad_hook(lambda weight: None)
        return super().attribute(model, images, objective)


class DrawsFromTorch(_Plain):
    """Adds noise from the global generator."""

    def attribute(self, model, images, objective):
        return super().attribute(model, (images + torch.rand_like(images)).clamp(0, 1), objective)


class DrawsFromPython(_Plain):
    """Draws a number and does not use it."""

    def attribute(self, model, images, objective):
        random.random()
        return super().attribute(model, images, objective)


class SeedsNumPy(_Plain):
    """Seeds the global generator, so that its result is always the same."""

    def attribute(self, model, images, objective):
        np.random.seed(0)  # noqa: NPY002
        noise = torch.from_numpy(np.random.rand(*images.shape)).float()  # noqa: NPY002
        return super().attribute(model, (images + noise).clamp(0, 1), objective)


class ChangesTheDefaultDevice(_Plain):
    """Changes a setting of the whole process."""

    def attribute(self, model, images, objective):
        outcome = super().attribute(model, images, objective)
        torch.set_default_device("meta")
        return outcome


class ChangesTheFolderWhenBroken(_Plain):
    """Restores the working directory only if no error is raised."""

    def attribute(self, model, images, objective):
        before = Path.cwd()
        os.chdir(before.parent)
        outcome = super().attribute(model, images, objective)
        os.chdir(before)
        return outcome


class KnowsOneNorm(AttackTechnique):
    """Declares all norms, but its change is one of L∞."""

    def perturb(self, model, images, goal):
        return (images + self.ball(images).epsilon).clamp(0, 1)


class KnowsOnlyTargets(AttackTechnique):
    """Reads the goal's targets, which not every goal has."""

    norm: Literal["linf"] = "linf"
    """Norm of the change."""

    def perturb(self, model, images, goal):
        if goal.objective is not None:
            return images - goal.targets.view(-1, 1, 1, 1)
        return images


_OTHER = "random:test_resnet?num_classes=10&img_size=32"


class LeavesAHookElsewhere(_Plain):
    """Leaves a hook on a further model."""

    helper: ModelName = _OTHER
    """A further model."""

    def attribute(self, model, images, objective):
        self.open_model(self.helper).module.register_forward_hook(lambda *a: None)
        return super().attribute(model, images, objective)


class OpensWhenMade(_Plain):
    """Opens what it names before a call."""

    helper: ModelName = _OTHER
    """A further model."""

    @model_validator(mode="after")
    def _opened(self):
        if isinstance(self.helper, str):
            load_model(self.helper)
        return self


TECHNIQUES = [
    LeavesAHookElsewhere,
    OpensWhenMade,
    KnowsOneNorm,
    KnowsOnlyTargets,
    DrawsFromTorch,
    DrawsFromPython,
    SeedsNumPy,
    Good,
    LeavesAHook,
    SwitchesToEval,
    LeavesAHookWhenBroken,
    SwallowsErrors,
    DrawsFromTheGlobalGenerator,
    DependsOnItsBatch,
    Undocumented,
    HasAFlagOfTheCommand,
    SwallowsCtrlC,
    ReportsAWrongTotal,
    ReturnsNan,
    RefusesInManyLines,
    FailsOutOfBounds,
    UnfreezesTheModel,
    ConvertsTheModel,
    ReplacesAForward,
    LeavesAHookOnAParameter,
    ChangesTheDefaultDevice,
    ChangesTheFolderWhenBroken,
]


class _Count(Collector):
    """Counts images."""

    name = "count"
    needs = ("pooled",)

    def __init__(self) -> None:
        self.seen = 0.0

    def update(self, batch):
        self.seen += len(batch.ids)

    def merge(self, other):
        self.seen += other.seen

    def state(self):
        return {"seen": np.array([self.seen])}

    def load(self, state):
        self.seen = float(state["seen"][0])


class GoodCount(_Count):
    """Counts images correctly."""

    name = "good-count"


class ForgetsWhenMerged(_Count):
    """Keeps only the other collector's count when merged."""

    name = "forgets-when-merged"

    def merge(self, other):
        self.seen = other.seen


class CountsBatches(_Count):
    """Counts batches instead of images."""

    name = "counts-batches"

    def update(self, batch):
        self.seen += 1


class WritesIntoRows(_Count):
    """Sorts the batch's rows in place."""

    name = "writes-into-rows"

    def update(self, batch):
        super().update(batch)
        batch.rows["pooled"].sort()


class LosesItsState(_Count):
    """Loads no state."""

    name = "loses-its-state"

    def load(self, state):
        pass


class SavesHalfOfItsState(_Count):
    """Computes a mean, but its state lacks the number of images."""

    name = "saves-half-of-its-state"

    def __init__(self):
        self.seen = self.sum = 0.0

    def update(self, batch):
        super().update(batch)
        self.sum += float(batch.rows["pooled"].sum())

    def merge(self, other):
        super().merge(other)
        self.sum += other.sum

    def state(self):
        return {"mean": np.array([self.sum / max(self.seen, 1)])}

    def load(self, state):
        self.seen, self.sum = 1.0, float(state["mean"][0])


COLLECTORS = [
    GoodCount,
    ForgetsWhenMerged,
    CountsBatches,
    WritesIntoRows,
    LosesItsState,
    SavesHalfOfItsState,
]


def another_each_time(rest):
    """Return a model with unseeded random weights."""
    if rest != "any":
        raise ModelError(f"there is no model {rest!r}")
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten())
    return HookedModel(module, mean=(0,) * 3, std=(1,) * 3, input_size=(3, 4, 4))


def slug(kind: type) -> str:
    """Return `LeavesAHook` as `leaves-a-hook`."""
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("-")


@hookimpl
def timmscope_techniques():
    for kind in TECHNIQUES:
        yield TechniqueSpec(
            name=slug(kind),
            family=kind.family,
            summary="Broken on purpose.",
            impl=f"{__name__}:{kind.__name__}",
        )


@hookimpl
def timmscope_collectors():
    for kind in COLLECTORS:
        yield CollectorSpec(
            name=kind.name, summary="Broken on purpose.", impl=f"{__name__}:{kind.__name__}"
        )


@hookimpl
def timmscope_model_sources():
    yield ModelSourceSpec(
        scheme="another-each-time",
        summary="Broken on purpose.",
        example="another-each-time:any",
        impl=f"{__name__}:another_each_time",
    )
