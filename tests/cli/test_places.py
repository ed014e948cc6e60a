"""Commands from other directories, on moved runs and moved bases, with `~` in every path."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import ToyBackbone, ToyOptions, run_data

Run = Callable[..., Any]


class FromDisk(ToyBackbone):
    """The toy model, whose base is a directory that must be there."""

    def base_directory(self) -> Path | None:  # type: ignore[override]
        from dgpo_core.weights import resolve_checkpoint

        return Path(resolve_checkpoint(self.section.checkpoint))


class _Plugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return [Component("from-disk", "Toy of a directory", f"{__name__}:FromDisk", ToyOptions)]


def write(base: Path, factor: float = 1.0) -> None:
    base.mkdir(exist_ok=True)
    safetensors.torch.save_file({"w": factor * torch.arange(1.0, 9.0)}, base / "model.safetensors")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with a run file, all of whose paths are relative to it, and a run of it; elsewhere is empty."""
    home = tmp_path / "home"
    (home / "elsewhere").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    write(home / "base")
    (home / "p.txt").write_text("a\nb\n")
    (home / "h.txt").write_text("c\nd\n")
    data = run_data(
        "runs", run={"iterations": 2}, backbone={"use": "from-disk", "checkpoint": "base"},
        prompts={"train": "p.txt", "heldout": "h.txt"}, evaluation={"every": 0, "prompts": 2, "images": 0},
    )  # fmt: skip
    (home / "run.yaml").write_text(yaml.safe_dump(data))
    return home


@pytest.fixture
def begun(home: Path, dgpo: Run, known: Registry) -> Path:
    """After one iteration of two."""
    known.register(_Plugin(), distribution="from-disk")
    assert dgpo("train", "run.yaml", "--max-iterations", 1, "--quiet").code == 0
    return home / "runs" / "toy"


