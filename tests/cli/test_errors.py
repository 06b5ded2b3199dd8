"""Wrong input gives one line on stderr and exit status 2; a traceback only with --debug."""

import errno
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from timmscope.cli.main import explain
from timmscope_registry import StoreCorrupted

Cli = Callable[..., Any]
PROGRAM = [
    sys.executable,
    "-c",
    "import sys; from timmscope.cli import main; sys.exit(main())",
]
MODEL = "random:resnet18?seed=0&img_size=64"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    file = tmp_path / "grey.png"
    Image.new("RGB", (64, 64), (90, 120, 200)).save(file)
    return file


def refuse(outcome: Any, *words: str) -> None:
    """Assert exit status 2 and exactly one line on stderr with these words."""
    assert outcome.status == 2
    lines = outcome.err.splitlines()
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith("timmscope: error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["layrs"], ['unknown command "layrs"', 'Did you mean "layers"?']),
        (["layers"], ["MODEL is missing", "`timmscope layers --help`"]),
        (["layers", "a", "b"], ["too many arguments: 'b'"]),
        (["layers", "a", "--alll"], ["--alll", "Did you mean --all?"]),
        (["mine", "a", "b", "-o", "c", "--top-k", "x"], ['"x" into int']),
        (["mine", "a", "b"], ["--output is missing"]),
        (["mine", "a", "b", "-o"], ["-o requires an argument"]),
        (["run", "grad-kam", "m"], ["unknown technique 'grad-kam': did you mean 'grad-cam'"]),
        (["run", "--seed", "1", "pgd"], ["the technique comes before its flags"]),
        (["plugins", "remove"], ["remove"]),
        (["--plugin", "none.py", "plugins"], ["plugin file none.py does not exist"]),
        (["layers", "random:resnet19"], ["resnet19", "did you mean resnet18"]),
        (["layers", "rendom:resnet18"], ["rendom", "did you mean random:resnet18?"]),
        (["verify", "none.scope"], ["none.scope: not a store"]),
        (["top", "none.scope", "layer1", "0"], ["none.scope: not a store"]),
        (["search", "none.scope", "x.png"], ["none.scope: not a store"]),
        (["mine", MODEL, "nowhere", "-o", "s.scope"], ["nowhere: no such file or folder"]),
        (["run", "grad-cam", MODEL], ["no image given"]),
        (["run", "grad-cam", MODEL, "x.png"], ["x.png"]),
        (["run", "grad-cam", MODEL, "--layr", "x"], ["--layr", "Did you mean --layer?"]),
        (["run", "activation-maximization", MODEL], ["error: --target is missing"]),
        (["run", "pgd", MODEL, "x.png", "--steps", "0"], ["steps", "greater than or equal to 1"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_gives_one_line_and_status_2(
    cli: Cli, arguments: list[str], words: list[str]
) -> None:
    outcome = cli(*arguments)
    refuse(outcome, *words)
    assert outcome.out == ""


def test_mismatched_numbers_of_flags_and_images_give_one_line(cli: Cli, picture: Path) -> None:
    labels = ["--label", "1"] * 2
    refuse(cli("run", "pgd", MODEL, *[picture] * 3, *labels), "2 labels for 3 images: give one")
    weights = ["--style", picture, "--weight", "1", "--weight", "2"]
    refuse(cli("run", "neural-style", MODEL, *weights), "2 weights for 1 style images: give one")


def test_debug_shows_the_traceback_as_well(cli: Cli) -> None:
    outcome = cli("run", "grad-kam", "--debug")
    assert outcome.status == 2
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("timmscope: error: unknown technique")


def test_a_blocked_technique_is_unknown(cli: Cli) -> None:
    refuse(cli("--block", "attribution", "run", "grad-cam", "m"), "unknown technique 'grad-cam'")


def test_a_broken_plugin_file_gives_one_line_that_names_doctor(cli: Cli, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    refuse(cli("--plugin", broken, "layers", MODEL), "ZeroDivisionError", "doctor")
    doctor = cli("--plugin", broken, "doctor")
    assert doctor.status == 2
    assert "1 / 0" in doctor.out
    assert "what to do: fix" in doctor.out
    plugins = cli("--plugin", broken, "plugins")
    assert plugins.status == 0
    assert "failed" in plugins.out
    assert "1 problem: see `timmscope doctor`" in plugins.out


def test_a_plugin_that_exits_the_process_gives_one_line(cli: Cli, tmp_path: Path) -> None:
    quitter = tmp_path / "quitter.py"
    quitter.write_text("import sys; sys.exit(0)\n")
    refuse(cli("--plugin", quitter, "layers", MODEL), "it calls sys.exit(0)")


@pytest.mark.parametrize("name", ["seed", "output", "help", "batch_size", "model"])
def test_a_field_named_like_a_flag_of_the_command_is_an_error_of_the_plugin(
    cli: Cli, plugin: Path, name: str
) -> None:
    plugin.write_text(plugin.read_text().replace("power:", f"{name}:"))
    flag = f"--{name.replace('_', '-')}"
    refuse(cli("--plugin", plugin, "run", "contrast", "--help"), "of contrast.py", flag, "rename")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "int | None = Field(default=None",
            "int = Field(default='x'",
            "default for --steps that does not match its type",
        ),
        ("mean = images", "open('/no/file')  #", "in contrast.py, line 28: FileNotFoundError: "),
        (
            "    def attribute",
            "    async def attribute",
            "has an async attribute; expected a plain method; fix contrast.py",
        ),
        ("norm: Literal", "Power: int = 1\n    norm: Literal", "named like --power; its"),
    ],
)
def test_errors_in_a_plugin_name_the_plugin(
    cli: Cli, plugin: Path, picture: Path, old: str, new: str, words: str
) -> None:
    plugin.write_text(plugin.read_text().replace(old, new))
    refuse(cli("--plugin", plugin, "run", "contrast", MODEL, picture), "contrast.py", words)


def test_a_wrong_part_of_a_parameter_is_not_reported_as_a_wrong_default(
    cli: Cli, plugin: Path, picture: Path
) -> None:
    text = plugin.read_text().replace("power: float = Field(default=1.0, gt=0, le=4)", "p: P = P()")
    parts = "from pydantic import BaseModel\nclass P(BaseModel):\n    k: int = Field(3, ge=1)\n"
    plugin.write_text(text.replace("class Contrast", parts + "class Contrast"))
    outcome = cli("--plugin", plugin, "run", "contrast", MODEL, picture, "--p.k", "0")
    refuse(outcome, "error: --p.k is '0': Input should be greater than or equal to 1")


def test_an_exception_without_a_readable_message_is_reported_by_its_type(
    cli: Cli, plugin: Path, picture: Path
) -> None:
    mute = "class Mute(Exception):\n    def __str__(self): return 1 / 0\nclass Contrast"
    text = plugin.read_text().replace("class Contrast", mute)
    plugin.write_text(text.replace("mean = images", "raise Mute  #"))
    outcome = cli("--plugin", plugin, "run", "contrast", MODEL, picture)
    assert outcome.status == 1
    assert "error: contrast.py failed in contrast.py, line 30: Mute; tell" in outcome.err


def test_a_tensor_parameter_is_accepted_but_cannot_be_saved_in_a_result(
    cli: Cli, plugin: Path, picture: Path
) -> None:
    field = "    model_config = {'arbitrary_types_allowed': True}\n    power: torch.Tensor = Field"
    text = plugin.read_text().replace("default=1.0, gt=0, le=4", "default=torch.ones(3)")
    plugin.write_text("import torch\n" + text.replace("    power: float = Field", field))
    assert "--power" in cli("--plugin", plugin, "run", "contrast", "--help").out
    outcome = cli("--plugin", plugin, "run", "contrast", MODEL, picture)
    refuse(outcome, "'contrast' of contrast.py has parameters that cannot be recorded as JSON")


def test_a_plugin_file_without_a_valid_spec_is_refused_with_the_reason(
    cli: Cli, plugin: Path
) -> None:
    plugin.write_text(plugin.read_text().replace('name="contrast"', 'name="Contrast 🎈"'))
    refuse(
        cli("--plugin", plugin, "run", "contrast"),
        "contrast.py cannot be used",
        "joined by hyphens",
    )


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), 2, "out/x: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (MemoryError(), 2, "out of memory"),
        (StoreCorrupted("shards/0.h5: 3 bytes", shard="shards/0.h5"), 2, "shards/0.h5: 3 bytes"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (ValueError("oh"), 1, "internal error: ValueError: oh; run again with --debug"),
    ],
)
def test_every_error_has_a_status_and_one_line(
    error: BaseException, status: int, line: str
) -> None:
    found, text = explain(error)
    assert found == status
    assert line in text


