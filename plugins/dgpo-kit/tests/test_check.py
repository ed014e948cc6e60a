"""`dgpo plugins check`: which components, the table, the exit code."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import Field
from torch import Tensor

from dgpo_core.contracts import AdvantageWeighting
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.declared import BrokenPlugin
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_kit.toy import BrightnessOptions, BrightnessReward, run_data
from dgpo_schemas.base import Float, Options

Run = Callable[..., Any]
HERE = __name__


class Bad(AdvantageWeighting):
    """Negative, and raises where rewards tie."""

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        return -advantages.abs()


class Needy(Options):
    """Wants a scale."""

    scale: Float = Field(gt=0, description="Factor.")
    fail: str = Field(default="never", description="Never.")


class Tagged(BrightnessReward):
    """Wants a tag of its own in every prompt."""

    group_by = None

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        from dgpo_core.errors import UserError

        if any("tag" not in prompt.metadata for prompt in prompts):
            raise UserError("prompt: tag is missing")


class Loud(AdvantageWeighting):
    """Says what nobody asked."""

    def weights(self, advantages: Tensor, rewards: Tensor) -> Tensor:
        print("weighing")  # noqa: T201
        warnings.warn("heavy", RuntimeWarning, stacklevel=2)
        logging.getLogger("loud").warning("heavier")
        return advantages.abs()


class Plugin:
    """One of everything that can go wrong."""

    @hookimpl
    def dgpo_weightings(self) -> Sequence[Component]:
        return [
            Component("bad", "Bad", f"{HERE}:Bad"),
            Component("loud", "Loud", f"{HERE}:Loud"),
            Component("gone", "Gone", "dgpo_core.nowhere:X"),
        ]

    @hookimpl
    def dgpo_rewards(self) -> Sequence[Component]:
        return [
            Component("needy", "Needy", "dgpo_kit.toy:BrightnessReward", Needy),
            Component("tagged", "Tagged", f"{HERE}:Tagged", BrightnessOptions),
        ]


@pytest.fixture
def plugin(known: Registry) -> Registry:
    known.register(Plugin(), distribution="other", version="3")
    return known


def rows(done: Any) -> dict[tuple[str, str], str]:
    """(component, check) to result."""
    head, *lines, _ = done.out.splitlines()
    columns = head.index("check"), head.index("result")
    assert head[: columns[0]].strip() == "component"
    return {(r[: columns[0]].strip(), r[slice(*columns)].strip()): r[columns[1] :] for r in lines}


def test_a_sound_component_passes(dgpo: Run) -> None:
    done = dgpo("plugins", "check", "brightness")
    assert (done.code, done.err) == (0, "")
    found = rows(done)
    assert found["reward brightness", "batch-invariance"] == "pass"
    assert found["reward brightness", "examples"] == "skipped: the reward has no examples"
    assert found["toy", "light-import"] == "skipped: it is not installed with an entry point"
    assert set(found.values()) == {"pass", found["reward brightness", "examples"], found["toy", "light-import"]}
    assert done.out.splitlines()[-1] == "2 skipped, 21 passed"


def test_a_violated_requirement_is_named(dgpo: Run, plugin: Registry) -> None:
    done = dgpo("plugins", "check", "bad")
    assert done.code == 1
    found = rows(done)
    assert found["weighting bad", "weights"].startswith("FAIL  weights must be finite and >= 0, got [-0.99")
    assert found["weighting bad", "determinism"] == "pass"
    assert done.out.splitlines()[-1].startswith("1 failed, ")
    assert "Traceback" not in done.err
    assert "AssertionError: weights must be finite" in dgpo("plugins", "check", "bad", "--traceback").err


def test_a_component_that_chatters_leaves_the_table_alone(dgpo: Run, plugin: Registry) -> None:
    done = dgpo("plugins", "check", "loud")
    assert done.code == 0
    assert "weighing" not in done.out
    assert set(done.err.split()) == {"weighing"}
    assert not logging.root.manager.disable


def test_what_cannot_be_built_is_not_checked_further(dgpo: Run, plugin: Registry) -> None:
    done = dgpo("plugins", "check", "gone")
    assert done.code == 1
    found = rows(done)
    assert found["weighting gone", "builds"].startswith("FAIL  PluginError: weighting gone of other 3: cannot import")
    assert ("weighting gone", "weights") not in found


def test_options_that_are_missing_are_asked_for(dgpo: Run, plugin: Registry) -> None:
    done = dgpo("plugins", "check", "needy")
    assert done.code == 2
    assert rows(done)["reward needy", "builds"] == "needs options: scale is missing (Factor)"
    assert ("reward needy", "scores") not in rows(done)
    assert done.out.splitlines()[-1].startswith("1 incomplete, ")
    for given in (["scale=1.0"], ['{"scale": 1.0}'], ['{"scale": 2}', "--option", "scale=1"]):
        assert dgpo("plugins", "check", "needy", "--option", *given).code == 0
    found = rows(dgpo("plugins", "check", "needy", "--option", "scale=9"))
    assert found["reward needy", "scores"].startswith("FAIL  values must lie in the declared range (0.0, 1.0), got ")


def test_prompts_that_are_missing_are_asked_for(dgpo: Run, plugin: Registry, tmp_path: Path) -> None:
    done = dgpo("plugins", "check", "tagged")
    assert done.code == 2
    expected = "needs prompts: it has no examples() and rejects the generated prompts (prompt: tag is missing)"
    assert rows(done)["reward tagged", "builds"] == expected
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a dog", "tag": "x"}\n')
    assert dgpo("plugins", "check", "tagged", "--prompts", tmp_path / "prompts.jsonl").code == 0


def test_a_backbone_is_checked_with_a_checkpoint(dgpo: Run) -> None:
    done = dgpo("plugins", "check", "toy", "--kind", "backbone", "--checkpoint", "missing")
    assert done.code == 2
    assert rows(done)["backbone toy", "lora-builds"].endswith("backbone.checkpoint: missing: no such directory")


def test_by_kind_and_by_distribution(dgpo: Run, plugin: Registry) -> None:
    found = rows(dgpo("plugins", "check", "--kind", "timesteps"))
    assert {component for component, _ in found} == {
        "dgpo", "timesteps inverse-dsm", "timesteps sampler-steps", "timesteps stratified", "timesteps uniform",
    }  # fmt: skip
    found = rows(dgpo("plugins", "check", "--distribution", "Toy", "--kind", "prompts"))
    assert {component for component, _ in found} == {"toy", "prompts toy"}
    assert {component for component, _ in rows(dgpo("plugins", "check", "uniform"))} == {
        "dgpo", "weighting uniform", "timesteps uniform",
    }  # fmt: skip


def test_a_plugin_that_does_not_load_fails(dgpo: Run, known: Registry) -> None:
    known._versions["bad"] = "1"  # as where an entry point does not import
    known.broken.append(BrokenPlugin("bad", "point", "does not import"))
    done = dgpo("plugins", "check", "--distribution", "bad")
    assert done.code == 1
    expected = "FAIL  its plugins must load: bad (entry point point): does not import"
    assert rows(done)["bad", "loads"] == expected
    for name in ("bad", "point"):  # a component that is not there is mostly called like its plugin
        done = dgpo("plugins", "check", name)
        assert (done.code, rows(done)["bad", "loads"]) == (1, expected)


def test_a_name_that_two_declare_fails_for_both(dgpo: Run, known: Registry) -> None:
    class Second:
        @hookimpl
        def dgpo_rewards(self) -> Sequence[Component]:
            return [Component("brightness", "Another", "nowhere:X")]

    known.register(Second(), distribution="other")
    done = dgpo("plugins", "check", "--distribution", "other")
    assert done.code == 1
    assert rows(done)["other", "own-names"] == "FAIL  reward brightness must be unique; toy declares it too"


def test_components_as_a_run_file_uses_them(dgpo: Run, known: Registry, tmp_path: Path) -> None:
    data = run_data(tmp_path, rewards=[{"use": "brightness", "options": {"scale": 0.5}}])
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    done = dgpo("plugins", "check", "--config", tmp_path / "run.yaml")
    assert done.code == 0, done.out
    assert {component for component, _ in rows(done)} >= {
        "backbone toy", "sampler flow-euler", "reward brightness", "prompts toy", "weighting abs-advantage",
        "timesteps uniform", "objective dgpo",
    }  # fmt: skip
    data["rewards"][0]["options"]["scale"] = 9
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    done = dgpo("plugins", "check", "brightness", "--config", tmp_path / "run.yaml")
    assert done.code == 1
    assert {component for component, _ in rows(done)} == {"toy", "reward brightness"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "name the components to check, or set --kind, --distribution or --config"),
        (["brihgtness"], "unknown component 'brihgtness'; did you mean brightness?"),
        (["geneval"], "unknown reward 'geneval'; it comes with dgpo-geneval; in a checkout of dgpo: pip install -e"),
        (["wall"], "unknown component 'wall': no installed plugin declares it (`dgpo plugins list` shows all); if you"),
        (["--kind", "rewards"], "--kind rewards: unknown kind; did you mean reward?"),
        (
            ["--distribution", "toi"],
            "--distribution toi: no installed distribution 'toi' has plugins; did",
        ),
        (["uniform", "--distribution", "toy"], "toy has no component 'uniform' (it has: brightness, toy, win-rate)"),
        (
            ["uniform", "--option", "a=1"],
            "--option: requires a single component, but 2 are selected (weighting uniform, ",
        ),
        (["brightness", "--option", "{"], "--option {: is not valid JSON: "),
        (["brightness", "--option", "{" * 9999], f"--option {'{' * 9999}: is not valid JSON: "),
        (
            ["brightness", "--option", '{"scale": "\\ud800"}'],
            '--option {"scale": "\\ud800"}: `scale` contains half of a char',
        ),
        (["brightness", "--option", "scale"], "--option scale: "),
        (["dgpo", "--checkpoint", "tiny"], "--checkpoint tiny: applies to backbones only, and no backbone is selected"),
        (["dgpo", "--prompts", "x.txt"], "--prompts x.txt: applies to rewards only, and no reward is selected"),
        (["brightness", "--prompts", "x.txt"], "x.txt: "),
        (["--config", "no.yaml"], "no.yaml: "),
    ],
)
def test_mistakes(dgpo: Run, arguments: list[str], expected: str) -> None:
    done = dgpo("plugins", "check", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(expected)


# -- plugins that cannot be loaded, and components that cannot be built
# ---------------------------------------------------

ODD = {
    "dgpo_leaver": ("leaver", "print('noise')\nimport os; os._exit(0)\n"),
    "dgpo_lost": ("lost_module:nothing", ""),
    "dgpo_odd": (
        "odd_parts",
        """
        from dgpo_core.hookspecs import Component, hookimpl
        from dgpo_schemas.base import Options
        class Plain(Options): pass
        class NotAModel: pass
        @hookimpl
        def dgpo_weightings():
            where = "odd_parts"
            return [
                Component("needy", "Needs more.", f"{where}_more:Needy"),
                Component("nowhere", "Is not there.", f"{where}:Absent"),
                Component("shapeless", "Has no model.", f"{where}:Plain", f"{where}:NotAModel"),
                Component("quitter", "Ends.", f"{where}_quits:Quitter"),
            ]
        """,
    ),
}
MORE = {
    "odd_parts_more": "import a_package_that_is_absent",
    "odd_parts_quits": """
        import os
        from dgpo_core.contracts import AdvantageWeighting
        class Quitter(AdvantageWeighting):
            def weights(self, advantages, rewards): os._exit(0)
        """,
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PYTHONPATH with them."""
    directory = tmp_path_factory.mktemp("odd")
    for name, (value, source) in ODD.items():
        (directory / f"{value.partition(':')[0]}.py").write_text(textwrap.dedent(source))
        info = directory / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[dgpo]\n{name[5:]} = {value}\n")
    for name, source in MORE.items():
        (directory / f"{name}.py").write_text(textwrap.dedent(source))
    return os.pathsep.join(filter(None, [str(directory), os.environ.get("PYTHONPATH")]))


