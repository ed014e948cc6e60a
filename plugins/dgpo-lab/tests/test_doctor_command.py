"""The command `dgpo doctor`: how runs ended, damaged logs, the printed output, and a real toy run."""

from __future__ import annotations

import fcntl
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import run_data
from dgpo_lab.doctoring import rendering
from dgpo_lab.doctoring.diagnosis import SUBJECTS, diagnose
from dgpo_lab.doctoring.facts import read_facts
from dgpo_lab.doctoring.findings import Change, percent, written
from tests.doctored import (
    Run,
    Written,
    found,
    sized,
)

# -- how a run ended, and its logs -----------------------------------------------------------------------------------


def test_running_and_killed_runs_are_distinguished(tmp_path: Path, known: Registry) -> None:
    run = Written(n=12, outcome=None, config={"run": {"iterations": 50}}).write(tmp_path / "run")
    (run / ".lock").touch()
    killed = found(diagnose(read_facts(run, known)))["run-killed"]
    assert killed.severity == "warning"
    (advice,) = killed.advice
    assert advice.startswith(f"dgpo train {run}/config.yaml --resume  (continues from the last checkpoint")
    with (run / ".lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        facts = read_facts(run, known)
        assert (facts.state, found(diagnose(facts))) == ("running", {})


def test_missing_and_damaged_lines_are_reported(tmp_path: Path, known: Registry) -> None:
    run = Written().write(tmp_path / "run")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    lines[4], lines[9] = lines[4][:40], '{"iteration": "x"}'
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    finding = found(diagnose(read_facts(run, known)))["logs-incomplete"]
    assert list(finding.evidence) == [
        "2 of 30 lines of metrics.jsonl are invalid and were skipped.",
        "metrics.jsonl has no line for iteration 5, 10",
    ]


def test_logs_of_older_versions_are_read(tmp_path: Path, known: Registry) -> None:
    run = Written().write(tmp_path / "run")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{"iteration": line["iteration"], "reward": line["reward"]} for line in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (run / "timings.jsonl").unlink()
    assert found(diagnose(read_facts(run, known))) == {}


# -- the command -----------------------------------------------------------------------------------------------------


def test_command_prints_findings_and_a_command_to_try(
    dgpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Written(config={"timesteps": {"t_min": 0.0}}).write(Path("runs/sick"))
    done = dgpo("doctor", "runs/sick")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "runs/sick: 30 of 30 iterations, complete; 2 evaluations"
    assert lines[2].startswith("PROBLEM  The training timesteps have no lower bound")
    assert "[t-min-too-low]" in " ".join(lines[2:4])
    assert "  change    timesteps.t_min: 0 -> shift(0.3)" in lines
    assert "  evidence  training timesteps start at sigma 0 (config.yaml)" in lines
    assert "1 problem, no warnings, no notes" in lines
    assert all(line == line.rstrip() and len(line) <= 80 for line in lines[:-1])
    assert lines[-2] == "to try the changes of the first finding:"
    words = shlex.split(lines[-1])
    assert words[:3] == ["dgpo", "train", "runs/sick/config.yaml"]
    checked = dgpo("validate", *words[2:])
    assert checked.code == 0
    assert checked.out.splitlines()[1].startswith("  sick-2: ")
    assert "sigma in [0.5625, 1]" in checked.out


def test_command_on_several_runs_in_json_and_strict(dgpo: Run, tmp_path: Path) -> None:
    sound, sick = tmp_path / "sound", tmp_path / "sick"
    Written().write(sound)
    Written(config={"timesteps": {"t_min": 0.0}}, metrics={"clip_fraction": 0.6}).write(sick)
    done = dgpo("doctor", sound, sick, "--json")
    assert done.code == 0
    first, second = json.loads(done.out)
    assert (first["run"], first["findings"], first["state"]) == (str(sound), [], "complete")
    assert {"subject": "group size", "text": "G = 12"} in first["fine"]
    assert [(finding["id"], finding["severity"]) for finding in second["findings"]] == [
        ("t-min-too-low", "problem"),
        ("clip-fraction-high", "warning"),
    ]
    assert second["findings"][0]["changes"] == [
        {"key": "timesteps.t_min", "present": 0.0, "suggested": "shift(0.3)", "set": "timesteps.t_min=shift(0.3)"}
    ]
    assert dgpo("doctor", sound, "--strict").code == 0
    strict = dgpo("doctor", sound, sick, "--strict")
    assert strict.code == 1
    assert strict.out.count(" of 30 iterations, complete") == 2
    assert dgpo("doctor", sound).out.splitlines()[-1] == "no problems, no warnings, no notes"


def test_a_warning_is_not_a_problem_to_strict(dgpo: Run, tmp_path: Path) -> None:
    done = dgpo("doctor", Written(config=sized(7)).write(tmp_path / "run"), "--strict")
    assert done.code == 0
    assert "no problems, 1 warning, no notes" in done.out


def test_a_path_that_is_not_a_run_is_refused_in_one_line(dgpo: Run, tmp_path: Path) -> None:
    sound = Written().write(tmp_path / "sound")
    (tmp_path / "empty").mkdir()
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "plan.json").write_text("{}")
    silent = Written().write(tmp_path / "silent")
    for log in ("metrics.jsonl", "evaluations.jsonl"):
        (silent / log).write_text("not json\n")
    binary = Written().write(tmp_path / "binary")
    (binary / "metrics.jsonl").write_bytes(b"\xff\xfe\n")
    for name, message in (
        ("missing", "no such run directory"),
        ("empty", "not a run directory (it has no config.yaml)"),
        ("silent", "nothing is logged yet: no iteration and no evaluation has finished"),
        ("binary", "cannot be read"),
        ("ablation", f"an ablation directory; its runs are in {tmp_path}/ablation/cells/VARIANT/seed-N"),
    ):
        done = dgpo("doctor", sound, tmp_path / name)
        assert (done.code, done.out) == (2, "")
        assert len(done.err.splitlines()) == 1
        assert str(tmp_path / name) in done.err
        assert message in done.err


def test_command_is_light_to_import() -> None:
    heavy = ("torch", "rich", "numpy", "yaml")
    code = f"import sys, dgpo_lab.commands.doctor; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "null"), (False, "false"), (3e-4, "0.0003"), (1e6, "1e+06"), (4, "4"), ({"count": 2}, "{count: 2}")],
)
def test_values_are_written_as_run_files_read_them(value: Any, text: str) -> None:
    assert written(value) == text
    assert Change("a.b", value, value).argument == f"a.b={text}"


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (0.043, "4.3 %"), (0.5, "50 %"), (3.69, "369 %")])
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text


