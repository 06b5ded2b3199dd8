"""Writes a result as one HTML page: what is left, curves, tables, checks with their evidence."""

from __future__ import annotations

import base64
import io
import math
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from timmscope.evaluation.under_attack.lines import (
    MARKS,
    Line,
    amount,
    check_counts,
    headline,
    lines,
    percent,
    shown_name,
)
from timmscope.evaluation.under_attack.radii import radius_text
from timmscope.evaluation.under_attack.result import Robustness
from timmscope.techniques.balls import NORM_NAMES


def report_page(result: Robustness) -> str:
    """Return the page, which needs no other file."""
    buffer = io.BytesIO()
    result.figure().savefig(buffer, format="png", dpi=150)
    facts = result.provenance
    return _template().render(
        result=result,
        figure=base64.b64encode(buffer.getvalue()).decode(),
        headlines=[headline(result, place) for place in range(len(result.models))],
        tables=[
            {
                "model": shown_name(result, place),
                "norm": NORM_NAMES[norm],
                "clean": _cell(percent(result.clean(place)), result.clean(place).value),
                "radii": [radius_text(radius, norm) for radius in result.epsilons[norm]],
                "lines": [_line(line) for line in found],
            }
            for place in range(len(result.models))
            for norm in result.norms
            if (found := lines(result, place, norm))
        ],
        checked=[
            {
                "model": shown_name(result, place),
                "counts": check_counts(result, place),
                "checks": [
                    check | {"mark": MARKS[check["status"]], "kind": check["status"].split()[0]}
                    for check in result.checks
                    if check["model"] == place
                ],
            }
            for place in dict.fromkeys(check["model"] for check in result.checks)
        ],
        facts={
            "model": facts.model,
            "images": len(result.images) - len(result.unreadable),
            "labels": result.labels_from,
            "seed": facts.seed,
            "weights": (facts.weights_sha256 or "unknown")[:16],
            "versions": ", ".join(f"{name} {version}" for name, version in facts.versions.items()),
        },
    )


def _line(line: Line) -> dict[str, Any]:
    return {
        "attack": line.attack,
        "how": line.how,
        "worst": line.kept is None,
        "cells": [
            _cell(percent(share), math.nan if share is None else share.value)
            for share in line.shares
        ],
        "kept": "" if line.kept is None else percent(line.kept),
        "forwards": "" if line.kept is None else amount(line.forwards),
        "backwards": "" if line.kept is None else amount(line.backwards),
        "queries": "" if line.kept is None else amount(line.queries),
        "stuck": line.stuck,
    }


def _cell(text: str, value: float) -> dict[str, Any]:
    return {"text": text, "width": 0 if math.isnan(value) else round(100 * value, 1)}


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("timmscope.evaluation.under_attack", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")
