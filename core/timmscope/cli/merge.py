"""``timmscope merge`` merges the stores of the parts of one pass into one store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import parameters
from timmscope.cli.mine import mining_messages, summarise
from timmscope.cli.text import plain_help


@plain_help
def merge(
    *parts: Path,
    store: Annotated[Path, Parameter(name=["--output", "-o"])],
    json: parameters.Json = False,
) -> None:
    """Merge the stores that ``timmscope mine --ranges i/n`` wrote into the store of one pass.

    Shards are hard links where the file system allows it, else copies. After an interruption, run
    the same command again to resume.

    Parameters
    ----------
    parts
        Stores to merge, in any order.
    store
        Folder of the new store, by convention ``NAME.scope``.
    """
    with mining_messages(store):
        from timmscope.mining import merge as run

        made = run(parts, store)
    summarise(made, store, json=json)
