"""Help and listings import neither torch nor any other slow package."""

import json
from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

HEAVY = {"torch", "timm", "torchvision", "numpy", "matplotlib", "h5py", "faiss", "pydantic", "PIL"}

Fresh = Callable[..., "CompletedProcess[str]"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        [],
        ["plugins"],
        ["plugins", "list", "--json"],
        ["doctor"],
        ["run"],
        ["run", "--help"],
        ["layers", "--help"],
        ["mine", "--help"],
        ["index", "--help"],
        ["index", "build", "--help"],
        ["search", "--help"],
        ["stats", "--help"],
        ["run", "no-such-technique"],
    ],
    ids=" ".join,
)
def test_listing_imports_nothing_heavy(fresh: Fresh, arguments: list[str]) -> None:
    done = fresh(
        "import json, sys\n"
        "from timmscope.cli import main\n"
        f"status = main({arguments!r})\n"
        "print('\\n', json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & HEAVY == set()


def test_importing_the_package_imports_nothing_heavy(fresh: Fresh) -> None:
    done = fresh(
        "import sys, timmscope; dir(timmscope); print(timmscope.__version__, *sys.modules)"
    )
    version, *modules = done.stdout.split()
    assert version[0].isdigit()
    assert set(modules) & HEAVY == set()


def test_reading_a_store_imports_no_models(fresh: Fresh) -> None:
    done = fresh(
        "import sys\n"
        "from timmscope import Collector, Store, UnitReport, VectorIndex, mine\n"
        "print(*sys.modules)"
    )
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & {"timm", "torchvision"} == set()
