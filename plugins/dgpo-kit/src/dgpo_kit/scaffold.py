"""From a kind of component and a name to a whole distribution: names, templates, files."""

from __future__ import annotations

import importlib.resources
import re
import tomllib
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Kind

__all__ = ["BASES", "LONGEST_NAME", "Scaffold", "check_name", "render", "write"]

TEMPLATES = Path(__file__).parent / "templates"
NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*\Z")
LONGEST_NAME = 30
"""So that no line of what is written gets longer than 120 characters."""
RESERVED = frozenset({"toy"})
"""What the toy run of the test kit calls its own components."""


BASES = {"diffusers": "backbone"}
"""What a component may stand on beside its contract, to the kind of that component."""


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A distribution to be written: one part of a kind, over one of `BASES` if that is not empty."""

    kind: Kind
    name: str
    over: str = ""

    @property
    def template(self) -> Path:
        """The directory of its templates, whose template.toml says what they are told of the kind."""
        if not self.kind.template:
            return TEMPLATES / (f"{self.kind.name}-{self.over}" if self.over else self.kind.name)
        package, _, directory = self.kind.template.partition(":")
        return Path(str(importlib.resources.files(package))) / directory

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
        reported = tomllib.loads((self.template / "template.toml").read_text(encoding="utf-8"))
        base = "".join(word.capitalize() for word in self.name.split("-"))
        return reported | {
            "base": base,
            "class": base + reported["suffix"],
            "dependencies": ", ".join(f'"{one}"' for one in reported["dependencies"]),
            "distribution": self.distribution,
            "hook": self.kind.hook,
            "kind": self.kind.name,
            "name": self.name,
            "over": self.over,
            "package": self.package,
        }


def check_name(name: str) -> None:
    """Raise UserError for a name that makes no distribution and package, saying what does and what is nearest."""
    if NAME.match(name) and len(name) <= LONGEST_NAME and not name.startswith("dgpo-") and name not in RESERVED:
        return
    if name in RESERVED:
        raise UserError(f"NAME {name}: the test kit uses it for its own components; choose another, such as my-{name}")
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

    own = scaffold.template
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([own, TEMPLATES / "common"]), undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    context = scaffold.context()
    context["usage"] = environment.get_template("usage.md.jinja").render(context).strip()
    # Those of every distribution, and its own, which may take their place.
    names = {path.relative_to(top).as_posix() for top in (TEMPLATES / "common", own) for path in top.rglob("*.jinja")}
    places = {_place(name, scaffold): name for name in names - {"usage.md.jinja"}}
    return {place: environment.get_template(places[place]).render(context) for place in sorted(places)}


def _place(template: str, scaffold: Scaffold) -> PurePosixPath:
    """Where a template's text goes: without its ending, `package` by its own name."""
    components = [scaffold.package if component == "package" else component for component in template.split("/")]
    name = components[-1].removesuffix(".jinja")
    return PurePosixPath(*components[:-1], ".gitignore" if name == "gitignore" else name)


def write(files: dict[PurePosixPath, str], directory: Path) -> None:
    """Write files into a directory that is not there yet; all of them or none. Raises UserError if it cannot."""
    from dgpo_core.system.files import new_directory

    with new_directory(directory) as aside:
        for name, text in files.items():
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