def test_a_run_is_found_from_anywhere(begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(begun.parent.parent / "elsewhere")
    for arguments in (["sample", "-n", 1], ["evaluate"], ["export"], ["report"]):
        command, *rest = arguments
        done = dgpo(command, "../runs/toy", *rest)
        assert (done.code, "Traceback" in done.err) == (0, False), done.err
    done = dgpo("train", "../runs/toy/config.yaml", "--resume", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (begun / "checkpoints/000002").is_dir()


def test_a_moved_run_is_found_where_it_is(begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = begun.parent.parent / "elsewhere"
    shutil.move(begun, elsewhere / "first")
    monkeypatch.chdir(elsewhere)
    assert dgpo("sample", "first", "-n", 1).code == 0
    done = dgpo("train", "first/config.yaml", "--resume", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert (elsewhere / "first/checkpoints/000002").is_dir()
    assert not begun.exists()
    assert yaml.safe_load((elsewhere / "first/config.yaml").read_text())["run"]["output"] == str(elsewhere)


def test_a_base_that_is_gone_was_a_directory(begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is no model of the Hub that happens to be called so."""
    home = begun.parent.parent
    (home / "base").rename(home / "moved")
    monkeypatch.chdir(home / "elsewhere")
    done = dgpo("export", begun)
    assert (done.code, done.err) == (
        2, f"{begun}: its base model was in the directory {home}/base, which no longer exists; if it was "
        "moved, set its path: --set backbone.checkpoint=PATH\n",
    )  # fmt: skip
    for command in ("sample", "evaluate", "export"):
        assert dgpo(command, begun, "--set", "backbone.checkpoint=../moved").code == 0
    write(home / "moved", 2.0)
    done = dgpo("export", begun, "-o", "other", "--set", "backbone.checkpoint=../moved")
    assert done.code == 2
    assert f"the base weights in {home}/moved (formerly {home}/base) differ from those" in done.err


def test_another_base_is_refused_by_every_command_unless_it_is_accepted(begun: Path, dgpo: Run) -> None:
    write(begun.parent.parent / "base", 1.5)
    for arguments in (["sample", begun, "-n", 1], ["evaluate", begun], ["export", begun],
                      ["train", "run.yaml", "--resume", "--quiet"]):  # fmt: skip
        done = dgpo(*arguments)
        assert (done.code, done.out) == (2, "")
        assert "model.safetensors has changed; put them back, or accept them with --accept base" in done.err
        assert dgpo(*arguments, "--accept", "base").code == 0


def test_an_exported_adapter_says_which_base_it_is_for(begun: Path, dgpo: Run) -> None:
    assert dgpo("export", begun).code == 0
    files = json.loads((begun / "run.json").read_text())["base"]["files"]
    assert json.loads(Path("adapter/dgpo.json").read_text())["base_files"] == files != {}


def test_accept_belongs_to_resume(begun: Path, dgpo: Run) -> None:
    done = dgpo("train", "run.yaml", "--accept", "base")
    assert (done.code, done.err) == (2, "--accept: requires --resume; a new run has nothing to accept\n")
    assert dgpo("train", "run.yaml", "--resume", "--accept", "all").code == 2


def test_home_in_every_path(begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an option's value, where a shell leaves it alone, and in a run file."""
    home = begun.parent.parent
    monkeypatch.chdir(home / "elsewhere")
    (home / "preset.yaml").write_text("rollout: {steps: 2}\n")
    for arguments in (
        ["sample", "~/runs/toy", "-n", 1, "--prompts", "~/p.txt", "--output=~/drawn"],
        ["evaluate", "~/runs/toy", "--prompts=~/p.txt", "--output=~/scores.json"],
        ["export", "~/runs/toy", "--output=~/adapter"],
        ["report", "~/runs/toy", "--output=~/page.html"],
        ["doctor", "~/runs/toy"],
        ["validate", "~/run.yaml", "--preset", "~/preset.yaml", "--set", "prompts={train: ~/p.txt}"],
        ["score", "~/runs/toy", "~/drawn", "--output=~/scored.json", "-p", "a"],
        ["schema", "--output=~/json"],
        ["plugins", "new", "reward", "shiny", "--output=~/elsewhere"],
        ["train", "~/run.yaml", "--quiet", "--set", "run.output=~/more", "--set", "backbone.checkpoint=~/base",
         "--set", "prompts={train: ~/p.txt}"],
    ):  # fmt: skip
        done = dgpo(*arguments)
        assert done.code == 0, (arguments, done)
    for name in ("drawn/grid.png", "scores.json", "adapter/dgpo.json", "page.html", "scored.json", "json", "more/toy"):
        assert (home / name).exists(), name
    assert [path.name for path in (home / "elsewhere").iterdir()] == ["dgpo-shiny"]


def test_the_home_of_nobody(begun: Path, dgpo: Run) -> None:
    done = dgpo("export", begun, "--output=~no-such/adapter")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("'~no-such/adapter': the home directory of no-such is not known")
    done = dgpo("validate", "run.yaml", "--set", "run.output=~no-such/runs")
    assert done.code == 2
    assert "--set run.output=~no-such/runs: '~no-such/runs': the home directory of no-such is not known" in done.err


def test_a_whole_project_may_be_renamed(begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lay beside the run is found where it is now, and digests tell that it is the same."""
    home = begun.parent.parent
    monkeypatch.chdir(home.parent)
    home.rename(home.parent / "renamed")
    for command in ("sample", "evaluate", "export"):
        assert dgpo(command, "renamed/runs/toy").code == 0
    done = dgpo("train", "renamed/runs/toy/config.yaml", "--resume", "--quiet")
    assert (done.code, done.err, home.exists()) == (0, "", False)
    saved = yaml.safe_load(Path("renamed/runs/toy/config.yaml").read_text())
    assert saved["backbone"]["checkpoint"] == str(home.parent / "renamed/base")
    write(Path("renamed/base"), 2.0)
    assert "differ from those at the start of the run" in dgpo("export", "renamed/runs/toy", "-o", "other").err


def test_a_run_of_an_older_version_is_found_from_anywhere(
    begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its paths are relative to where it was started, which its place tells."""
    home, file = begun.parent.parent, begun / "config.yaml"
    file.write_text(file.read_text().partition("\n")[2].replace(f"{home}/", ""))
    monkeypatch.chdir(home / "elsewhere")
    write(Path("base"), 2.0)  # which is another
    for arguments in (["sample", "-n", 1], ["evaluate"], ["export"]):
        command, *rest = arguments
        assert dgpo(command, "../runs/toy", *rest).code == 0
    done = dgpo("train", "../runs/toy/config.yaml", "--resume", "--quiet")
    assert (done.code, done.err) == (0, "")
    saved = yaml.safe_load(file.read_text())
    assert (saved["backbone"]["checkpoint"], saved["run"]["output"]) == (f"{home}/base", f"{home}/elsewhere/../runs")


def test_a_run_file_is_resumed_from_elsewhere(begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths that lead nowhere from there are those of the run; what is set on the command line is not."""
    monkeypatch.chdir(begun.parent.parent / "elsewhere")
    done = dgpo("train", "../run.yaml", "--resume", "--quiet")
    assert done.code == 2
    assert "nothing to resume here (run.output is relative to the working directory," in done.err
    resume = ["train", "../run.yaml", "--resume", "--quiet", "--set", "run.output=../runs"]
    done = dgpo(*resume, "--set", "prompts.train=p.txt")
    assert (done.code, done.err) == (2, "prompts.train: p.txt: no such prompt file\n")
    done = dgpo(*resume)
    assert (done.code, done.err) == (0, "")


def test_a_base_that_is_gone_is_not_looked_for_on_the_hub_by_a_resume(begun: Path, dgpo: Run) -> None:
    home = begun.parent.parent
    (home / "base").rename(home / "moved")
    done = dgpo("train", "run.yaml", "--resume", "--quiet")
    assert (done.code, done.err.partition(" (")[0]) == (2, f"backbone.checkpoint: no such directory: {home}/base")
    assert dgpo("train", "run.yaml", "--resume", "--quiet", "--set", "backbone.checkpoint=moved").code == 0


@pytest.mark.parametrize("command", ["evaluate", "sample"])
def test_other_prompts_than_the_runs_are_refused_unless_they_are_named(begun: Path, dgpo: Run, command: str) -> None:
    (begun.parent.parent / "h.txt").write_text("c\ne\n")
    done = dgpo(command, begun, "-n", 1)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"{begun}: the prompts differ from those of the run: prompts.heldout has changed since the run started "
        "(SHA-256 in run.json); put them back, or name another file with --prompts\n"
    )
    assert dgpo(command, begun, "-n", 1, "--prompts", "h.txt").code == 0


def test_an_adapter_names_its_base_by_an_absolute_path(begun: Path, dgpo: Run) -> None:
    home = begun.parent.parent
    (home / "base").rename(home / "moved")
    assert dgpo("export", begun, "--set", "backbone.checkpoint=moved").code == 0
    assert json.loads(Path("adapter/dgpo.json").read_text())["base"] == f"{home}/moved"


def test_a_run_and_what_holds_it_may_both_be_renamed(begun: Path, dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    home = begun.parent.parent
    begun.rename(begun.parent / "my run")
    monkeypatch.chdir(home.parent)
    home.rename(home.parent / "renamed")
    assert dgpo("export", "renamed/runs/my run").code == 0
    resume = ["train", "renamed/runs/my run/config.yaml", "--resume", "--quiet"]
    done = dgpo(*resume)
    assert (done.code, done.err) == (
        2, f"{home.parent}/renamed/runs/my run: a resumed run takes the name of its directory, which may contain "
        "only letters, digits, dots, dashes and underscores; rename it\n",
    )  # fmt: skip
    Path("renamed/runs/my run").rename("renamed/runs/second")
    resume[1] = "renamed/runs/second/config.yaml"
    done = dgpo(*resume)
    assert (done.code, done.err) == (0, "")
