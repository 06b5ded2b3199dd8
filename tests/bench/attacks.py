"""Benchmarks of attacks beside foolbox, torchattacks and adv-lib: the same images, steps and radii.

The peers get a frozen model and run in the same process. Each pair is measured twice: CPU seconds,
and forward passes per image. `stop_when_fooled` is what attacks of fixed radius of the peers do not
have. A peer that is not installed is left out with a line.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Iterator
from time import process_time
from typing import Any

from tests.bench.pairs import Pair, Work, compare
from tests.digits.load import digits_read_right
from torch import Tensor, nn

from timmscope import HookedModel, load_model, technique

RUNS = 2
DIGITS, STEPS = 50, 50


def attacks() -> Iterator[Pair]:
    """Measure attacks of a photograph's network and of a network of digits."""
    foolbox = peer("foolbox")
    if foolbox is not None:
        yield from _photographs(foolbox)
    model, images, labels = digits_read_right("standard", DIGITS)
    for name, ours, settings, theirs in _digits(model, images, labels, foolbox):
        run = technique(ours)(**settings)
        stops = ", stopping" if "stop_when_fooled" in settings else ""
        yield from _measured(
            f"{ours} digits", model.module, len(images),
            (f"timmscope{stops}", lambda run=run: run(model, images, labels.tolist())),
            (name, theirs),
        )  # fmt: skip


def peer(name: str) -> Any:
    """Import a peer; None, with a line on stderr, where it is not installed."""
    sys.modules.setdefault("visdom", types.ModuleType("visdom"))  # adv-lib only imports it
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"attacks: not beside {name}, which cannot be imported: {error}", file=sys.stderr)
        return None


def _photographs(foolbox: Any) -> Iterator[Pair]:
    """PGD on photographs, with and without stopping at the first step that fools the model."""
    model = load_model("pip:efficientnet-lite0")
    theirs = foolbox.PyTorchModel(model.as_module(), bounds=(0, 1), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images, labels = foolbox.samples(theirs, dataset="imagenet", batchsize=20)
    right = model(images).argmax(1) == labels
    images, labels = images[right][:4], labels[right][:4]
    steps, size, epsilon = 10, 0.25 / 255, 1 / 255
    attack = foolbox.attacks.LinfPGD(steps=steps, abs_stepsize=size, random_start=False)
    for how, settings in (("timmscope", {}), ("timmscope, stopping", {"stop_when_fooled": True})):
        ours = technique("pgd")(
            epsilon=epsilon, step_size=size, steps=steps, random_start=False, **settings
        )
        yield from _measured(
            "pgd efficientnet-lite0, 1/255", model.module, len(images),
            (how, lambda ours=ours: ours(model, images, labels)),
            ("foolbox", lambda: attack(theirs, images, labels, epsilons=epsilon)),
        )  # fmt: skip


Case = tuple[str, str, dict[str, Any], Work]
"""Name of the peer, name and parameters of our technique, and what the peer does."""


def _digits(model: HookedModel, images: Tensor, labels: Tensor, foolbox: Any) -> Iterator[Case]:
    """Attacks of digits by each peer that is installed."""
    module = model.as_module()
    pgd = {"epsilon": 0.1, "step_size": 0.01, "steps": STEPS, "random_start": False}
    searched = {"steps": STEPS, "searches": 9}
    if foolbox is not None:
        wrapped, kinds = foolbox.PyTorchModel(module, bounds=(0, 1), device="cpu"), foolbox.attacks
        for ours, settings, attack in (
            (
                "carlini-wagner",
                searched,
                kinds.L2CarliniWagnerAttack(binary_search_steps=9, steps=STEPS),
            ),
            ("ddn", {"steps": STEPS}, kinds.DDNAttack(steps=STEPS)),
            ("fmn", {"steps": STEPS, "norm": "linf"}, kinds.LInfFMNAttack(steps=STEPS)),
            ("deepfool", {}, kinds.L2DeepFoolAttack(steps=50, candidates=10)),
        ):
            yield (
                "foolbox", ours, settings,
                lambda attack=attack: attack(wrapped, images, labels, epsilons=None),
            )  # fmt: skip
    torchattacks = peer("torchattacks")
    if torchattacks is not None:
        theirs = torchattacks.PGD(module, eps=0.1, alpha=0.01, steps=STEPS, random_start=False)
        for settings in (pgd, {**pgd, "stop_when_fooled": True}):
            yield "torchattacks", "pgd", settings, lambda: theirs(images, labels)
    adv_lib = peer("adv_lib.attacks")
    if adv_lib is not None:
        yield (
            "adv-lib", "carlini-wagner", searched,
            lambda: adv_lib.carlini_wagner_l2(module, images, labels, max_iterations=STEPS),
        )  # fmt: skip
        yield (
            "adv-lib", "ddn", {"steps": STEPS},
            lambda: adv_lib.ddn(module, images, labels, steps=STEPS),
        )  # fmt: skip


def _measured(
    name: str, module: nn.Module, images: int, ours: tuple[str, Work], theirs: tuple[str, Work]
) -> Iterator[Pair]:
    """CPU seconds of both, and the forward passes of each per image."""
    yield compare(f"{name}, CPU", ours, theirs, runs=RUNS, clock=process_time)
    passes = [_passes(module, work) / images for work in (ours[1], theirs[1])]
    yield Pair(
        name=f"{name}, forwards", ours=ours[0], theirs=theirs[0], ours_s=passes[0],
        theirs_s=passes[1], ratio=passes[0] / passes[1], runs=1, unit="per image",
    )  # fmt: skip


def _passes(module: nn.Module, work: Work) -> int:
    """Return the number of images that pass forwards through a module."""
    total = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal total
        total += len(inputs[0])

    handle = module.register_forward_pre_hook(count)
    try:
        work()
    finally:
        handle.remove()
    return total