def test_a_full_disk_gives_one_line(cli: Cli) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, "plugins", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr == "timmscope: error: No space left on device\n"
    assert done.returncode == 2


def test_ctrl_c_gives_one_line_and_status_130(tmp_path: Path) -> None:
    slow = tmp_path / "slow.py"
    started = tmp_path / "started"
    slow.write_text(f"import time; open({str(started)!r}, 'w').close(); time.sleep(600)\n")
    process = subprocess.Popen(
        [*PROGRAM, "--plugin", str(slow), "plugins"],
        stderr=subprocess.PIPE,
        text=True,
    )
    while not started.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 130
    assert errors == "timmscope: interrupted while loading the plugin slow.py\n"


def test_a_closed_pipe_is_not_an_error() -> None:
    done = subprocess.run(
        f"{shlex.join(PROGRAM)} plugins --json | head -c 10",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


@pytest.mark.parametrize("words", ["--help", "run", "doctor --json"])
def test_output_that_nobody_reads_is_not_an_error(words: str) -> None:
    done = subprocess.run(
        f"{shlex.join(PROGRAM)} {words} | true",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""


def test_a_number_that_is_not_whole_is_refused(cli: Cli, picture: Path) -> None:
    refuse(cli("search", "s.scope", "--row", "1.5"), "--row: 1.5 is not a whole number")
    refuse(
        cli("run", "smooth-grad", MODEL, picture, "--samples", "2.5"),
        "--samples: 2.5 is not a whole number",
    )
    refuse(cli("search", "s.scope", "--row", "2.0"), "s.scope")  # 2 as it is


def test_a_file_may_begin_with_a_minus(cli: Cli, picture: Path) -> None:
    picture.rename(picture.with_name("-x.png"))
    refuse(cli("run", "saliency", MODEL, "-x.png"), "put -- before a file")
    refuse(cli("run", "saliency", MODEL, "--", "-y.png", "--debug"), "-y.png: no such file")
    done = cli("run", "saliency", MODEL, "-t", "-class:3", "-o", "out", "--", "-x.png")
    assert done.status == 0, done.err
