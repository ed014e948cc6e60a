"""Reference pages of the run file, the command line and the Python API."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from dgpo_cli.main import app
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.changes import effect_of
from dgpo_schemas.keys import keys_of
from dgpo_schemas.run import RunConfig
from documentation.keys import table

__all__ = ["PUBLIC", "api_pages", "commands_page", "public_objects", "run_file_page"]

PUBLIC = {
    "runs": ("Runs", ["dgpo_core", "dgpo_core.api.run", "dgpo_core.api.samples", "dgpo_core.api.evaluating",
                      "dgpo_core.api.scoring", "dgpo_core.api.suites", "dgpo_core.api.filling",
                      "dgpo_core.api.target", "dgpo_core.api.models", "dgpo_core.api.watching"]),
    "functional": ("The objective on plain tensors", ["dgpo_core.functional"]),
    "contracts": ("Contracts of components", ["dgpo_core.contracts"]),
    "types": ("Types, draws and errors", ["dgpo_core.types", "dgpo_core.draws", "dgpo_core.errors"]),
    "hooks": ("Hooks and options", ["dgpo_core.hookspecs", "dgpo_schemas.base"]),
    "records": ("Records of a run", ["dgpo_schemas.metrics"]),
    "kit": ("Test kit", ["dgpo_kit", "dgpo_kit.fixtures", "dgpo_kit.contracts", "dgpo_kit.toy"]),
    "diffusers": ("Base of model families", ["dgpo_diffusers.backbone", "dgpo_diffusers.family",
                                             "dgpo_diffusers.layout", "dgpo_diffusers.options",
                                             "dgpo_diffusers.unet"]),
}  # fmt: skip
"""Pages of the Python API: title, and the modules whose `__all__` they show."""


def run_file_page() -> str:
    """Return the page of all keys of a run file, a section each."""
    lines = [
        "# Run file", "",
        "Every key of a run file, from the schema that reads it. `N` is the index of a list item. A resumed run may",
        "change keys marked *any time* (they do not affect results) and *from there on*; the others are *fixed*",
        "([resuming](../resume.md#what-may-change)). Options of components are on [their pages](components/index.md).",
        "`dgpo validate run.yaml` checks a file, and every message has its line and the nearest valid choice.", "",
    ]  # fmt: skip
    section = ""
    rows: dict[str, list[Any]] = {}
    for key in keys_of(RunConfig):
        section = key.name.partition(".")[0]
        rows.setdefault(section, []).append(key)
    for section, keys in rows.items():
        lines += [f"## {section}", "", *table(keys, effect_of), ""]
    return "\n".join(lines)


def commands_page(registry: Registry) -> str:
    """Return the page of all commands: usage, text and options, as `dgpo COMMAND --help` shows them."""
    import typer

    group: Any = typer.main.get_command(app)
    lines = ["# Command line", "", "What `dgpo COMMAND --help` shows.", ""]
    lines += ["Exit codes are explained in [faults](../faults.md#exit-codes).", ""]
    context = group.make_context("dgpo", [], resilient_parsing=True)
    for name in group.list_commands(context):
        lines += _command(group.get_command(context, name), context, f"dgpo {name}", "##")
    return "\n".join(lines)


def _command(command: Any, parent: Any, path: str, heading: str) -> Iterator[str]:
    context = type(parent)(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield from (f"{heading} {path}", "")
    if hasattr(command, "list_commands"):
        for name in command.list_commands(context):
            yield from _command(command.get_command(context, name), context, f"{path} {name}", f"{heading}#")
        return
    usage = " ".join(command.collect_usage_pieces(context))
    yield from ("```text", f"{path} {usage}", "```", "", inspect.cleandoc(command.help or "").replace("\b\n", ""), "")
    records = [found for one in command.params if (found := one.get_help_record(context)) is not None]
    if records:
        yield from ("| argument or option | meaning |", "|---|---|")
        for option, text in records:
            cell = " ".join(str(text).split()).replace("|", "&#124;").replace("<", "&lt;")
            yield f"| `{str(option).replace('|', chr(92) + '|')}` | {cell} |"
        yield ""


def public_objects(page: str) -> dict[str, str]:
    """Return {where it is defined: name} of what a page of the API shows: classes and functions of `__all__`."""
    found: dict[str, str] = {}
    for module in PUBLIC[page][1]:
        loaded = importlib.import_module(module)
        for name in loaded.__all__:
            one = getattr(loaded, name)
            home = getattr(one, "__module__", None)
            if (inspect.isclass(one) or inspect.isfunction(one)) and home is not None:
                found.setdefault(f"{home}.{one.__qualname__}", name)
    return found


def api_pages() -> dict[str, str]:
    """Return {address on the site: Markdown}; mkdocstrings replaces the directives by docstrings."""
    shown: set[str] = set()
    pages: dict[str, str] = {}
    for page, (title, modules) in PUBLIC.items():
        objects = {home: name for home, name in public_objects(page).items() if home not in shown}
        shown |= objects.keys()
        named = ", ".join(f"`{module}`" for module in modules)
        lines = [f"# {title}", "", f"From {named}. [Python](../../python.md) shows how they are used.", ""]
        for home in sorted(objects, key=lambda home: objects[home].lower()):
            lines += [f"::: {home}", ""]
        pages[f"reference/api/{page}.md"] = "\n".join(lines)
    return pages
