"""A warning is printed with the name of the plugin that caused it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Cli = Callable[..., Any]

PLUGIN = '''
import warnings

from timmscope import AttributionTechnique, Collector, HookedModel
from timmscope.testing import tiny_model
from timmscope_registry import CollectorSpec, ModelSourceSpec, TechniqueSpec, hookimpl

class Loud(AttributionTechnique):
    """Warns in four ways."""

    def attribute(self, model, images, objective):
        warnings.warn("straight")
        warnings.warn("attributed to its caller", stacklevel=2)
        someone_elses(warnings.warn, "from a library")
        model.module.train()
        return images.sum(1)

class Count(Collector):
    name = "count"
    needs = ("max",)

    def update(self, batch):
        warnings.warn("counting")

    def merge(self, other):
        pass

    def state(self):
        return {}

    load = merge

def load(rest):
    warnings.warn("loading")
    return HookedModel(
        tiny_model("cnn").module, mean=(0, 0, 0), std=(1, 1, 1), input_size=(3, 32, 32),
        id="loud:x",
    )

library = {"__name__": "a_library"}
exec("def someone_elses(call, text): call(text)", library)
someone_elses = library["someone_elses"]

@hookimpl
def timmscope_techniques():
    yield TechniqueSpec(
        name="loud", family="attribution", summary="Warns.", impl=f"{__name__}:Loud"
    )

@hookimpl
def timmscope_collectors():
    yield CollectorSpec(name="count", summary="Warns.", impl=f"{__name__}:Count")

@hookimpl
def timmscope_model_sources():
    yield ModelSourceSpec(scheme="loud", summary="Warns.", impl=f"{__name__}:load")
'''


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """Return a folder with the plugin and a folder of one picture."""
    (tmp_path / "loud.py").write_text(PLUGIN)
    (tmp_path / "pictures").mkdir()
    Image.effect_noise((32, 32), 60).convert("RGB").save(tmp_path / "pictures" / "noise.png")
    return tmp_path


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("command", ["run loud loud:x", "compare loud:x --technique loud"])
def test_warnings_of_a_technique_name_its_plugin_and_timmscope_warnings_do_not(
    cli: Cli, work: Path, command: str
) -> None:
    did = cli("--plugin", "loud.py", *command.split(), work / "pictures" / "noise.png")
    assert did.status == 0, did.err
    printed = [line.removeprefix("timmscope: warning: ") for line in did.err.splitlines()]
    assert printed == [
        "loud.py: loading",
        "loud.py: straight",
        "loud.py: attributed to its caller",
        "loud.py: from a library",
        "technique 'loud' of loud.py changed the model's train mode; it was restored; fix loud.py",
    ]


@pytest.mark.filterwarnings("always")
def test_warnings_of_a_collector_name_its_plugin(cli: Cli, work: Path) -> None:
    did = cli(
        *("--plugin", "loud.py", "mine", "random:test_resnet?seed=0", "pictures", "-o", "x.scope"),
        *("--layer", "layer1", "--collector", "count", "--workers", 0),
    )
    assert did.status == 0, did.err
    assert "timmscope: warning: loud.py: counting" in did.err.splitlines()
