"""The output of `dgpo plan` and `dgpo bench`, as text and as JSON."""

# ruff: noqa: F811 - fixtures are imported to be found

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import dgpo_core.plugins.registry as registry_module
import dgpo_lab.planning.plan
from dgpo_cli.main import main
from dgpo_cli.working import Work
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import run_data, sizes_plugin
from dgpo_lab.commands.bench import _miniature
from dgpo_lab.planning.plan import Plan
from dgpo_schemas.run import RunConfig
from tests.conftest import registry  # noqa: F401

Run = Callable[..., "Outcome"]
SMALL = ["--set", "rollout.groups=2", "--set", "rollout.steps=2", "--set", "rollout.group_size=2"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def models() -> dict[bool, Any]:
    """Caches the meta model of the miniature."""
    return {}


@pytest.fixture
def run(
    models: dict[bool, Any], registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs the command line with all installed plugins and the toy components."""
    monkeypatch.setattr(registry_module, "get_registry", lambda: registry)

    measure = dgpo_lab.planning.plan.measure_model

    def once(config: RunConfig, registry: Registry, *on_message: Any) -> Any:
        kind = config.backbone.gradient_checkpointing
        if config.backbone.use != "sd3" or kind not in models:
            models[kind] = measure(config, registry)
        return models[kind]

    monkeypatch.setattr(dgpo_lab.planning.plan, "measure_model", once)

    def call(*arguments: str) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main(list(arguments))
        captured = capsys.readouterr()
        return Outcome(int(caught.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(_miniature(tmp_path))


def test_plan_as_text(run: Run, file: str) -> None:
    found = run("plan", file, "--card", "all", "--processes", "2", "--price", "2")
    assert found.code == 0, found.err
    assert "bench: 96 samples per iteration, on 2 GPUs" in found.out
    for word in (
        "text encoders",
        "rollout",
        "decode",
        "optimize",
        "h200",
        "rtx4090",
        "assumed (--fraction, --measured)",
    ):
        assert word in found.out
    assert max(map(len, found.out.splitlines())) <= 80, "fits a terminal"
    held, _, peaks = found.out.partition("GiB\n")[2].partition("peak memory per GPU, GiB\n")
    assert "EMA and initial weights" in held
    ends = {re.match(r"  .*\d", row).end() for row in (held + peaks).splitlines() if re.match(r"  .*\d$", row)}  # type: ignore[union-attr]
    assert len(ends) == 1, "numbers are right-aligned in one column"


def test_plan_as_json_with_measured_fractions(run: Run, file: str, tmp_path: Path) -> None:
    measured = tmp_path / "bench.json"
    measured.write_text(json.dumps({"phases": {"rollout": {"tflops": 98.9}, "optimize": {"tflops": 494.5}}}))
    plain, better = (
        json.loads(run("plan", file, "--json", "--card", "h100", "--fraction", "0.5", *more).out)
        for more in ([], ["--measured", str(measured)])
    )
    assert better["fractions"] == pytest.approx({"rollout": 0.1, "optimize": 0.5})
    assert better["operations"] == plain["operations"]
    seconds = [plan["cards"]["h100"]["seconds"] for plan in (plain, better)]
    assert seconds[1]["rollout"] == pytest.approx(5 * seconds[0]["rollout"])
    assert plain["operations"]["optimize"] / (989e12 * 0.5) == pytest.approx(seconds[0]["optimize"])
    each = sum(seconds[0].values())
    assert plain["cards"]["h100"]["usd_per_1000_iterations"] == pytest.approx(each * 1000 / 3600 * 2.5)


def test_the_plan_uses_the_largest_size_of_the_prompts(
    run: Run, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.register(sizes_plugin, distribution="toy-sizes")
    monkeypatch.setattr(dgpo_lab.planning.plan, "measure_model", lambda config, *_: config.rollout.height_width)
    plan = Plan(1, {}, {"optimize": 1.0}, {"rollout": 1.0, "optimize": 1.0}, 0.0)
    monkeypatch.setattr(dgpo_lab.planning.plan, "make_plan", lambda one, model, *_: planned.append(model) or plan)
    planned: list[tuple[int, int]] = []
    file = tmp_path / "run.yaml"

    def prompts(**sections: Any) -> None:
        file.write_text(yaml.safe_dump(run_data(tmp_path, prompts=sections)))

    prompts(train={"use": "toy-sizes", "options": {"sizes": [[8, 8], [8, 24], [16, 8]]}})
    assert "The plan assumes 8x24, the largest size of the prompts, for all samples." in run("plan", str(file)).out
    assert json.loads(run("plan", str(file), "--json", "--fit", "1").out)["size"] == [8, 24]
    prompts(train={"file": "missing.jsonl"})
    assert "largest size" not in run("plan", str(file)).out
    assert planned == [(8, 24)] * 3 + [(8, 8)]


def test_a_run_that_fits_needs_no_changes(run: Run, file: str) -> None:
    found = run("plan", file, "--fit", "1", "--json")
    assert json.loads(found.out)["changes"] == {}
    peaks = json.loads(found.out)["peak_bytes"]
    assert max(peaks.values()) < 2**30


def test_proposed_settings_are_valid_in_the_run_file(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy backbone has no option decode_chunk."""

    def planned(one: RunConfig, *_: Any) -> Plan:
        size = 2.0**30 * (one.optimizer.micro_batch or 8)
        return Plan(1, {}, {"optimize": size}, {"rollout": 1.0, "optimize": 1.0}, 0.0)

    monkeypatch.setattr(dgpo_lab.planning.plan, "measure_model", lambda *_: print("noise"))  # noqa: T201
    monkeypatch.setattr(dgpo_lab.planning.plan, "make_plan", planned)
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(run_data(tmp_path, rollout={"groups": 2, "group_size": 8})))
    changes = json.loads(run("plan", str(file), "--fit", "2", "--json").out)["changes"]
    assert changes == {"rollout.micro_batch": 4, "optimizer.micro_batch": 2}
    settings = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    assert run("validate", str(file), *settings).code == 0


def test_it_tells_what_it_does(run: Run, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `dgpo_cli.working` shows it."""
    told: list[str] = []
    say = Work.say

    def saying(work: Work, text: str) -> None:
        told.append(text)
        say(work, text)

    monkeypatch.setattr(Work, "say", saying)
    found = run("plan", file, *SMALL)
    assert (found.code, found.err) == (0, "")
    assert "rollout: 4 of 4 samples" in told
    assert any(text.startswith("optimize: ") for text in told)
    told.clear()
    found = run("bench", file, *SMALL, "--iterations", "1")
    assert (found.code, found.err) == (0, "")
    assert {"iteration 1 of 2: rollout 4/4", "iteration 2 of 2: rollout 4/4", "measuring the ceiling"} <= set(told)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--card", "h20"], "--card: unknown GPU 'h20'; did you mean h200? (known: all, b200,"),
        (["--measured", "none.json"], "--measured: none.json is not an output of `dgpo bench --json`"),
        (
            ["--measured", "odd.json"],
            "not an output of `dgpo bench --json`: nan TFLOP/s in rollout",
        ),
        (["--card", "all", "--measured", "none.json"], "--measured: a measurement is of one GPU"),
    ],
)
def test_invalid_options_are_reported(
    options: list[str], complaint: str, run: Run, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.json").write_text('{"phases": {"rollout": {"tflops": NaN}, "optimize": {"tflops": 1}}}', encoding="utf-8")
    found = run("plan", file, *options)
    assert found.code == 2
    assert complaint in found.err


def test_bench_as_json(run: Run, tmp_path: Path) -> None:
    found = run("bench", "--iterations", "1", "--json", *SMALL)
    assert found.code == 0, found.err
    measured = json.loads(found.out)
    assert measured["samples"] == 4
    assert list(measured["phases"]) == ["rollout", "score", "compute_advantages", "optimize"]
    for phase in ("rollout", "optimize"):
        row = measured["phases"][phase]
        assert row["samples_per_second"] == pytest.approx(4 / row["seconds"])
        assert row["fraction"] == pytest.approx(row["tflops"] / measured["ceiling_tflops"])
    planned = json.loads(run("plan", str(_miniature(tmp_path)), "--json", *SMALL).out)
    row = measured["phases"]["optimize"]
    assert row["tflops"] * row["seconds"] * 1e12 == pytest.approx(planned["operations"]["optimize"])


def test_a_bench_of_a_backbone_without_a_meta_model(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_data(tmp_path)))
    found = run("bench", str(tmp_path / "run.yaml"), "--iterations", "1")
    assert found.code == 0, found.err
    assert "FLOPs are unknown: the backbone has no meta model" in found.out
    assert not (tmp_path / "toy").exists()
