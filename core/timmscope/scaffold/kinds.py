"""A table of the kinds of plugins: what the templates insert for each kind."""

from __future__ import annotations

from dataclasses import dataclass, field

from timmscope_registry import BASES


@dataclass(frozen=True)
class Kind:
    """One kind of plugin.

    In all texts `{cls}`, `{name}`, `{package}` and `{slug}` stand for the plugin's own names.

    Attributes:
        spec: name of the spec class.
        hook: name of the hook.
        summary: one line about the example.
        command: command that runs the example.
        test: a test of a value that the example computes, as Python.
        implementation: name in the import string, after the colon.
        name_field: name of the spec's field for the name.
        fields: further fields of the spec, as Python.
        arguments: further arguments of `conformance`, as Python.
        imports: import lines of the test file.
    """

    spec: str
    hook: str
    summary: str
    command: str
    test: str
    implementation: str = "{cls}"
    name_field: str = "name"
    fields: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    imports: tuple[str, ...] = field(default=("from timmscope.testing import conformance",))


def _technique(
    base: str,
    summary: str,
    command: str,
    test: str,
    imports: str,
    *arguments: str,
    family: str = "",
) -> Kind:
    family = family or BASES[base][0]
    default = next(name for name, families in BASES.items() if family in families)
    return Kind(
        spec="TechniqueSpec",
        hook="timmscope_techniques",
        summary=summary,
        command=f"timmscope run {{name}} {command}",
        fields=(f'family="{family}"', *([f'base="{base}"'] if base != default else [])),
        arguments=arguments,
        imports=tuple(imports.strip().splitlines()),
        test=test,
    )


