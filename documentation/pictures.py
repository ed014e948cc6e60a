"""Pictures of docs/how-dgpo-works.md, drawn from its worked example; `python -m documentation.pictures` writes them."""

from __future__ import annotations

from collections.abc import Iterator

from documentation.example import ERRORS, REFERENCE_ERRORS, REWARDS, advantages, preference, sigmoid
from documentation.links import ROOT

__all__ = ["FOLDER", "pictures"]

FOLDER = ROOT / "docs" / "images" / "how-dgpo-works"
INK, GRAY, BETTER, WORSE, PAPER = "#1f2933", "#7b8794", "#2f7d4f", "#b4432f", "#ffffff"
NAMES = "ABCD"


def pictures() -> dict[str, str]:
    """Return {file name: SVG}."""
    return {
        "iteration.svg": _svg(760, 250, "One iteration of DGPO", _iteration()),
        "weights.svg": _svg(760, 260, "Rewards of a group and their signed weights", _weights()),
        "noising.svg": _svg(760, 150, "A sample and its noise, mixed at several times sigma", _noising()),
        "sigmoid.svg": _svg(760, 300, "The factor sigma(S) of a group's gradient", _sigmoid()),
    }


def _svg(width: int, height: int, title: str, parts: Iterator[str]) -> str:
    lines = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="14" role="img" aria-label="{title}">\n<title>{title}</title>\n'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>\n{lines}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, color: str = INK, anchor: str = "middle", size: int = 14) -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{color}" text-anchor="{anchor}" font-size="{size}">{text}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str = INK, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" stroke-width="1.5"{dash}/>'


def _arrow(x1: float, y: float, x2: float) -> Iterator[str]:
    yield _line(x1, y, x2 - 6, y, GRAY)
    yield f'<path d="M{x2:g} {y:g} l-9 -5 v10 z" fill="{GRAY}"/>'


def _bar(x: float, y: float, width: float, height: float, color: str) -> str:
    top = min(y, y - height)
    return f'<rect x="{x:g}" y="{top:.1f}" width="{width:g}" height="{abs(height):.1f}" fill="{color}"/>'


def _iteration() -> Iterator[str]:
    """Prompt, group, rewards, signed weights, loss, update, and the way back."""
    boxes = [
        ("1. Rollout", ["one prompt,", "four noises,", "four samples"]),
        ("2. Score", ["a reward", "for each", "sample"]),
        ("3. Advantages", ["compare within", "the group:", "signed weights"]),
        ("4. Optimize", ["noise, predict,", "group preference", "loss, one step"]),
    ]
    for i, (title, lines) in enumerate(boxes):
        x = 20 + i * 188
        yield f'<rect x="{x}" y="30" width="156" height="150" rx="8" fill="none" stroke="{INK}" stroke-width="1.5"/>'
        yield _text(x + 78, 56, title, size=16)
        for row, line in enumerate(lines):
            yield _text(x + 78, 84 + row * 20, line, GRAY)
        for sample, weight in enumerate(advantages()):
            color = (BETTER if weight > 0 else WORSE) if i >= 2 else GRAY
            yield f'<circle cx="{x + 33 + sample * 30}" cy="158" r="9" fill="{color}"/>'
        if i < len(boxes) - 1:
            yield from _arrow(x + 160, 105, x + 184)
    yield f'<path d="M662 180 v38 H98 v-30" fill="none" stroke="{GRAY}" stroke-width="1.5"/>'
    yield f'<path d="M98 182 l-5 9 h10 z" fill="{GRAY}"/>'
    yield _text(380, 238, "the updated policy, or its fast average, draws the next group", GRAY)


def _weights() -> Iterator[str]:
    """Bars of the rewards with their mean, and of the signed weights."""
    base, scale = 205, 140
    mean = sum(REWARDS) / len(REWARDS)
    yield _text(190, 32, "rewards r", size=16)
    for i, reward in enumerate(REWARDS):
        x = 60 + i * 70
        yield _bar(x, base, 44, reward * scale, BETTER if reward > mean else WORSE)
        yield _text(x + 22, base - reward * scale - 6, f"{reward:.2f}")
        yield _text(x + 22, base + 20, NAMES[i])
    yield _line(46, base, 332, base)
    yield _line(46, base - mean * scale, 332, base - mean * scale, GRAY, dashed=True)
    yield _text(336, base - mean * scale + 5, f"mean {mean:.2f}", GRAY, "start")
    middle, scale = 125, 55
    yield _text(580, 32, "signed weights c = A", size=16)
    for i, weight in enumerate(advantages()):
        x = 450 + i * 70
        yield _bar(x, middle, 44, weight * scale, BETTER if weight > 0 else WORSE)
        place = middle - weight * scale + (-6 if weight > 0 else 18)
        yield _text(x + 22, place, f"{weight:+.2f}".replace("-", "−"))
        yield _text(x + 22, base + 38, NAMES[i])
    yield _line(436, middle, 722, middle)


def _noising() -> Iterator[str]:
    """Squares that go from a picture to noise, as (1 - sigma) x0 + sigma noise of a fixed pattern."""
    side, cells = 72, 9
    for i, sigma in enumerate((0.0, 0.25, 0.5, 0.75, 1.0)):
        x = 40 + i * 150
        for row in range(cells):
            for column in range(cells):
                x0 = 0.2 if (row - 4) ** 2 + (column - 4) ** 2 <= 9 else 0.9
                noise = (row * cells + column + 1) ** 3 * 7 % 97 / 96  # a fixed pattern without order
                level = round(255 * ((1 - sigma) * x0 + sigma * noise))
                step = side / cells
                yield (
                    f'<rect x="{x + column * step:g}" y="{22 + row * step:g}" width="{step:g}" height="{step:g}" '
                    f'fill="rgb({level},{level},{level})"/>'
                )
        label = {0.0: "σ = 0: data", 1.0: "σ = 1: noise"}.get(sigma, f"σ = {sigma:g}")
        yield _text(x + side / 2, 122, label)


def _sigmoid() -> Iterator[str]:
    """The sigmoid, with the example before and after learning."""

    def place(value: float) -> tuple[float, float]:
        return 380 + value * 70, 240 - sigmoid(value) * 190

    curve = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(-4.5 + step * 0.1) for step in range(91)))
    yield _line(65, 240, 695, 240)
    yield _line(380, 240, 380, 40, GRAY, dashed=True)
    yield f'<polyline points="{curve}" fill="none" stroke="{INK}" stroke-width="2"/>'
    for errors, text, side in ((REFERENCE_ERRORS, "start of training", -1), (ERRORS, "preference learned", 1)):
        value = preference(errors)
        x, y = place(value)
        yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{BETTER}"/>'
        label = f"{text}: S = {value:.2f}, σ(S) = {sigmoid(value):.2f}".replace("-", "−")
        yield _text(round(x) + side * 14, round(y) + side * 14, label, INK, "end" if side < 0 else "start")
    for tick in range(-4, 5, 2):
        yield _text(place(tick)[0], 262, f"{tick}".replace("-", "−"), GRAY)
    yield _text(
        380, 286, "group preference S: below 0, the policy prefers the better samples more than the reference", GRAY
    )
    yield _text(400, 36, "σ(S), the factor of the gradient", GRAY, "start")


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in pictures().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
