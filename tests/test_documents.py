"""What the documents say works: their snippets, commands and links."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dgpo_cli.main import COMMANDS
from dgpo_core.config import load_run_config
from dgpo_core.registry import get_registry

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.yaml"))


def blocks(text: str, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def install_from_text(document: Path, directory: Path) -> None:
    """The plugin of a document, as `pip install` would leave it: files `NAME` followed by their block."""
    files = re.findall(
        r"`([\w./]+)`[^\n]*:?[^`]*?\n\n```\w+\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL
    )
    found = dict(files)
    assert set(found) == {"pyproject.toml", "dgpo_power/plugin.py", "dgpo_power/weighting.py"}
    import tomllib

    project = tomllib.loads(found["pyproject.toml"])["project"]
    for name, text in found.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    metadata = directory / f"dgpo_power-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [f"{name} = {value}" for name, value in project["entry-points"]["dgpo"].items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[dgpo]", *lines]) + "\n")


def test_the_plugin_of_contributing_works_as_it_stands(tmp_path: Path) -> None:
    """|A| ** 2 on a run of the engine: the weights are the squares of the advantages, and the residual tells."""
    install_from_text(ROOT / "CONTRIBUTING.md", tmp_path)
    program = """
import json, sys, torch
from dgpo_core.registry import Registry
registry = Registry()
assert registry.broken == [], registry.broken
from dgpo_schemas.base import UseBlock
weighting = registry.create("weighting", UseBlock(use="power", options={"exponent": 2}))
print(json.dumps([registry.distributions()["dgpo-power"],
                  weighting.weights(torch.tensor([1.5, -0.5, -1.0]), torch.zeros(3)).tolist()]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == ["0.1.0", [2.25, 0.25, 1.0]]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_valid_and_name_their_schema(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=../schemas/json/run.schema.json\n")
    published = path.name.startswith("sd35-")
    # Their rewards, or the detector that they want, come with other distributions.
    config = load_run_config(path, registry=None if published else get_registry())
    assert config.run.name == path.stem


def test_run_files_in_documents_are_valid(tmp_path: Path) -> None:
    shown = [b for d in DOCUMENTS for b in blocks(d.read_text(), "yaml") if re.search(r"^run:", b, re.MULTILINE)]
    assert shown
    for text in shown:
        (tmp_path / "run.yaml").write_text(text)
        assert load_run_config(tmp_path / "run.yaml", registry=get_registry()).run.name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_commands_exist(path: Path) -> None:
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert link.startswith("http") or (path.parent / link).exists(), link
    for command in re.findall(r"\bdgpo ([a-z]+)(?= [a-z./]|`|$)", "\n".join(blocks(text, "")), re.MULTILINE):
        assert command in COMMANDS, command
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for target in re.findall(r"\bmake ([a-z]+)", "\n".join(re.findall(r"`[^`]+`", text)) + "\n".join(blocks(text, ""))):
        assert target in targets, target
    for file in re.findall(r"examples/[\w.-]+\.yaml", text):
        assert (ROOT / file).is_file(), file
