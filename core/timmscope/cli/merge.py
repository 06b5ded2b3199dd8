"""``timmscope merge``: the parts of a pass, mined apart, become one store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from timmscope.cli import parameters
from timmscope.cli.mine import summarise, telling
from timmscope.cli.text import plain_help


@plain_help
def merge(
    *parts: Path,
    store: Annotated[Path, Parameter(name=["--output", "-o"])],
    json: parameters.Json = False,
) -> None:
    """Join the stores that ``timmscope mine --ranges i/n`` made to the store of one pass.

    Shards are hard links where the file system allows it, else copies. A merge that was
    interrupted goes on when the same command is given again.

    Parameters
    ----------
    parts
        Stores to join, in any order.
    store
        Folder to make, by custom ``NAME.scope``.
    """
    with telling(store):
        from timmscope.mining import merge as run

        made = run(parts, store)
    summarise(made, store, json=json)
