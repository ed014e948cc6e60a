"""What the documents say works: their snippets, commands and links."""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import cast

import pytest
import torch
import yaml

import dgpo_core
from dgpo_core import Scores, contracts, load_run
from dgpo_core.config.pipeline import load_run_config, load_serve_config
from dgpo_core.contracts.version import CHANGES, DECLARATIONS, HOOKS, changes_in, made_for
from dgpo_core.errors import ContractError
from dgpo_core.hookspecs import KINDS
from dgpo_core.plugins.registry import Registry, get_registry
from dgpo_kit.contracts import component_checks
from dgpo_kit.scaffold import Scaffold, render
from dgpo_kit.toy import run_data
from dgpo_lab.ablation.plan import make_plan
from dgpo_schemas.serve import ServeConfig
from tests.conftest import Outcome
from tests.pages import ROOT, blocks, typed

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("plugins/*/README.md")])
SERVICES = sorted(ROOT.glob("examples/*-service.yaml"))
ABLATIONS = sorted(ROOT.glob("examples/ablation-*.yaml"))
EXAMPLES = sorted(set(ROOT.glob("examples/*.yaml")) - set(SERVICES) - set(ABLATIONS))


class Desk:
    """Where an author works: commands are run as they are typed, but `pip install` leaves this environment alone."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.site = directory, directory / "site"

    def type(self, command: str) -> str:
        """What a command prints on its standard output."""
        name, *arguments = shlex.split(command)
        if name == "pip":
            return self._install(self.directory / arguments[-1].removesuffix("[test]"))
        module = ["-m", "dgpo_cli"] if name == "dgpo" else []
        return self._run(*module, *arguments, cwd=self.directory)

    def _install(self, source: Path) -> str:
        self._run("-m", "hatchling", "build", "-t", "wheel", cwd=source)
        wheels = map(str, (source / "dist").glob("*.whl"))
        options = ["--quiet", "--no-deps", "--no-index", "--target", str(self.site)]
        return self._run("-m", "pip", "install", *options, *wheels, cwd=self.directory)

    def _run(self, *arguments: str, cwd: Path) -> str:
        paths = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths}
        done = subprocess.run(
            [sys.executable, *arguments], cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True, timeout=300
        )
        return done.stdout if "build" not in arguments else ""


def plugins_page() -> tuple[str, str]:
    """The page without its section on commands and kinds, and that section."""
    head, _, rest = (ROOT / "docs/plugins.md").read_text().partition("\n## More than components\n")
    more, _, tail = rest.partition("\n## ")
    return head + tail, more


def test_commands_and_kinds_work_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: Registry, dgpo: Callable[..., Outcome]
) -> None:
    for block in blocks(plugins_page()[1], "python"):
        path = tmp_path / block.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("acme_tools", "acme_captions"):
        known.register(importlib.import_module(f"{name}.plugin"), distribution=name)
    assert dgpo("largest", tmp_path / "acme_tools").out == f"{tmp_path}/acme_tools/largest.py: 414 bytes\n"
    assert "\n  largest   Show the largest file of a run.\n" in dgpo("--help").out
    assert "captioner  constant" in dgpo("plugins", "list", "--kind", "captioner").out
    for kind, name in (("captioner", "constant"), ("reward", "caption")):
        checks = {check.name: check for check in component_checks(known, kind, name)}
        checks["implementation"].run()
        checks["determinism"].run()


def test_the_files_that_the_page_shows_are_those_that_are_written() -> None:
    page, _ = plugins_page()
    shown = blocks(page, "python")
    written = render(Scaffold(KINDS["reward"], "brightness"))
    assert len(shown) == 4
    assert set(shown) <= set(written.values())
    (entry_points,) = blocks(page, "toml")
    assert entry_points in written[PurePosixPath("pyproject.toml")]


def test_the_page_shows_a_backbone_that_is_trained() -> None:
    """By tests/integration/test_third_party.py."""
    page = (ROOT / "docs/plugins.md").read_text()
    _, _, rest = page.partition("### A backbone\n")
    section = rest.partition("\n### ")[0]
    files = sorted((ROOT / "tests/integration/third_party/packed").glob("*.py"))
    texts = {path.name: path.read_text() for path in files}
    shown = blocks(section, "text")
    assert len(shown) == 4
    for block in shown:
        places = [textwrap.indent(block, " " * depth) for depth in (4, 8)]
        assert any(place in text for place in places for text in texts.values()), block
    over = render(Scaffold(KINDS["backbone"], "x", "diffusers"))[PurePosixPath("src/dgpo_x/backbone.py")]
    families = " ".join((ROOT / "docs/model-families.md").read_text().split())
    assert f"a backbone of {over.count(chr(10))} lines" in families
    assert f"is {texts['backbone.py'].count(chr(10))} lines" in section


@pytest.mark.slow
def test_plugins_are_written_tested_and_shown_as_the_page_says(tmp_path: Path) -> None:
    """Every command prints what stands there."""
    page = (ROOT / "docs/plugins.md").read_text()
    desk, checker = Desk(tmp_path), doctest.OutputChecker()
    for command, expected in typed(page):
        found = desk.type(command)
        assert checker.check_output(expected, found, doctest.ELLIPSIS), f"$ {command}\n{found}"
    distribution = tmp_path / "dgpo-brightness"
    assert set(blocks(plugins_page()[0], "python")) <= {path.read_text() for path in distribution.rglob("*.py")}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_valid_and_name_their_schema(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# yaml-language-server: $schema=../schemas/json/run.schema.json\n")
    published = path.name.startswith("sd35-")
    # Their rewards, or the detector that they want, come with other distributions.
    config = load_run_config(path, registry=None if published else get_registry())
    assert config.run.name == path.stem


@pytest.mark.parametrize("path", SERVICES, ids=lambda p: p.name)
def test_reward_files_are_valid_and_show_the_defaults(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=../schemas/json/serve.schema.json\n")
    config = load_serve_config(path, registry=get_registry())
    assert config.model_dump() == ServeConfig(reward=config.reward).model_dump()
    shown = set(re.findall(r"^ *(?:# )?(\w+):", path.read_text(), re.MULTILINE))  # those without a default as comments
    sections = [inner for inner in config.model_dump(exclude={"reward"}).values() if isinstance(inner, dict)]
    assert shown >= {*config.model_dump(), *(key for section in sections for key in section)}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.name)
def test_ablations_are_valid_and_name_their_schema(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # their bases are relative to the working directory
    assert path.read_text().startswith("# yaml-language-server: $schema=../schemas/json/ablation.schema.json\n")
    assert make_plan(path, get_registry()).ablation.name == path.stem


def test_ablation_files_in_documents_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    shown = [b for d in DOCUMENTS for b in blocks(d.read_text(), "yaml") if re.search(r"^axes:", b, re.MULTILINE)]
    assert shown
    for text in shown:
        (tmp_path / "ablation.yaml").write_text(text)
        assert make_plan(tmp_path / "ablation.yaml", get_registry()).variants


@pytest.mark.slow
def test_a_weighting_of_ones_own_becomes_a_row_as_the_page_says(tmp_path: Path) -> None:
    """The commands as they are typed, the file as it is shown, and the line added to the ablation."""
    page = (ROOT / "docs/ablate.md").read_text()
    desk = Desk(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (weighting,) = blocks(page, "python")
    (added,) = re.findall(r"add the line `- (\w+)`", page)
    new, install, check, look = (command for command, _ in typed(page))
    desk.type(new)
    (tmp_path / "dgpo-margin/src/dgpo_margin/weighting.py").write_text(weighting)
    desk.type(install)
    assert re.search(r"^1 skipped, \d+ passed$", desk.type(check), re.MULTILINE)
    text = (ROOT / "examples/ablation-weighting.yaml").read_text()
    file = tmp_path / look.split()[2]
    file.write_text(text.replace("      - rank\n", f"      - rank\n      - {added}\n"))
    assert f"\n  {added}: 16 iterations," in desk.type(look)


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
        assert command in {*get_registry().commands(), "largest"}, command  # one that docs/plugins.md writes
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    code = "\n".join([*re.findall(r"`[^`]+`", text), *blocks(text, "")])
    for target in re.findall(r"\bmake ([a-z-]+)", code):
        assert target in targets, target
    for file in re.findall(r"examples/[\w.-]+\.yaml", text):
        assert (ROOT / file).is_file(), file


def anchors(page: Path) -> set[str]:
    """What links to the headings of a page are called."""
    lines = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)", lines, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_headings_and_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text()
    for link, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#([^)\s]+)\)", text):
        page = path.parent / link if link else path
        assert anchor in anchors(page / "README.md" if page.is_dir() else page), f"{link}#{anchor}"
    tops = "dgpo_core|dgpo_cli|dgpo_schemas|schemas|docs|tests|plugins|experiments|benchmarks|examples"
    of_a_plugin = {"tests/test_contract.py"}  # of the one that docs/plugins.md writes
    for file in set(re.findall(rf"`((?:{tops})/[\w./-]+)`", text)) - of_a_plugin:
        file = file.removesuffix("/KIND")
        assert (ROOT / file).exists() or (path.parent / file).exists(), file


@pytest.mark.parametrize("name", ["docs/faults.md", "SECURITY.md"])
def test_what_holds_a_promise_exists(name: str) -> None:
    cells = re.findall(r"\| ([^|]*) \|$", (ROOT / name).read_text(), re.MULTILINE)
    named = [files for cell in cells if (files := re.findall(r"`([\w./-]+)`", cell)) and "/" in files[0]]
    assert len(named) > 10
    for first, *others in named:
        place = (ROOT / first).parent  # the others are beside the first, or in full
        assert (ROOT / first).exists(), first
        for other in others:
            found = (ROOT / other).exists() or (place / other).exists() or list((ROOT / "tests").glob(f"*/{other}"))
            assert found, other


MIGRATING = blocks((ROOT / "docs/migrating.md").read_text(), "python")


@pytest.mark.parametrize("text", MIGRATING, ids=lambda text: f"{text.count(chr(10))} lines")
def test_plugins_of_the_page_on_migrating_are_of_the_version_that_it_says(text: str) -> None:
    """Each snippet runs; the classes of older versions are refused, those of this version are not."""
    said = int(re.match(r"# version (\d)\n", text)[1])  # type: ignore[index]
    names: dict[str, object] = {"__name__": "page"}
    if "import Part" in text:
        with pytest.raises(ContractError, match=r"hookspecs\.Part became dgpo_core\.hookspecs\.Component"):
            exec(compile(text, "docs/migrating.md", "exec"), {})
        text = text.replace("import Part", "import Component as Part")
    exec(compile(text, "docs/migrating.md", "exec"), names)
    assert names.get("dgpo_contract", contracts.VERSION) == contracts.VERSION
    made = [one for one in names.values() if isinstance(one, type) and one.__module__ == "page"]
    assert made or said == contracts.VERSION
    for one in made:
        kinds = {"sampler": contracts.Sampler, "reward": contracts.RewardBase}
        kind = next((kind for kind, contract in kinds.items() if issubclass(one, contract)), "backbone")
        changes = list(changes_in(kind, one, kinds.get(kind, contracts.Backbone)))
        assert bool(changes) == (said < contracts.VERSION)
        assert not changes or made_for(changes) == said


def test_the_page_on_migrating_reports_every_change() -> None:
    page = (ROOT / "docs/migrating.md").read_text()
    for change in CHANGES:
        old = [b for b in MIGRATING if b.startswith(f"# version {change.since - 1}\n")]
        assert any(f"def {change.method}(" in b or f"{change.method} =" in b for b in old), change
    rows = dict(re.findall(r"^\| [^|]* \| (?:hook )?`([^`]*)` \| (?:hook )?`([^`]*)` \|$", page, re.MULTILINE))
    renamed = {change.was: change.now for change in CHANGES if change.since == 3}
    renamed |= {f"dgpo_core.hookspecs.{old}": f"dgpo_core.hookspecs.{new}" for old, new in DECLARATIONS.items()}
    assert rows == renamed | HOOKS
    of_version_1 = page.partition("## From version 1 to 2")[2]
    assert all(f"`{change.method}`" in of_version_1 for change in CHANGES if change.since == 2)


def test_the_page_on_plugins_has_every_name_of_a_backbone() -> None:
    page = (ROOT / "docs/plugins.md").read_text()
    _, _, rest = page.partition("### Backbones, name by name")
    cells = re.findall(r"^\| ([^|]*) \|", rest.partition("\n### ")[0], re.MULTILINE)
    listed = {name for cell in cells for name in re.findall(r"`(\w+)", cell)}
    gone = {change.method for change in CHANGES if change.parameter is None}
    assert listed >= {name for name in vars(contracts.Backbone) if not name.startswith("_")} - gone
    assert not listed & gone
    required = set(re.findall(r"^\| `(\w+)[^|]*\| \*\*none\*\* \|", rest, re.MULTILINE))
    assert required <= contracts.Backbone.__abstractmethods__


PYTHON = blocks((ROOT / "docs/python.md").read_text(), "python")


def run_blocks(*texts: str) -> dict[str, object]:
    """Execute blocks one after the other; what they define."""
    names: dict[str, object] = {"__name__": "page"}
    for text in texts:
        exec(compile(text, "docs/python.md", "exec"), names)
    return names


def test_sampling_takes_four_lines_of_python_and_a_loss_six(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: Registry
) -> None:
    """Both are executed, on the toy's world."""
    (sampling,) = [block for block in PYTHON if "samples.save(" in block]
    (loss,) = [block for block in PYTHON if "loss.backward()" in block]
    given = PYTHON[PYTHON.index(loss) - 1]
    assert [len([line for line in block.splitlines() if line]) for block in (sampling, loss)] == [4, 6]
    monkeypatch.chdir(tmp_path)
    data = run_data("runs", run={"name": "quickstart", "iterations": 1}, evaluation={"every": 0, "prompts": 1})
    Path("run.yaml").write_text(yaml.safe_dump(data))
    load_run("run.yaml").train()
    run_blocks(sampling)
    assert Path("samples-python/03.png").is_file()
    model = run_blocks(given, loss)["model"]
    assert isinstance(model, torch.nn.Module)
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    # A member without a reward takes no part: group 0 is that of its five other members.
    some = run_blocks("import torch", "torch.manual_seed(0)", given, "rewards[0, 5] = float('nan')", loss)
    alone = """
loss = sum(
    F.group_preference_loss(
        velocity(model, x[rows], sigma[rows]), reference[rows], target[rows],
        F.signed_weights(F.advantages(group), group), beta=100,
    )
    for rows, group in ((slice(0, 5), rewards[0, :5]), (slice(6, 12), rewards[1]))
) / 2
"""
    found = some["loss"]
    exec(alone, some)
    torch.testing.assert_close(found, some["loss"])


@pytest.mark.slow
def test_the_page_on_python_runs_from_its_first_block_to_its_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("examples").symlink_to(ROOT / "examples")
    small = {"run.iterations": 2, "rollout.groups": 2, "rollout.group_size": 4, "evaluation.prompts": 2}
    load_run("examples/quickstart.yaml", small).train()  # the page uses the run of the quickstart
    names = run_blocks(*PYTHON)
    assert Path("adapter-python/dgpo.json").is_file()
    assert not cast(Scores, names["scores"]).missing.any()
    assert "override rollout.stepz=4: unknown key; did you mean steps?" in capsys.readouterr().out


def test_the_page_on_python_names_what_there_is() -> None:
    page = (ROOT / "docs/python.md").read_text()
    for name in {*dgpo_core.__all__} - {"hookimpl", "__version__", "EvaluationResult"}:
        assert re.search(rf"\b{name}\b", page), name
    for name in dgpo_core.functional.__all__:
        assert f"F.{name}(" in page, name
    for name in re.findall(r"`\.(\w+)\(", page):
        assert hasattr(dgpo_core.Run, name), name
