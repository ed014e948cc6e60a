"""From a kind of part and a name to a whole distribution: names, templates, files."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.hookspecs import KINDS

__all__ = ["BASES", "LONGEST_NAME", "Scaffold", "check_name", "render", "write"]

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*\Z")
LONGEST_NAME = 30
"""So that no line of what is written gets longer than 120 characters."""
RESERVED = frozenset({"toy"})
"""What the toy run of the test kit calls its own parts."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the templates are told of a kind. suffix: of its class; dependencies: besides dgpo; extra: of dgpo's."""

    noun: str
    suffix: str
    contract: str
    summary: str
    dependencies: tuple[str, ...] = ("torch>=2.7",)
    extra: str = ""


_KINDS = {
    "backbone": _Kind(
        "model to train", "Backbone", "Backbone", "A network of a few thousand weights that trains in milliseconds",
        extra="[lora]",
    ),
    "backbone-diffusers": _Kind(
        "model to train", "Backbone", "Backbone", "FLUX.1 through diffusers, to be made another family of models",
        ("dgpo-diffusers>=0.1", "torch>=2.7"),
    ),
    "sampler": _Kind("sampler", "Sampler", "Sampler", "Runge-Kutta steps of second order, two velocities each"),
    "reward": _Kind("reward", "Reward", "RewardModel", "Brightness near a target, in [0, 1]"),
    "weighting": _Kind("weighting", "Weighting", "AdvantageWeighting", "w = |A| ** exponent"),
    "timesteps": _Kind("timestep policy", "Timesteps", "TimestepPolicy", "Logit-normal times in [t_min, t_max]"),
    "objective": _Kind("objective", "Objective", "Objective", "Denoising loss weighted by how much better a member is"),
    "prompts": _Kind(
        "prompt source", "Prompts", "PromptSource", "Templates times words, no word in both splits", ()
    ),
    "detector": _Kind(
        "detector for GenEval", "Detector", "Detector", "Finds what is bright", ("dgpo-geneval>=0.1", "torch>=2.7")
    ),
}  # fmt: skip
"""By the directory of their templates."""

BASES = {"diffusers": "backbone"}
"""What a part may stand on beside its contract, to the kind of that part."""


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A distribution to be written: one part of a kind, over one of `BASES` if that is not empty."""

    kind: str
    name: str
    over: str = ""

    @property
    def template(self) -> str:
        """The directory of its templates."""
        return f"{self.kind}-{self.over}" if self.over else self.kind

    @property
    def distribution(self) -> str:
        """What pip installs, and the directory's name."""
        return f"dgpo-{self.name}"

    @property
    def package(self) -> str:
        """What Python imports."""
        return self.distribution.replace("-", "_")

    def context(self) -> dict[str, Any]:
        """What the templates are told."""
        kind = _KINDS[self.template]
        base = "".join(word.capitalize() for word in self.name.split("-"))
        return {
            "base": base,
            "class": base + kind.suffix,
            "contract": "dgpo_geneval.detector.Detector"
            if self.kind == "detector"
            else f"dgpo_core.contracts.{kind.contract}",
            "dependencies": ", ".join(f'"{one}"' for one in (f"dgpo{kind.extra}>=0.1", *kind.dependencies)),
            "distribution": self.distribution,
            "hook": KINDS[self.kind],
            "kind": self.kind,
            "name": self.name,
            "noun": kind.noun,
            "over": self.over,
            "package": self.package,
            "summary": kind.summary,
        }


def check_name(name: str) -> None:
    """Raise UserError for a name that makes no distribution and package, saying what does and what is nearest."""
    if NAME.match(name) and len(name) <= LONGEST_NAME and not name.startswith("dgpo-") and name not in RESERVED:
        return
    if name in RESERVED:
        raise UserError(f"NAME {name}: the test kit uses it for its own parts; choose another, such as my-{name}")
    near = _nearest(name)
    raise UserError(
        f"NAME {name!r}: lower-case letters, digits and single hyphens, a letter first, at most {LONGEST_NAME} "
        f"characters, without the dgpo- that the distribution gets" + (f"; the nearest is {near}" if near else "")
    )


def _nearest(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    words = re.sub(r"^(dgpo-)+", "", words)
    words = re.sub(r"^[0-9-]+", "", words)[:LONGEST_NAME].strip("-")
    return f"my-{words}" if words in RESERVED else words


def render(scaffold: Scaffold) -> dict[PurePosixPath, str]:
    """Path within the distribution to text, of every file."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
        trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    context = scaffold.context()
    context["usage"] = environment.get_template(f"{scaffold.template}/usage.md.jinja").render(context).strip()
    places = {_place(template, scaffold): template for template in _templates(scaffold.template)}
    return {place: environment.get_template(str(places[place])).render(context) for place in sorted(places)}


def _templates(own: str) -> Iterator[PurePosixPath]:
    """Those of every distribution, then its own, which may take their place."""
    for directory in ("common", own):
        for path in sorted((TEMPLATES / directory).rglob("*.jinja")):
            if path.name != "usage.md.jinja":
                yield PurePosixPath(path.relative_to(TEMPLATES).as_posix())


def _place(template: PurePosixPath, scaffold: Scaffold) -> PurePosixPath:
    """Where a template's text goes: without its first directory and its ending, `package` by its own name."""
    parts = [scaffold.package if part == "package" else part for part in template.parts[1:]]
    name = parts[-1].removesuffix(".jinja")
    return PurePosixPath(*parts[:-1], ".gitignore" if name == "gitignore" else name)


def write(files: dict[PurePosixPath, str], directory: Path) -> None:
    """Write files into a directory that is not there yet; all of them or none. Raises UserError if it cannot."""
    from dgpo_core.system.files import new_directory

    with new_directory(directory) as aside:
        for name, text in files.items():
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
