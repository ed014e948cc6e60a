"""The kit as a plugin's author has it: `pytest_plugins = ["dgpo_kit"]`, `contract_tests`, `toy_run`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_kit import Given, contract_tests
from dgpo_kit.collecting import suite

PLUGIN = """
import numpy
from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

@hookimpl
def dgpo_rewards():
    names = ("Sound", "Global", "Batch", "Range", "NoMissing", "Copies")
    return [Component(name.lower(), name, f"odd.rewards:{name}", "odd.options:OddOptions") for name in names]

@hookimpl
def dgpo_timestep_policies():
    return [Component("forgets", "Forgets what it saw", "odd.rewards:Forgets")]
"""
OPTIONS = """
from pydantic import Field
from dgpo_schemas.base import Float, Options

class OddOptions(Options):
    level: Float = Field(description="Added to every value.")
"""
REWARDS = """
import torch
from dgpo_core.contracts import RewardModel, TimestepPolicy
from dgpo_core.types import Scores

class Sound(RewardModel):
    range = (0.0, 1.0)
    def value(self, media):
        return media.float().mean((1, 2, 3)).clamp(0, 1) + self.options.level
    def score(self, media, prompts):
        values = self.value(media)
        return Scores(values, torch.zeros(len(values), dtype=torch.bool))

class Global(Sound):
    def value(self, media):
        torch.rand(())
        return super().value(media)

class Batch(Sound):
    def value(self, media):
        values = super().value(media)
        return values / values.amax() if len(values) else values

class Range(Sound):
    range = (0.0, 0.5)

class NoMissing(Sound):
    def value(self, media):
        return 0 / super().value(media).where(media.amax((1, 2, 3)) > 0, torch.zeros(len(media)))

class Copies(Sound):
    def value(self, media):
        return super().value(media.mul_(0.5))

class Forgets(TimestepPolicy):
    seen = 0
    def observe(self, metrics):
        self.seen += 1
    def draw(self, count, context, draws):
        low = context.t_min + (context.t_max - context.t_min) * self.seen / (1 + self.seen)
        return low + (context.t_max - low) * draws.uniform(count)
"""
TESTS = """
from dgpo_kit import Given, contract_tests

names = ("sound", "global", "batch", "range", "nomissing", "copies")
test_contract = contract_tests("dgpo-odd", {name: Given({"level": 0.0}) for name in names})
test_bare = contract_tests("DGPO_odd")

def test_run(toy_run):
    run = toy_run(rewards=[{"use": "sound", "options": {"level": 0.25}}], run={"iterations": 3})
    assert len(run.metrics) == 3
    assert (run.directory / "config.yaml").is_file()
    assert run.metrics[0]["rewards"]["sound"]["mean"] > 0.25

def test_run_of_the_toy_itself(toy_run):
    assert set(toy_run().metrics[0]["rewards"]) == {"toy"}
"""


@dataclass(frozen=True)
class Report:
    """What became of each test, "passed" or why not."""

    results: dict[str, str]
    out: str


Pytester = Callable[..., Report]


@pytest.fixture(scope="module")
def pytester(tmp_path_factory: pytest.TempPathFactory) -> Pytester:
    """A process of pytest where `dgpo-odd` is installed; warnings are errors."""
    site = tmp_path_factory.mktemp("site")
    info = site / "dgpo_odd-0.1.0.dist-info"
    for path, text in {
        site / "odd" / "__init__.py": "",
        site / "odd" / "plugin.py": PLUGIN,
        site / "odd" / "options.py": OPTIONS,
        site / "odd" / "rewards.py": REWARDS,
        info / "METADATA": "Metadata-Version: 2.1\nName: dgpo-odd\nVersion: 0.1.0\n",
        info / "entry_points.txt": "[dgpo]\nodd = odd.plugin\n",
    }.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def run(tests: str) -> Report:
        directory = tmp_path_factory.mktemp("author")
        (directory / "conftest.py").write_text('pytest_plugins = ["dgpo_kit"]\n')
        (directory / "test_odd.py").write_text(tests)
        (directory / "pytest.ini").write_text("[pytest]\n")
        path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--junitxml=report.xml"],
            cwd=directory, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True,
        )  # fmt: skip
        cases = ElementTree.parse(directory / "report.xml").iter("testcase")
        found = {str(case.get("name")): next((str(e.get("message")) for e in case), "passed") for case in cases}
        return Report(found, done.stdout)

    return run


def test_every_requirement_is_a_test_and_violated_ones_fail(pytester: Pytester) -> None:
    report = pytester(TESTS)
    contract = {
        name.removeprefix("test_contract[").removesuffix("]"): result
        for name, result in report.results.items()
        if name.startswith("test_contract[")
    }
    assert contract["reward-sound:batch-invariance"] == "passed"
    assert contract["dgpo-odd:loads"] == "passed"
    broken = {
        "dgpo-odd:light-import": "importing odd.plugin must not import numpy",
        "reward-global:random-state": "a reward must not change the global random state of torch",
        "reward-batch:batch-invariance": "a score must not depend on the other samples of the batch",
        "reward-batch:not-finite": "must not change the scores of other samples",
        "reward-range:scores": "values must lie in the declared range (0.0, 0.5)",
        "reward-range:sizes": "values must lie in the declared range (0.0, 0.5)",
        "reward-nomissing:scores": "nonfinite values must be marked missing",
        "reward-nomissing:sizes": "nonfinite values must be marked missing",
        "reward-copies:untouched": "media must not be modified",
        "timesteps-forgets:state-round-trip": "restored from its JSON state must be the same",
    }
    fine = re.compile("passed$|the reward has no examples|the policy does not measure the model")
    failed = {name: result for name, result in contract.items() if not fine.search(result)}
    assert failed.keys() == broken.keys(), report.out
    for name, requirement in broken.items():
        assert requirement in failed[name]
    assert {name for name, result in report.results.items() if name.startswith("test_run") and result == "passed"} == {
        "test_run", "test_run_of_the_toy_itself",
    }  # fmt: skip
    lack = "options: level is missing (Added to every value)"
    assert report.results["test_bare[reward-sound:builds]"].endswith(f"NeedsInput: {lack}")
    assert report.results["test_bare[reward-sound:scores]"] == lack  # skipped


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("dgpo-nothing", {}, r"no installed distribution 'dgpo-nothing' has plugins.*is it installed in this env"),
        ("toi", {}, r"no installed distribution 'toi' has plugins; did you mean toy\?"),
        (
            "toy",
            {"brihgtness": Given()},
            r"'brihgtness' is not a component of the distribution; did you mean brightness\?",
        ),
    ],
)
def test_mistakes_are_found_when_tests_are_collected(
    registry: Registry, name: str, given: dict[str, Given], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        contract_tests(name, given, registry=registry)


def test_a_component_is_given_what_its_kind_and_name_say(registry: Registry) -> None:
    """The toy has a backbone and a prompt source of one name."""
    given = {"prompts toy": Given({"count": 0}), "toy": Given()}
    found = {(what, check.name): check for what, check in suite(registry, "toy", given)}
    with pytest.raises(AssertionError, match="train: there must be at least one prompt"):
        found["prompts toy", "splits"].run()
    found["backbone toy", "lora-builds"].run()
