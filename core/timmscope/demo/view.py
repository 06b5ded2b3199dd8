"""What the page's template is given: plain values, pictures already as `data:` addresses."""

from __future__ import annotations

from dataclasses import dataclass, field

from timmscope.demo.cost import Cost


@dataclass(frozen=True)
class Picture:
    """A picture with its caption.

    Attributes:
        src: a `data:` address.
        caption: below it.
        detail: smaller, below that.
        title: what it shows, for readers who cannot see it.
        small: whether it has few pixels and should be enlarged without smoothing.
    """

    src: str
    caption: str = ""
    detail: str = ""
    title: str = ""
    small: bool = False


@dataclass(frozen=True)
class ColourBar:
    """What a map's colours mean: a CSS gradient and the values at its ends."""

    gradient: str
    low: str
    high: str


@dataclass(frozen=True)
class Bars:
    """Names with shares in [0, 1], most first."""

    rows: list[tuple[str, float]]


@dataclass(frozen=True)
class Curve:
    """A drawing, and its legend as names with colours."""

    svg: str
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Card:
    """One picture with the model's opinion of it."""

    picture: Picture
    bars: Bars


@dataclass(frozen=True)
class Strip:
    """A row of pictures with its label; `group` is a heading above it, where a new group begins."""

    label: str
    pictures: list[Picture]
    group: str = ""


@dataclass(frozen=True)
class Explained:
    """An image with its maps: each a picture of colours, its colour bar, and the overlay."""

    original: Picture
    maps: list[tuple[Picture, ColourBar, Picture]]


@dataclass(frozen=True)
class Attacked:
    """An image before and after an attack."""

    before: Card
    change: Picture
    after: Card
    verdict: str


@dataclass(frozen=True)
class Synthesised:
    """A picture made for a class, beside the real one that comes nearest."""

    made: Picture
    real: Picture
    curve: Curve


@dataclass(frozen=True)
class Stylised:
    """Content, style and result, with the course of the losses."""

    pictures: list[Picture]
    curve: Curve


@dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
        id: for links.
        title: heading.
        lead: what to see here, a sentence or two.
        python: lines that make it again.
        cli: the same for a shell; may be empty.
        note: small print, for example why something is missing.
        wide: a picture as wide as the page.
        page: a page to explore beside the report; may be empty.
        cards, strips, explained, synthesised, attacked, stylised: what it shows.
    """

    id: str
    title: str
    lead: str
    python: str
    cli: str = ""
    note: str = ""
    wide: Picture | None = None
    page: str = ""
    cards: list[Card] = field(default_factory=list)
    strips: list[Strip] = field(default_factory=list)
    explained: list[Explained] = field(default_factory=list)
    synthesised: list[Synthesised] = field(default_factory=list)
    attacked: list[Attacked] = field(default_factory=list)
    stylised: list[Stylised] = field(default_factory=list)


@dataclass(frozen=True)
class Page:
    """The whole report.

    Attributes:
        subtitle: one sentence on what this is.
        facts: names and values of model and data.
        setup: lines that the sections' Python lines build on.
        mined: the shell line that made the store.
        sections: in order.
        steps: what each step cost.
        total: what all of them cost.
        unreadable: name and reason of images that were skipped.
        made: date, versions and machine, one line.
    """

    subtitle: str
    facts: list[tuple[str, str]]
    setup: str
    mined: str
    sections: list[Section]
    steps: list[Cost]
    total: Cost
    unreadable: list[tuple[str, str]]
    made: str
