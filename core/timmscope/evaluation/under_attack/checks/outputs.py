"""Checks of what a model returns: 1 no chance, 2 logits, 12 no backward, 15 no batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from timmscope.draws import image_rows
from timmscope.evaluation.under_attack.checks.check import Check, not_applicable, passed
from timmscope.models import HookedModel
from timmscope.techniques.session import own_numbers

_PASSES = 5
_SPREAD = 1e-4
_APART = 1e-3
"""Largest difference, relative to the largest logit, that other kernels for one image may make."""


def measure_outputs(model: HookedModel, images: Tensor, seed: int) -> dict[str, Any]:
    """Run a model several times on the same images `(n, C, H, W)`, and one image at a time."""
    passes = []
    for number in range(_PASSES):
        with own_numbers(model, (seed + number) % 2**31), torch.no_grad():
            passes.append(model(images).double())
    logits = passes[0]
    scale = max(1.0, float(logits.abs().max()))
    spread = max(float((each - logits).abs().max()) for each in passes)
    sums = float((logits.sum(1) - 1).abs().max())
    alone = None
    if not model.hooks.is_random:
        singles = []
        for row in range(len(images)):
            with own_numbers(model, seed), image_rows([row]), torch.no_grad():
                singles.append(model(images[row : row + 1]).double())
        alone = float((torch.cat(singles) - logits).abs().max()) / scale
    return {
        "spread": spread / scale,
        "random_defence": model.has_random_defence,
        "smallest": float(logits.min()),
        "sum_off_one": sums,
        "backwards_inside": None if model.is_function else _backwards_inside(model, images, seed),
        "alone": alone,
        "images": len(images),
    }


def _backwards_inside(model: HookedModel, images: Tensor, seed: int) -> int:
    """Count the tensors that a backward reads while the model's forward runs."""
    read = 0

    def unpack(tensor: Tensor) -> Tensor:
        nonlocal read
        read += 1
        return tensor

    if any(defence.backward == "none" for defence in model.defences):
        model = model.defended(())
    with (
        own_numbers(model, seed),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack),
    ):
        outputs = model(images.detach().clone().requires_grad_())
        found = read
        del outputs
    return found


def judge_outputs(found: dict[str, Any]) -> list[Check]:
    """Return checks 1, 2, 12 and 15."""
    spread, images = found["spread"], found["images"]
    evidence = (
        f"logits of {images} images differ by at most {spread:.2g} of the largest over {_PASSES} "
        f"passes; {_SPREAD:g} is allowed"
    )
    if found["random_defence"]:
        evidence += "; its random defence is known, and attacks average over draws of it"
    checks = [passed(1, spread <= _SPREAD, evidence, {"spread": spread})]
    sums, smallest = found["sum_off_one"], found["smallest"]
    probabilities = smallest >= -1e-6 and sums < 1e-3
    shown = (
        f"no output is below 0, and their sums differ from 1 by at most {sums:.1g}"
        if probabilities
        else f"the smallest output is {smallest:.3g}, and sums differ from 1 by up to {sums:.3g}"
    )
    values = {"smallest": smallest, "sum_off_one": sums}
    checks.append(passed(2, not probabilities, shown, values))
    inside = found["backwards_inside"]
    if inside is None:
        checks.append(not_applicable(12, "the inside of a prediction function is unknown"))
    else:
        shown = (
            f"a backward reads {inside} tensors while the forward runs"
            if inside
            else "no backward runs inside the forward"
        )
        checks.append(passed(12, not inside, shown, {"tensors": inside}))
    if found["alone"] is None:
        checks.append(not_applicable(15, "the model draws random numbers of its own"))
    else:
        shown = (
            f"logits of {images} images alone differ by at most {found['alone']:.2g} of the "
            f"largest from those in a batch; {_APART:g} is allowed"
        )
        checks.append(passed(15, found["alone"] <= _APART, shown, {"difference": found["alone"]}))
    return checks
