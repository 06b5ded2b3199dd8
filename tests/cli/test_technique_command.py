"""A technique's command has the arguments, types, defaults and help of its base's `__call__`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, final

import pytest
from cyclopts import App

from timmscope.cli import technique_command
from timmscope.cli.technique_command import command
from timmscope.techniques import Technique, arguments
from timmscope_registry import ParameterError

called: dict[str, Any] = {}


class Certification(Technique):
    """A family that the command line does not know."""

    family = "certification"
    radius: float = 0.5
    """How far."""

    @final
    def __call__(
        self,
        model: arguments.Model,
        images: arguments.Images,
        labels: arguments.Classes = None,
        *,
        background: arguments.Image = None,
        sigmas: Sequence[float] = (0.5, 1.0),
        count: int = 3,
        mode: Literal["fast", "exact"] = "fast",
        quiet: bool = False,
        held_out: arguments.HeldOut = 0.2,
        hook: object = None,
    ) -> object:
        """Certify.

        Args:
            model: the model.
            images: the images.
            labels: true class of all images
                or one for each; by default the prediction. Names or indices.
            background: what is behind. In Python an array as well.
            sigmas: widths of the noise, e.g. 0.5 of the range.
            count: how often.
            mode: how `thoroughly`.
            quiet: whether to say nothing.
            held_out: a share, or other images.
            hook: for Python alone.
        """
        called.update(locals())
        return called


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> App:
    called.clear()
    monkeypatch.setitem(
        technique_command.KINDS,
        "model",
        technique_command.KINDS["model"].__class__(
            str, technique_command.ONE, lambda text, device=None: (text, device), rank=1,
            extra_flags=technique_command.KINDS["model"].extra_flags, name="model",
        ),
    )  # fmt: skip
    monkeypatch.setattr(
        technique_command,
        "save_and_print",
        lambda result, folder, as_json: called.update(folder=folder),
    )
    app = App(name="certify", help_format="plaintext")
    app.default(command(Certification, "certify"))
    return app


def run(app: App, *tokens: str) -> dict[str, Any]:
    app(tokens, exit_on_error=False, print_error=False, result_action="return_value")
    return called


def test_a_new_family_needs_no_code_in_the_command_line(app: App) -> None:
    given = run(
        app, "resnet18", "a.png", "b.png", "--label", "cat", "--label", "7", "--device", "cpu",
        "--background", "grey.png", "--sigma", "0.1", "--sigma", "0.2", "--count", "5",
        "--mode", "exact", "--quiet", "--radius", "2",
    )  # fmt: skip
    assert given["self"] == Certification(radius=2)
    assert given["model"] == ("resnet18", "cpu")
    assert given["images"] == [Path("a.png"), Path("b.png")]
    assert given["labels"] == ["cat", 7]
    assert given["background"] == Path("grey.png")
    assert given["sigmas"] == (0.1, 0.2)
    assert (given["count"], given["mode"], given["quiet"]) == (5, "exact", True)
    assert given["hook"] is None
    assert given["folder"].name.endswith("-a")


def test_arguments_that_are_not_given_have_the_defaults_of_the_call(app: App) -> None:
    given = run(app, "resnet18", "a.png")
    assert given["labels"] is None
    assert given["background"] is None
    assert (given["sigmas"], given["count"], given["quiet"]) == ((0.5, 1.0), 3, False)
    assert given["held_out"] == 0.2
    assert run(app, "resnet18", "a.png", "--held-out", "0.4")["held_out"] == 0.4
    assert run(app, "resnet18", "a.png", "--held-out", "photos")["held_out"] == "photos"
    with pytest.raises(ParameterError, match="no image given: name at least one"):
        run(app, "resnet18")


def test_help_is_the_first_sentence_of_each_entry_under_args() -> None:
    about = {each.parameter.name: each.about for each in arguments.call_arguments(Certification)}
    assert about["labels"] == "True class of all images or one for each; by default the prediction."
    assert about["background"] == "What is behind."
    assert about["sigmas"] == "Widths of the noise, e.g. 0.5 of the range."
    assert about["mode"] == "How thoroughly."
    assert "hook" not in about
