"""Benchmarks of synthesis beside torch-lucent and Horama, at equal steps and on the same network.

CPU seconds are compared, and the score of the image without a view and what two models that took no
part say of it are printed. The bare loop is as many forward and backward passes of the same copy. A
peer that is not installed is left out with a line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from tests.bench.attacks import peer
from tests.bench.pairs import Pair, compare
from torch import Tensor

from timmscope import HookedModel, load_model, loop_model, technique
from timmscope.techniques.ascent.phase import falling_spectrum

STEPS, RUNS = 64, 3
CLASSES = (130, 281, 409, 609, 852, 963)
JUDGES = ("pip:efficientnet-lite1", "pip:efficientnet-lite2")


def synthesis() -> Iterator[Pair]:
    """Time a class image and a MACO image."""
    model = load_model("pip:efficientnet-lite0")
    ours: Any = technique("activation-maximization")(steps=STEPS)
    copy = loop_model(model, ["logits"], STEPS)

    def bare() -> None:
        images = torch.rand(1, *model.input_size).contiguous(memory_format=torch.channels_last)
        for _ in range(STEPS):
            leaf = images.clone().requires_grad_()
            copy(leaf)[0, CLASSES[0]].backward()

    name = f"activation-maximization, {STEPS} steps"
    run = ("timmscope", lambda: ours(model, CLASSES[0]))
    yield compare(name, run, ("bare passes", bare), runs=RUNS, clock=process_time)
    lucent = peer("lucent.optvis.render")
    if lucent is not None:
        theirs = ("torch-lucent", lambda: _lucent(lucent, model, CLASSES[0]))
        yield compare(name, run, theirs, runs=RUNS, clock=process_time)
        _beliefs("timmscope", model, lambda index: ours(model, index).images)
        _beliefs("torch-lucent", model, lambda index: _lucent(lucent, model, index))
    horama = peer("horama")
    if horama is not None:
        maco: Any = technique("maco")(steps=STEPS, crops=6, size=512)
        yield compare(
            f"maco, {STEPS} steps, 6 crops",
            ("timmscope", lambda: maco(model, CLASSES[0])),
            ("Horama", lambda: _horama(horama, model, CLASSES[0])),
            runs=1,
            clock=process_time,
        )


def _lucent(render: Any, model: HookedModel, index: int) -> Tensor:
    """A class image of torch-lucent's defaults at the model's size, `(1, 3, H, W)`."""
    from lucent.optvis import param

    made = render.render_vis(
        model.as_module(),
        lambda hook: -hook("labels")[:, index].mean(),
        param_f=lambda: param.image(model.input_size[1]),
        thresholds=(STEPS,),
        preprocess=False,
        progress=False,
        show_image=False,
        fixed_image_size=model.input_size[1],
    )
    return torch.from_numpy(made[-1]).permute(0, 3, 1, 2)


def _horama(horama: Any, model: HookedModel, index: int) -> object:
    """A MACO image with a spectrum that falls as 1/f, which its own file would hold."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        np.save("spectrum_decorrelated.npy", falling_spectrum((512, 512)).numpy())
        with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
            return horama.maco(
                lambda images: model(images.clamp(0, 1))[:, index].mean(),
                total_steps=STEPS,
                image_size=512,
                model_input_size=model.input_size[1],
                values_range=(0, 1),
                crops_per_iteration=6,
                device="cpu",
            )


def _beliefs(name: str, model: HookedModel, make: Any) -> None:
    """Print the mean logit of class images, and how many the judges name."""
    torch.manual_seed(0)
    images = torch.cat([make(index) for index in CLASSES])
    wanted = torch.tensor(CLASSES)
    named = []
    for other in JUDGES:
        judge = load_model(other)
        seen = torch.nn.functional.interpolate(
            images, judge.input_size[1:], mode="bicubic", antialias=True
        ).clamp(0, 1)
        with torch.no_grad():
            found = torch.cat([judge(one).argmax(1) for one in seen.split(1)])
        named.append(f"{int((found == wanted).sum())} of {len(CLASSES)} by {judge.id}")
    with torch.no_grad():
        logits = torch.cat([model(one) for one in images.split(1)])
    mean = float(logits[range(len(CLASSES)), wanted].mean())
    print(f"{name}: mean logit {mean:.1f}; named right: {', '.join(named)}", file=sys.stderr)
