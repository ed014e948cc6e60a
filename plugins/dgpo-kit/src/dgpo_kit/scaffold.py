"""Create a distribution from a kind of component and a name: names, templates, files."""

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
"""Keeps all lines of the rendered files within 120 characters."""
RESERVED = frozenset({"toy"})
"""Names of the components of the test kit's toy run."""


BASES = {"diffusers": "backbone"}
"""Bases for templates besides the contract, and the kind of component that each is for."""


@dataclass(frozen=True, slots=True)
class Scaffold:
    """A distribution to create, with one component; over: one of `BASES`, or empty."""

    kind: Kind
    name: str
    over: str = ""

    @property
    def template(self) -> Path:
        """The directory of its templates; template.toml in it has the variables of the kind."""
        if not self.kind.template:
            return TEMPLATES / (f"{self.kind.name}-{self.over}" if self.over else self.kind.name)
        package, _, directory = self.kind.template.partition(":")
        return Path(str(importlib.resources.files(package))) / directory

    @property
    def distribution(self) -> str:
        """The name of the distribution and of its directory."""
        return f"dgpo-{self.name}"

    @property
    def package(self) -> str:
        """The name of the Python package."""
        return self.distribution.replace("-", "_")

    def context(self) -> dict[str, Any]:
        """Return the template variables."""
        variables = tomllib.loads((self.template / "template.toml").read_text(encoding="utf-8"))
        base = "".join(word.capitalize() for word in self.name.split("-"))
        return variables | {
            "base": base,
            "class": base + variables["suffix"],
            "dependencies": ", ".join(f'"{dependency}"' for dependency in variables["dependencies"]),
            "distribution": self.distribution,
            "hook": self.kind.hook,
            "kind": self.kind.name,
            "name": self.name,
            "over": self.over,
            "package": self.package,
        }


def check_name(name: str) -> None:
    """Raise UserError, with the nearest valid name, for a name that is not valid for a distribution and package."""
    if NAME.match(name) and len(name) <= LONGEST_NAME and not name.startswith("dgpo-") and name not in RESERVED:
        return
    if name in RESERVED:
        raise UserError(f"NAME {name}: is reserved for the test kit; choose another name, such as my-{name}")
    near = _nearest(name)
    raise UserError(
        f"NAME {name!r}: must consist of lower-case letters, digits and single hyphens, start with a letter, have at "
        f"most {LONGEST_NAME} characters and not start with dgpo-, which is added"
        + (f"; the nearest valid name is {near}" if near else "")
    )


def _nearest(name: str) -> str:
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
    words = re.sub(r"^(dgpo-)+", "", words)
    words = re.sub(r"^[0-9-]+", "", words)[:LONGEST_NAME].strip("-")
    return f"my-{words}" if words in RESERVED else words


def render(scaffold: Scaffold) -> dict[PurePosixPath, str]:
    """Render all files: path within the distribution -> text."""
    import jinja2

    specific = scaffold.template
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([specific, TEMPLATES / "common"]), undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True, trim_blocks=True, lstrip_blocks=True, autoescape=False,
    )  # fmt: skip
    context = scaffold.context()
    context["usage"] = environment.get_template("usage.md.jinja").render(context).strip()
    # Templates of the kind override common ones.
    tops = (TEMPLATES / "common", specific)
    names = {path.relative_to(top).as_posix() for top in tops for path in top.rglob("*.jinja")}
    targets = {_target(name, scaffold): name for name in names - {"usage.md.jinja"}}
    return {target: environment.get_template(targets[target]).render(context) for target in sorted(targets)}


def _target(template: str, scaffold: Scaffold) -> PurePosixPath:
    """Return the path of a rendered template: without .jinja, and with the name of the package for `package`."""
    segments = [scaffold.package if segment == "package" else segment for segment in template.split("/")]
    name = segments[-1].removesuffix(".jinja")
    return PurePosixPath(*segments[:-1], ".gitignore" if name == "gitignore" else name)


def write(files: dict[PurePosixPath, str], directory: Path) -> None:
    """Write all files to a new directory, or none. Raises UserError if that fails."""
    from dgpo_core.system.files import new_directory

    with new_directory(directory) as temporary:
        for name, text in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