KINDS = {
    "attribution": _technique(
        "attribution",
        "Gradient times input.",
        "pip:efficientnet-lite0 cat.jpg --target top",
        """def test_black_pixels_contribute_nothing() -> None:
    images = tiny_images(1)
    images[:, :, :8] = 0
    maps = technique("{name}")()(tiny_model(), images, "class:3").maps
    assert maps[:, :8].abs().max() == 0
    assert maps[:, 8:].abs().max() > 0""",
        """
from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
""",
    ),
    "synthesis": _technique(
        "synthesis",
        "Gradient ascent by sign steps.",
        "pip:efficientnet-lite0 --target 'tiger cat'",
        """def test_the_score_rises() -> None:
    result = technique("{name}")(steps=8)(tiny_model(), "class:3")
    assert result.final_scores[0] > result.scores[0, 0]""",
        """
from timmscope import technique
from timmscope.testing import conformance, tiny_model
""",
        'parameters={"steps": 3}',
    ),
    "attack": _technique(
        "attack",
        "Random noise of a fixed size.",
        "pip:efficientnet-lite0 cat.jpg",
        """def test_every_value_changes_by_epsilon() -> None:
    images = tiny_images(2) * 0.5 + 0.25  # no value is so near to 0 or 1 that it is clipped
    change = (technique("{name}")(epsilon=0.01)(tiny_model(), images).images - images).abs()
    assert abs(float(change.max()) - 0.01) < 1e-6
    assert abs(float(change.min()) - 0.01) < 1e-6""",
        """
from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
""",
    ),
    "universal-attack": _technique(
        "universal-attack",
        "The mean direction that fools single images.",
        "pip:efficientnet-lite0 photos/",
        """def test_every_value_is_plus_or_minus_epsilon() -> None:
    attack = technique("{name}")(epsilon=0.02)
    result = attack(tiny_model(), tiny_images(12), held_out=0.5)
    assert result.perturbation.abs().max() <= 0.02
    assert result.held_out.sum() == 6
    assert result.apply(tiny_images(1)).shape == (1, 3, 32, 32)""",
        """
from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
""",
    ),
    "defence": _technique(
        "defence",
        "Fewer levels of each colour.",
        "pip:efficientnet-lite0 cat.jpg",
        """def test_every_value_is_one_of_the_levels() -> None:
    images = tiny_images(2)
    seen = technique("{name}")(levels=5)(tiny_model(), images).images
    assert (seen * 4 - (seen * 4).round()).abs().max() < 1e-6
    assert (seen - images).abs().max() <= 1 / 8 + 1e-6""",
        """
from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
""",
    ),
    "certification": _technique(
        "certification",
        "The margin of the logits as a radius.",
        "pip:efficientnet-lite0 cat.jpg --lipschitz 100",
        """def test_the_radius_is_the_margin_over_the_constant() -> None:
    model, images = tiny_model(), tiny_images(2)
    result = technique("{name}")(lipschitz=4.0)(model, images)
    first, second = model(images).topk(2).values.unbind(1)
    assert torch.allclose(result.radius, ((first - second) / (4 * 2**0.5)).double())
    assert result.global_bound == 4.0""",
        """
import torch
from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
""",
        'parameters={"lipschitz": 4.0}',
    ),
    "style": _technique(
        "style",
        "The colours of one picture on another.",
        "pip:efficientnet-lite0 content.jpg --style painting.jpg",
        """def test_the_result_has_the_styles_mean_colour() -> None:
    content, style = tiny_images(2).split(1)
    result = technique("{name}")()(tiny_model(), content, style)
    assert (result.images.mean((2, 3)) - style.mean((2, 3))).abs().max() < 0.02
    assert result.losses[0, -1] < result.losses[0, 0]""",
        """
from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
""",
    ),
    "store": _technique(
        "store",
        "Units with the highest mean.",
        "demo.scope --layer blocks.4",
        """def test_units_are_ranked_by_their_mean() -> None:
    rows = np.array([[0.0, 4.0, 1.0], [2.0, 0.0, 3.0]])
    table = technique("{name}")(count=2)(rows)
    assert [row["unit"] for row in table.rows] == [1, 2]
    assert [row["mean"] for row in table.rows] == [2.0, 2.0]
    assert [row["largest"] for row in table.rows] == [4.0, 3.0]""",
        """
import numpy as np
from timmscope import technique
from timmscope.testing import conformance
""",
    ),
    "stores": _technique(
        "stores",
        "Length of the mean row of each layer.",
        "demo.scope",
        """def test_the_length_of_the_mean_row() -> None:
    rows = np.array([[0.0, 6.0], [6.0, 2.0]])  # the mean is (3, 4)
    table = technique("{name}")()([rows, 2 * rows])
    assert [row["length"] for row in table.rows] == [5.0, 10.0]""",
        """
import numpy as np
from timmscope import technique
from timmscope.testing import conformance
""",
    ),
    "model": _technique(
        "model",
        "Weights with the largest norm.",
        "pip:efficientnet-lite0",
        """def test_the_weight_with_the_largest_norm_comes_first() -> None:
    model = tiny_model()
    norms = {{name: float(weight.norm()) for name, weight in model.module.named_parameters()}}
    (row,) = technique("{name}")(count=1)(model).rows
    assert row["norm"] == max(norms.values()) == norms[row["weight"]]""",
        """
from timmscope import technique
from timmscope.testing import conformance, tiny_model
""",
    ),
    "training": _technique(
        "training",
        "Training with softened labels.",
        "random:resnet18?num_classes=10 photos -o trained",
        """def test_the_loss_falls_and_the_card_makes_the_network_again(tmp_path: Path) -> None:
    labels = np.arange(24) % 3
    pixels = (tiny_images(24) * 255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "photos.npz", images=pixels, labels=labels)
    training = technique("{name}")(epochs=8, batch_size=8, learning_rate=0.01)
    result = training(tiny_model(), tmp_path / "photos.npz", output=tmp_path / "trained")
    assert result.losses[-1, 0] < result.losses[0, 0]
    assert result.model(tiny_model()).num_classes == 10""",
        """
from pathlib import Path

import numpy as np
from timmscope import technique
from timmscope.testing import conformance, tiny_images, tiny_model
""",
        'parameters={"epochs": 2, "batch_size": 8}',
        family="defence",
    ),
    "collector": Kind(
        spec="CollectorSpec",
        hook="timmscope_collectors",
        summary="How often each unit is the strongest.",
        command="timmscope mine pip:efficientnet-lite0 photos --collector {name} -o photos.scope",
        arguments=('kind="collector"',),
        imports=(
            "import numpy as np",
            "from timmscope import LayerBatch",
            "from timmscope.testing import conformance",
            "from {package}.{slug} import {cls}",
        ),
        test="""def test_the_strongest_unit_of_each_image_is_counted() -> None:
    rows = np.array([[1.0, 2.0], [3.0, 0.0], [5.0, 5.0]], np.float32)
    collector = {cls}()
    collector.update(LayerBatch(layer="x", ids=np.arange(3), rows={{"max": rows}}))
    assert collector.state()["wins"].tolist() == [2, 1]""",
    ),
    "model-source": Kind(
        spec="ModelSourceSpec",
        hook="timmscope_model_sources",
        summary="Networks of random filters.",
        command="timmscope layers {name}:small",
        implementation="load",
        name_field="scheme",
        fields=('example="{name}:small"',),
        arguments=('kind="model source"',),
        imports=(
            "from timmscope import load_model",
            "from timmscope.testing import conformance",
        ),
        test="""def test_the_sizes_have_8_and_32_filters() -> None:
    models = [load_model(f"{name}:{{size}}") for size in ("small", "large")]
    assert [model.layers["0"].channels for model in models] == [8, 32]""",
    ),
    "image-source": Kind(
        spec="ImageSourceSpec",
        hook="timmscope_image_sources",
        summary="The frames of an animated file.",
        command="timmscope mine pip:efficientnet-lite0 {name}:film.gif -o film.scope",
        name_field="scheme",
        fields=('example="{name}:film.gif"',),
        arguments=('kind="image source"', "make=film"),
        imports=(
            "from pathlib import Path",
            "",
            "from PIL import Image",
            "from timmscope import open_images",
            "from timmscope.testing import conformance",
            "",
            "",
            "def film(folder: Path) -> str:",
            '    """Write a file with a red, a green and a blue frame; returns its path."""',
            '    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]',
            '    frames[0].save(folder / "film.gif", save_all=True, append_images=frames[1:])',
            '    return str(folder / "film.gif")',
            "",
        ),
        test="""def test_frames_are_in_order(tmp_path: Path) -> None:
    source = open_images("{name}:" + film(tmp_path))
    colours = [source.load(number).getpixel((0, 0)) for number in range(len(source))]
    assert colours == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]""",
    ),
    "index-backend": Kind(
        spec="IndexBackendSpec",
        hook="timmscope_index_backends",
        summary="Exact search in a few lines of NumPy.",
        command="timmscope index build photos.scope blocks.4 --backend {name}",
        arguments=('kind="index backend"',),
        imports=(
            "import numpy as np",
            "from timmscope import BuildHints",
            "from timmscope.testing import conformance",
            "from {package}.{slug} import {cls}",
        ),
        test="""def test_the_nearest_row_comes_first() -> None:
    engine = {cls}(2, "l2", BuildHints())
    engine.add(np.array([[0, 0], [3, 4], [1, 0]], np.float32), np.array([7, 8, 9]))
    values, ids = engine.search(np.zeros((1, 2), np.float32), 3)
    assert ids.tolist() == [[7, 9, 8]]
    assert values.tolist() == [[0, 1, 5]]""",
    ),
}
