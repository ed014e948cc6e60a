"""The pages that the site adds to docs/: nothing is missing in the reference, and every page can be found."""

from __future__ import annotations

import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from pydantic import BaseModel

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import get_registry
from dgpo_schemas.annotations import items_of, models_of
from dgpo_schemas.base import UseBlock
from dgpo_schemas.changes import effect_of
from dgpo_schemas.run import RunConfig
from documentation.links import ROOT, address, rewritten, slug
from documentation.pages import copied, expanded, generated, lists_apart, sources
from documentation.reference import PUBLIC


@pytest.fixture(scope="module")
def reference() -> dict[str, str]:
    return generated(get_registry())


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a model, found by its annotations and not by its JSON Schema."""
    for name, field in model.model_fields.items():
        yield prefix + name, field
        for inner in models_of(field.annotation):
            if inner is not UseBlock:
                yield from fields(inner, f"{prefix}{name}.")
        for item in items_of(field.annotation):
            for inner in models_of(item):
                if inner is not UseBlock:
                    yield from fields(inner, f"{prefix}{name}.N.")


def rows(page: str) -> dict[str, list[str]]:
    """The cells of each line of a table whose first cell is a key."""
    found = {}
    for line in page.splitlines():
        if match := re.match(r"\| `([^`]+)` \| ", line):
            found[match[1]] = re.split(r"(?<!\\) \| ", line.strip("| "))
    return found


def test_every_key_of_a_run_file_is_there(reference: dict[str, str]) -> None:
    shown = rows(reference["reference/run-file.md"])
    keys = dict(fields(RunConfig))
    assert len(keys) > 100
    assert set(shown) >= set(keys)
    for key, field in keys.items():
        _, _, default, resumed, meaning = shown[key]
        assert resumed == effect_of(key), key
        assert (default == "required") == field.is_required(), key
        assert (
            field.description is None or meaning.split()[:3] == field.description.replace("|", "&#124;").split()[:3]
        ), key


def test_every_option_of_every_component_is_there(reference: dict[str, str]) -> None:
    registry = get_registry()
    for kind in registry.kinds:
        for name, component in registry.components(kind).items():
            page = reference[f"reference/components/{kind}.md"]
            section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
            assert component.component.summary.rstrip(".") in section
            assert component.distribution in section
            assert "license of the code: Apache-2.0" in section, f"{kind} {name}"
            options = registry.options_model(component).model_fields
            assert set(rows(section)) >= set(options), f"{kind} {name}"


NAMED = {
    "backbone": ("sd3", "text_length: 0"), "sampler": ("flow-sde", "noise: 0.5"), "reward": ("pickscore", "batch: 4"),
    "weighting": ("softmax", "temperature: 0.5"), "objective": ("diffusion-dpo", ""), "timesteps": ("uniform", ""),
    "prompts": ("miniature", "seed: 1"),
}  # fmt: skip
"""A component of each kind, and an option of it."""


@pytest.mark.parametrize("kind", NAMED)
def test_components_are_named_as_their_page_says(kind: str, reference: dict[str, str], tmp_path: Path) -> None:
    name, option = NAMED[kind]
    page = reference[f"reference/components/{kind}.md"]
    (line,) = re.findall(r"^In a run file: .*$", page, re.MULTILINE)
    for shown in re.findall("`([^`]+)`", line):
        written = shown.replace("NAME", name).replace("KEY: VALUE", option).replace("CHECKPOINT", "sd35")
        base = {
            "run": {"name": "x", "iterations": 1}, "backbone": {"use": "sd3", "checkpoint": "sd35"},
            "prompts": {"train": {"use": "miniature"}}, "rewards": [{"use": "pickscore"}],
        }  # fmt: skip
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(base | yaml.safe_load(written)))
        settings = load_run_config(tmp_path / "run.yaml", registry=get_registry()).model_dump_json()
        assert f'"{name}"' in settings
        assert shown.count("KEY") == 0 or all(word in settings for word in option.split(": "))


def test_every_command_is_there(reference: dict[str, str]) -> None:
    page = reference["reference/command-line.md"]
    for name, one in get_registry().commands().items():
        if one.command.target:
            assert re.search(rf"^##+ dgpo {re.escape(name)}$", page, re.MULTILINE), name
    assert "`--preempted-ok`" in page
    assert "Exit with 0 instead of 75" in page


def test_every_public_class_is_there(reference: dict[str, str]) -> None:
    pages = "\n".join(text for place, text in reference.items() if place.startswith("reference/api/"))
    directives = re.findall(r"^::: (.+)$", pages, re.MULTILINE)
    assert len(directives) == len(set(directives))
    listed = {module for _, modules in PUBLIC.values() for module in modules}
    api = {f"dgpo_core.api.{file.stem}" for file in (ROOT / "dgpo_core/api").glob("[a-z]*.py")}
    for name in listed | api | {"dgpo_kit.fixtures", "dgpo_kit.given"}:
        module = importlib.import_module(name)
        for public in module.__all__:
            one = getattr(module, public)
            if inspect.isclass(one):
                assert f"{one.__module__}.{one.__qualname__}" in directives, f"{name}.{public}"


def test_every_preset_is_there(reference: dict[str, str]) -> None:
    page = reference["recipes.md"]
    files = [*ROOT.glob("plugins/*/src/**/presets/*.yaml")]
    assert len(files) > 30
    for file in files:
        settings = re.sub(r"^#.*\n", "", file.read_text(), flags=re.MULTILINE).strip()
        assert f"```yaml\n{settings}\n```" in page, file
    assert len(re.findall(r"^### ", page, re.MULTILINE)) == len(files)


def in_navigation(entries: list[Any]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from in_navigation(value) if isinstance(value, list) else [value]


def test_the_navigation_has_every_page(reference: dict[str, str]) -> None:
    listed = list(in_navigation(expanded(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])))
    assert len(listed) == len(set(listed))
    assert set(listed) == {*sources().values(), *reference}


def test_a_folder_in_the_navigation_is_its_pages() -> None:
    found = expanded(["index.md", {"Results": [{"Experiments": "experiments/"}]}])
    assert found[0] == "index.md"
    first, *others = found[1]["Results"][0]["Experiments"]
    assert first == "experiments/README.md"
    assert others == sorted(f"experiments/{file.name}" for file in ROOT.glob("docs/experiments/[a-z]*.md"))


def test_addresses() -> None:
    assert address("docs/experiments/e1.md") == "experiments/e1.md"
    assert address("plugins/dgpo-ocr") == address("plugins/dgpo-ocr/README.md") == "distributions/dgpo-ocr.md"
    assert address("README.md") == "index.md"
    assert address("examples/quickstart.yaml") == "files/examples/quickstart.yaml.md"


def test_links_between_files_become_links_between_pages() -> None:
    linked: set[str] = set()
    text = (
        "[a](../README.md#install) [b](https://x.y) [c](#d) `[e](f.md)`\n```\n[g](../README.md)\n```\n[h](../LICENSE)\n"
    )
    found = rewritten(text, "docs/first-gpu-run.md", linked)
    assert "[a](index.md#install) [b](https://x.y) [c](#d)" in found
    assert "```\n[g](../README.md)\n```" in found
    assert "[h](files/LICENSE.md)" in found
    assert linked == {"LICENSE"}
    assert rewritten("[a](../dgpo-ocr/README.md)", "plugins/dgpo-sd3/README.md") == "[a](dgpo-ocr.md)"
    assert rewritten("[a](missing.md)", "docs/resume.md") == "[a](missing.md)"


def test_pages_outside_docs_have_no_link_to_what_is_not_on_the_site(reference: dict[str, str]) -> None:
    pages = copied() | reference
    known = {*pages, *sources().values()}
    for place, text in pages.items():
        if place.startswith("files/"):
            continue
        outside = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", outside):
            if not target.startswith("http"):
                parts = (Path(place).parent / target).as_posix()
                resolved = Path("/" + parts).resolve().as_posix().lstrip("/")
                assert resolved in known, f"{place}: {target}"


def test_lists_begin_a_paragraph() -> None:
    assert lists_apart("text\n- a\n- b\n  more\n- c") == "text\n\n- a\n- b\n  more\n- c"
    assert lists_apart("```\ntext\n- a\n```") == "```\ntext\n- a\n```"


@pytest.mark.parametrize(
    ("heading", "anchor"), [("`--resume auto`", "--resume-auto"), ("What's new, and σ?", "whats-new-and-σ")]
)
def test_anchors_are_those_of_github(heading: str, anchor: str) -> None:
    assert slug(heading) == anchor


class Page(HTMLParser):
    """The addresses that a page links to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif name == "id" and value is not None:
                self.anchors.add(value)


@pytest.mark.slow
def test_the_site_is_built_without_broken_links(tmp_path: Path, reference: dict[str, str]) -> None:
    pytest.importorskip("mkdocs", reason="needs `pip install --group site`")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    pages = {path: Page(path.read_text()) for path in site.rglob("*.html")}
    assert len(pages) > 100
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            if re.match(r"(?:https?|mailto|data|javascript):", link):
                continue
            target, _, anchor = unquote(link).partition("#")
            file = (path.parent / target).resolve() if target else path
            assert file.exists(), f"{path.relative_to(site)}: {link}"
            assert not anchor or file.suffix != ".html" or anchor in pages[file].anchors, f"{path}: {link}"
    shown = set().union(*(page.anchors for page in pages.values()))
    for text in reference.values():
        assert shown >= set(re.findall(r"^::: (.+)$", text, re.MULTILINE))