@pytest.mark.slow
def test_the_true_reason_is_reported_and_nothing_ends_the_command(odd: str) -> None:
    """One process for all: what would end it would end this test."""
    program = (
        "import sys\nfrom dgpo_cli.main import main\n"
        "for name in sys.argv[1:]:\n"
        "    print('==', name, flush=True)\n"
        "    try: main(['plugins', *name.split()])\n"
        "    except SystemExit as end: print('code', end.code, flush=True)\n"
    )
    asked = ["leaver", "lost", "needy", "nowhere", "shapeless", "quitter", "mystery"]
    commands = [f"check {name}" for name in asked] + ["show shapeless", "list --json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *commands],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": odd},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    components = dict(component.split("\n", 1) for component in done.stdout.split("== ")[1:])
    for name, reason in {
        "leaver": r"loads +FAIL .*importing leaver failed with Exited: os._exit\(0\) \(at .*leaver.py:2\)",
        "lost": "loads +FAIL .*importing lost_module:nothing failed with AttributeError",
        "needy": "builds +FAIL .*ModuleNotFoundError: No module named 'a_package_that_is_absent' .*more.py:1",
        "nowhere": "builds +FAIL .*cannot import odd_parts:Absent: AttributeError",
        "shapeless": "FAIL .*its options must be a pydantic model, not <class 'odd_parts.NotAModel'>",
        "quitter": r"FAIL  Exited: os\._exit\(0\)",
    }.items():
        assert re.search(reason, components[f"check {name}"]), components[f"check {name}"]
        assert components[f"check {name}"].endswith("code 1\n"), name
    assert components["check mystery"] == "code 2\n"
    assert "a plugin that failed to load may provide it: dgpo-leaver (entry point leaver)" in done.stderr
    assert components["show shapeless"] == "code 2\n"
    listed = json.loads(components["list --json"].removesuffix("code 0\n"))
    assert {broken["distribution"] for broken in listed["broken"]} == {"dgpo-leaver", "dgpo-lost"}
