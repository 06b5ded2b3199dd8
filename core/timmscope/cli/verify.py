"""``timmscope verify`` reports the damaged files of a store and repairs them."""

from __future__ import annotations

from timmscope.cli import output, parameters
from timmscope.cli.text import plain_help


@plain_help
def verify(
    store: parameters.StorePath,
    /,
    *,
    repair: parameters.Flag = False,
    images: str | None = None,
    device: str | None = None,
    json: parameters.Json = False,
) -> None:
    """Check every shard and index by checksum and by reading it; exit status 2 if one is damaged.

    Parameters
    ----------
    repair
        Mine damaged and missing shards again and rebuild damaged indexes.
    images
        Where the images are now, if they have been moved; for --repair.
    device
        Where to run the model for --repair, as in ``cpu`` or ``cuda:0``.
    """
    from timmscope.mining import verify as verify_store
    from timmscope.store import Store, store_model

    opened = Store.open(store)
    model = store_model(opened, device=device) if repair and device else None
    report = verify_store(opened.path, repair=repair, model=model, images=images)
    if json:
        output.print_json(
            {
                "store": str(store),
                "ok": report.ok,
                "checked": report.checked,
                "damage": [vars(item) for item in report.damage],
                "missing_shards": list(report.missing),
                "repaired": list(report.repaired),
                "changed": list(report.changed),
            }
        )
    else:
        rows = [(item.file, item.reason, item.file in report.repaired) for item in report.damage]
        rows += [(f"shard {number}", "not mined yet", repair) for number in report.missing]
        if rows:
            output.table(("file", "problem", "repaired"), rows)
            output.say()
        for file in report.changed:
            output.say(f"{file} differs from the original: images or libraries have changed")
        checked = f"{report.checked} files checked"
        advice = "" if repair else f"; `timmscope verify {store} --repair` restores them"
        done = "repaired" if rows else "intact"
        output.say(f"{checked}: {done if report.ok else f'damaged{advice}'}")
    if not report.ok:
        raise SystemExit(2)
