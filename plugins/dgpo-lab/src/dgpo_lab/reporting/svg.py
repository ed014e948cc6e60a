"""Matplotlib figures as inline SVG that takes its colors and letters from the page around it.

Figures are drawn with the stand-in colors of `Ink`; in the SVG each becomes a CSS variable, so one figure serves light
and dark pages and print. One unit of a figure is one CSS pixel at its natural size.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Ink", "canvas", "dot", "label_ends", "rows", "sharded", "to_svg"]


class Ink:
    """Stand-in colors, and in `VARIABLES` the CSS variables that they become."""

    TEXT = "#010101"
    MUTED = "#020202"
    RULE = "#030303"
    BEFORE = "#040404"
    AFTER = "#050505"
    PAPER = "#060606"
    ROLL_OUT = "#070707"
    WAIT = "#080808"
    ADVANTAGES = "#090909"
    OPTIMIZE = "#0a0a0a"
    MEASURE = "#0b0b0b"


VARIABLES = {value: f"var(--{name.lower().replace('_', '-')})" for name, value in vars(Ink).items() if name.isupper()}

STYLE: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": Ink.RULE,
    "axes.labelcolor": Ink.MUTED,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 1,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-4, 6),
    "axes.xmargin": 0.02,
    "grid.color": Ink.RULE,
    "grid.linewidth": 0.7,
    "xtick.color": Ink.RULE,
    "xtick.labelcolor": Ink.MUTED,
    "xtick.major.size": 3,
    "xtick.minor.visible": False,
    "ytick.color": Ink.RULE,
    "ytick.labelcolor": Ink.MUTED,
    "ytick.major.size": 0,
    "text.color": Ink.TEXT,
    "text.parse_math": False,
    "font.size": 11,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "dgpo report",
    "path.simplify": True,
}


@contextmanager
def canvas(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of so many CSS pixels with one pair of axes, in the report's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure, key: str, description: str) -> Markup:
    """The figure as an <svg> element. `key` makes its ids unique in the page; `description` is read aloud."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # Letters are set by the browser, which has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    tags = iter(re.split(r"(<[^>]*>)", text))
    # Only tags are rewritten: labels are other people's words.
    text = "".join(_themed(part, key) if part.startswith("<") else part for part in tags)
    opening = f'<svg role="img" aria-label="{escape(description)}" '
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda m: f"{opening}{m[1]}>", text, count=1)
    return Markup(text)


def _themed(tag: str, key: str) -> str:
    """One tag with CSS variables for colors, the page's font, and ids of its own."""
    tag = re.sub(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", lambda m: VARIABLES.get(m[0], m[0]), tag)
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r'\bid="', f'id="{key}-', tag)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", tag)


def rows(axes: Axes, names: Sequence[str], label: str, *, room: float = 0.5) -> None:
    """Named rows, the first at the top, over values along x with a label; `room` is left above and below them."""
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks(range(len(names)), names, fontsize=12)
    axes.tick_params(axis="y", labelcolor=Ink.TEXT)
    axes.set_ylim(len(names) - 1 + room, -room)
    axes.set_xlabel(label)


def dot(
    axes: Axes, found: Any, y: float, color: str, *, hollow: bool, size: float, offset: float = 0.0, width: float = 1.6
) -> None:
    """A value with its interval (`value`, `low`, `high`; these may be None) in a row; the interval `offset` below."""
    if found.low is not None and found.high is not None:
        axes.plot([found.low, found.high], [y + offset] * 2, color=color, linewidth=width, zorder=2)
    axes.plot(
        [found.value], [y], "o", markersize=size, markerfacecolor=Ink.PAPER if hollow else color,
        markeredgecolor=color, markeredgewidth=1.8, zorder=3,
    )  # fmt: skip


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], *, size: float = 11, **options: Any) -> None:
    """Names of lines at their right ends, (value, name, color) each, moved apart where they would touch."""
    height = axes.bbox.height / axes.figure.dpi * 72 * 0.9  # pixels; the layout will take some for labels
    low, high = axes.get_ylim()
    ordered = sorted(labels)
    places = sharded([value for value, _, _ in ordered], (high - low) * size * 1.2 / height)
    for place, (_, name, color) in zip(places, ordered, strict=True):
        axes.annotate(
            name, (1, place), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            color=color, fontsize=size, va="center", annotation_clip=False, **options,
        )  # fmt: skip


def sharded(values: Sequence[float], gap: float) -> list[float]:
    """The nearest places (least squares) for ascending values that stay `gap` apart."""
    blocks: list[tuple[float, int]] = []  # (mean, count) of value - rank * gap; pooled until the means ascend
    for rank, value in enumerate(values):
        mean, count = value - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            other, others = blocks.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        blocks.append((mean, count))
    levels = [mean for mean, count in blocks for _ in range(count)]
    return [level + rank * gap for rank, level in enumerate(levels)]