def test_a_real_run_from_its_start_to_a_resume(dgpo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor reads what the trainer writes: every subject has a result, and the suggested commands work."""
    monkeypatch.chdir(tmp_path)
    sections: dict[str, Any] = {
        "run": {"iterations": 12},
        "rollout": {"steps": 10, "shift": 3.0, "group_size": 8},
        "timesteps": {"t_min": "shift(0.3)"},
        "objective": {"clip": None},
        "evaluation": {"every": 5, "samples_per_prompt": 2},
    }
    Path("run.yaml").write_text(yaml.safe_dump(run_data("runs", **sections)))
    assert dgpo("train", "run.yaml", "--max-iterations", 4).code == 0
    (paused,) = json.loads(dgpo("doctor", "runs/toy", "--json").out)
    assert [finding["id"] for finding in paused["findings"]] == ["run-interrupted"]
    command = shlex.split(paused["findings"][0]["advice"][0])
    assert dgpo(*command[1 : command.index("--resume") + 1]).code == 0
    (done,) = json.loads(dgpo("doctor", "runs/toy", "--json", "--strict").out)
    assert (done["iterations"], done["state"], done["findings"]) == (12, "complete", [])
    assert {one["subject"] for one in done["fine"]} == {
        "ending", "logs", "missing scores", "constant rewards", "t_min", "skipped updates", "weights", "sigmoid",
        "equal rewards", "group size", "sampler", "drift", "monitors", "held-out score", "diversity", "detail",
        "gradients", "residual", "zero weights", "range", "time",
    }  # fmt: skip
    assert [one["subject"] for one in done["too_early"]] == ["reward trend"]
    still = ("train", "run.yaml", "--set", "run.name=still", "--set", "optimizer.learning_rate=1e-9")
    assert dgpo(*still).code == 0
    (sick,) = json.loads(dgpo("doctor", "runs/still", "--json").out)
    assert [finding["id"] for finding in sick["findings"]] == ["weights-not-moving"]


def test_every_rule_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs/doctor.md").read_text()
    for name in {rule.id for subject in SUBJECTS for rule in subject.rules}:
        assert f"`{name}`" in page, name


def test_styles_cover_every_severity() -> None:
    assert set(rendering.STYLES) == {"problem", "warning", "note"}
