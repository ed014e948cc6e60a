"""Matplotlib figures as inline SVG that takes its colors and fonts from the surrounding page.

Figures are drawn in the placeholder colors of `Ink`. In the SVG each becomes a CSS variable, so that the same figure
works in the light and dark themes and in print. One figure unit is one CSS pixel at natural size.
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

__all__ = ["Ink", "canvas", "dot", "label_ends", "rows", "separated", "to_svg"]


class Ink:
    """Placeholder colors; `VARIABLES` maps them to CSS variables."""

    TEXT = "#010101"
    MUTED = "#020202"
    RULE = "#030303"
    BEFORE = "#040404"
    AFTER = "#050505"
    PAPER = "#060606"
    ROLLOUT = "#070707"
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
    """Create a figure of `width` by `height` CSS pixels with one pair of axes, in the report's style."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        yield figure, figure.subplots()


def to_svg(figure: Figure, key: str, description: str) -> Markup:
    """Convert a figure to an <svg> element.

    `key` makes its ids unique in the page; `description` is the text for screen readers.
    """
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # The browser renders the text, and has the glyphs that matplotlib's font lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        figure.savefig(buffer, format="svg", metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, count=1, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    tags = iter(re.split(r"(<[^>]*>)", text))
    # Only tags are rewritten, because labels are arbitrary user text.
    text = "".join(_themed(part, key) if part.startswith("<") else part for part in tags)
    opening = f'<svg role="img" aria-label="{escape(description)}" '
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', lambda m: f"{opening}{m[1]}>", text, count=1)
    return Markup(text)


def _themed(tag: str, key: str) -> str:
    """Rewrite one tag to use CSS variables for colors, the page's font, and unique ids."""
    tag = re.sub(r"#0[0-9a-f]0[0-9a-f]0[0-9a-f]\b", lambda m: VARIABLES.get(m[0], m[0]), tag)
    tag = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", tag)
    tag = re.sub(r'\bid="', f'id="{key}-', tag)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{key}-", tag)


def rows(axes: Axes, names: Sequence[str], label: str, *, room: float = 0.5) -> None:
    """Set up axes with named rows, the first at the top, and a label on the x axis; `room` is the vertical margin."""
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    axes.set_yticks(range(len(names)), names, fontsize=12)
    axes.tick_params(axis="y", labelcolor=Ink.TEXT)
    axes.set_ylim(len(names) - 1 + room, -room)
    axes.set_xlabel(label)


def dot(
    axes: Axes, score: Any, y: float, color: str, *, hollow: bool, size: float, offset: float = 0.0, width: float = 1.6
) -> None:
    """Draw `score.value` in row `y`, and its interval (`low`, `high`; either may be None) `offset` below."""
    if score.low is not None and score.high is not None:
        axes.plot([score.low, score.high], [y + offset] * 2, color=color, linewidth=width, zorder=2)
    axes.plot(
        [score.value], [y], "o", markersize=size, markerfacecolor=Ink.PAPER if hollow else color,
        markeredgecolor=color, markeredgewidth=1.8, zorder=3,
    )  # fmt: skip


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]], *, size: float = 11, **options: Any) -> None:
    """Label lines at their right ends, given as (value, name, color); labels that would overlap are moved apart."""
    height = axes.bbox.height / axes.figure.dpi * 72 * 0.9  # pixels; the layout reserves some for tick labels
    low, high = axes.get_ylim()
    ordered = sorted(labels)
    positions = separated([value for value, _, _ in ordered], (high - low) * size * 1.2 / height)
    for position, (_, name, color) in zip(positions, ordered, strict=True):
        axes.annotate(
            name, (1, position), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
            color=color, fontsize=size, va="center", annotation_clip=False, **options,
        )  # fmt: skip


def separated(values: Sequence[float], gap: float) -> list[float]:
    """Return the positions closest to ascending values (least squares) that are at least `gap` apart."""
    blocks: list[tuple[float, int]] = []  # (mean, count) of value - rank * gap; pooled until the means ascend
    for rank, value in enumerate(values):
        mean, count = value - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            other, others = blocks.pop()
            mean, count = (mean * count + other * others) / (count + others), count + others
        blocks.append((mean, count))
    levels = [mean for mean, count in blocks for _ in range(count)]
    return [level + rank * gap for rank, level in enumerate(levels)]
