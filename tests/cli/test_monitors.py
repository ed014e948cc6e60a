"""Monitors, statistics of the media and missing scores, as the commands show them."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from dgpo_cli.console import print_evaluation
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import BrightnessReward
from dgpo_schemas.metrics import EvaluationRecord

Run = Callable[..., Any]
Write = Callable[..., Path]

TOY = Path("runs/toy")
STATISTICS = ("diversity", "saturation", "edge_density", "dark_pixels")
LEARNS: dict[str, Any] = {
    "run": {"iterations": 12},
    "rollout": {"groups": 6, "group_size": 8},
    "optimizer": {"learning_rate": 0.05},
    "checkpoints": {"every": 100},
    "objective": {"beta": 10.0, "clip": None, "kl": 0.0},
}
"""Brightness rises, and gloom falls, beyond the intervals within six iterations."""


def watched(**monitors: Any) -> dict[str, Any]:
    sampled = {"every": 3, "prompts": 6, "samples_per_prompt": 8, "model": "policy"}
    return {**sampled, "monitors": {"rewards": [{"use": "gloom"}], **monitors}}


def records(iteration: int) -> dict[str, dict[str, Any]]:
    """Of one evaluation in the run's log, by label."""
    lines = map(json.loads, (TOY / "evaluations.jsonl").read_text().splitlines())
    return {line["reward"]: line for line in lines if line["iteration"] == iteration}


@pytest.fixture(autouse=True)
def _known(known: Registry, gloom: object) -> None:
    known.register(gloom, distribution="gloom")


# -- train ----------------------------------------------------------------------------------------------------------


def test_an_alarm_in_the_log_of_a_run(dgpo: Run, write_run: Write) -> None:
    done = dgpo("train", write_run(**LEARNS, evaluation=watched()))
    assert (done.code, done.out) == (0, "")
    lines = done.err.splitlines()
    first, last = records(0), records(12)
    assert (
        f"alarm after iteration 12: brightness rose from {first['brightness']['value']:.3f} to "
        f"{last['brightness']['value']:.3f} while gloom fell from {first['gloom']['value']:.3f} to "
        f"{last['gloom']['value']:.3f} (tolerance 0.000): a sign of reward hacking; look at the images"
    ) in lines
    gloom = [line for line in lines if re.match(r"  evaluation after iteration 0: gloom 0\.\d{3} \[.*\] over 6", line)]
    assert len(gloom) == 1
    media = ", ".join(f"{name.replace('_', ' ')} {first[name]['value']:.3f}" for name in STATISTICS)
    assert f"  image statistics: {media}" in lines
    assert lines[-1] == "view the report: dgpo report runs/toy"


def test_an_alarm_that_stops_exits_with_1_and_can_be_resumed(dgpo: Run, write_run: Write) -> None:
    file = write_run(**LEARNS, evaluation=watched(alarm="stop"))
    done = dgpo("train", file)
    assert (done.code, done.out) == (1, "")
    *_, iteration, alarm, ended, message = done.err.splitlines()
    assert iteration.startswith("[6/12] reward ")
    assert alarm.startswith("alarm after iteration 6: brightness rose from ")
    assert ended.startswith("failed after ")
    assert message == (
        f"{alarm} (evaluation.monitors.alarm: stop; the state is saved, and --resume continues to the next evaluation)"
    )
    assert max((TOY / "checkpoints").iterdir()).name == "000006"
    done = dgpo("train", file, "--resume")
    assert done.code == 1
    assert done.err.startswith("resuming after iteration 6 of runs/toy for 12 iterations")
    assert "alarm after iteration 9" in done.err
    assert dgpo("train", file, "--resume").code == 1, "the last evaluation alarms as well"
    done = dgpo("train", file, "--resume")
    assert (done.code, len((TOY / "metrics.jsonl").read_text().splitlines())) == (0, 12)


def test_too_many_missing_scores_exit_with_1(dgpo: Run, write_run: Write) -> None:
    file = write_run(
        rewards=[{"use": "brightness"}, {"use": "gloom", "options": {"fail": "raise"}}],
        prompts={"heldout": None}, evaluation={"every": 0},
    )  # fmt: skip
    done = dgpo("train", file)
    assert (done.code, done.out) == (1, "")
    *_, ended, message = done.err.splitlines()
    assert ended.startswith("failed after ")
    assert message == (
        "100% of the scores of iteration 1 are missing (limit scoring.max_missing = 0.2); the state is saved. "
        "gloom: RuntimeError: the lamp is broken"
    )
    assert [path.name for path in (TOY / "checkpoints").iterdir()] == ["000000"]
    # A reward without weight is only watched: it may fail.
    data = yaml.safe_load(file.read_text())
    data["rewards"][1]["weight"] = 0
    data["run"]["name"] = "watched"
    file.write_text(yaml.safe_dump(data))
    assert dgpo("train", file, "--max-iterations", 1).code == 0
    (metrics,) = map(json.loads, Path("runs/watched/metrics.jsonl").read_text().splitlines())
    assert metrics["missing_rewards"] == 0
    assert metrics["rewards"]["gloom"] == {"mean": None, "std": None, "missing": 16}


# -- evaluate -------------------------------------------------------------------------------------------------------


def test_evaluate_shows_monitors_beside_the_target(dgpo: Run, write_run: Write) -> None:
    file = write_run(evaluation=watched())
    done = dgpo("evaluate", file, "--json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(done.out)
    assert [(r["reward"], r["role"]) for r in found] == [
        ("brightness", "target"), ("gloom", "monitor"), *((name, "statistic") for name in STATISTICS)
    ]  # fmt: skip
    for task in ("even", "odd"):
        assert found[0]["groups"][task]["value"] + found[1]["groups"][task]["value"] == pytest.approx(1, abs=1e-6)
    shown = dgpo("evaluate", file).out.splitlines()
    assert re.split(r"\s*[┃]\s*", shown[2])[1:-1] == ["task", "brightness", "95 % interval", "gloom", "95 % interval"]
    media = ", ".join(f"{r['reward'].replace('_', ' ')} {r['value']:.3f}" for r in found[2:])
    assert shown[-2:] == [f"image statistics: {media}", "6 prompts x 8 samples"]


def test_evaluate_counts_what_a_monitor_could_not_score(dgpo: Run, write_run: Write) -> None:
    file = write_run(evaluation=watched(rewards=[{"use": "gloom", "options": {"fail": "dark"}}]))
    assert re.fullmatch(r"gloom: \d+ of 48 samples could not be scored", dgpo("evaluate", file).out.splitlines()[-1])


def test_evaluate_wants_monitors_to_be_able_to_score_the_prompts(
    dgpo: Run, write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    def check(self: BrightnessReward, prompts: Any) -> None:
        asked.append((type(self).__name__, len(prompts)))
        if type(self).__name__ == "Gloom":
            raise UserError("prompt 'p' has no shadow")

    monkeypatch.setattr(BrightnessReward, "check_prompts", check)
    done = dgpo("evaluate", write_run(evaluation=watched()), "--limit", 5)
    assert (done.code, done.out, done.err) == (2, "", "prompt 'p' has no shadow\n"), done.err
    assert asked[:2] == [("BrightnessReward", 5), ("Gloom", 5)]


def test_tables_one_below_the_other_on_a_narrow_console() -> None:
    made = [
        EvaluationRecord.model_validate(
            {"iteration": 0, "model": "ema", "reward": name, "role": role, "value": 0.25, "low": 0.2, "high": 0.3,
             "n": 4, "missing": 0, "groups": {}}
        )
        for name, role in (("target", "target"), ("a-monitor", "monitor"), ("dark_pixels", "statistic"))
    ]  # fmt: skip
    for width, tables in ((80, 1), (40, 2)):
        out = io.StringIO()
        print_evaluation(Console(file=out, width=width), made)
        text = out.getvalue()
        assert text.count("95 % interval") == 2, "statistics have no place in the tables"
        assert text.count("┏") == tables
        assert text.splitlines()[-1] == "image statistics: dark pixels 0.250"


# -- report ---------------------------------------------------------------------------------------------------------


class Sections(HTMLParser):
    """Of a page: rows of each section's tables by the section's heading, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self.text: dict[str, str] = {}
        self._heading, self._in = "", ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self._heading = dict(attrs)["aria-labelledby"] or ""
            self.rows[self._heading], self.text[self._heading] = [], ""
        elif tag == "tr" and self._heading:
            self.rows[self._heading].append([])
        elif tag in ("td", "th") and self._heading:
            self.rows[self._heading][-1].append("")
        self._in = tag if tag in ("td", "th") else self._in

    def handle_endtag(self, tag: str) -> None:
        self._in = "" if tag == self._in else self._in

    def handle_data(self, data: str) -> None:
        if self._heading:
            self.text[self._heading] += data
            if self._in:
                cells = self.rows[self._heading][-1]
                cells[-1] = (cells[-1] + " " + data.strip()).strip()


@pytest.fixture
def page(dgpo: Run) -> Callable[[], Sections]:
    def render() -> Sections:
        done = dgpo("report", TOY)
        assert done.code == 0, done.err
        return Sections(Path(done.out.strip()).read_text())

    return render


def test_a_report_of_a_watched_run(dgpo: Run, write_run: Write, page: Callable[[], Sections]) -> None:
    dgpo("train", write_run(**LEARNS, evaluation=watched(tolerances={"saturation": 0.9})))
    found = page()
    head, *rows = found.rows["monitors"]
    assert head == ["monitor", "meaning", "before", "after", "change", "tolerance", ""]
    first, last = records(0), records(12)
    assert [row[0] for row in rows] == ["gloom", *(name.replace("_", " ") for name in STATISTICS)]
    tolerances = {"gloom": 0.0, "diversity": 0.25 * first["diversity"]["value"], "saturation": 0.9} | {
        name: max(0.05, 0.5 * first[name]["value"]) for name in ("edge_density", "dark_pixels")
    }
    for (_, meaning, before, after, change, tolerance, left), name in zip(rows, ("gloom", *STATISTICS), strict=True):
        assert meaning
        for shown, record in ((before, first[name]), (after, last[name])):
            assert shown == f"{record['value']:.3f} [{record['low']:.3f}, {record['high']:.3f}]"
        moved = last[name]["value"] - first[name]["value"]
        assert float(change.replace("−", "-")) == pytest.approx(moved, abs=6e-4)
        assert float(tolerance) == pytest.approx(tolerances[name], abs=6e-4)
        apart = last[name]["high"] < first[name]["low"] or (
            last[name]["low"] > first[name]["high"] and name not in ("gloom", "diversity")
        )
        assert left == ("outside" if abs(moved) > tolerances[name] and apart else "inside"), name
    assert rows[0][-1] == "outside"
    # The monitor is evaluated like the target, and the media's statistics have curves of their own.
    assert any(row[0] == "mean of tasks" for row in found.rows["scores"])
    assert "gloom" in found.text["scores"]
    curves = " ".join(found.text.values())
    for name in ("Saturation", "Edge density", "Dark pixels"):
        assert name in curves


def test_a_report_of_a_run_that_has_only_begun(dgpo: Run, write_run: Write, page: Callable[[], Sections]) -> None:
    dgpo("train", write_run(evaluation=watched()), "--max-iterations", 1)
    head, *rows = page().rows["monitors"]
    assert head == ["monitor", "meaning", "value"]
    assert [row[0] for row in rows] == ["gloom", *(name.replace("_", " ") for name in STATISTICS)]
    assert all(len(row) == 3 for row in rows)


def test_a_monitor_whose_last_value_is_not_logged(dgpo: Run, write_run: Write, page: Callable[[], Sections]) -> None:
    """As after a crash within a line: nothing is claimed of it."""
    dgpo("train", write_run(evaluation=watched()))
    log = TOY / "evaluations.jsonl"
    lines = [line for line in log.read_text().splitlines() if '"dark_pixels"' not in line or '"iteration": 0' in line]
    assert len(lines) < len(log.read_text().splitlines())
    log.write_text("\n".join(lines) + "\n")
    (row,) = [row for row in page().rows["monitors"] if row[0] == "dark pixels"]
    assert (row[3:5], row[6]) == (["–", ""], "–")


def test_a_report_without_evaluations_has_no_monitors(
    dgpo: Run, write_run: Write, page: Callable[[], Sections]
) -> None:
    dgpo("train", write_run(prompts={"heldout": None}, evaluation={"every": 0}))
    assert "monitors" not in page().rows


def test_seconds_of_each_reward_are_reported_where_there_are_several(
    dgpo: Run, write_run: Write, page: Callable[[], Sections]
) -> None:
    file = write_run(rewards=[{"use": "brightness"}, {"use": "gloom", "weight": 0.5}])
    dgpo("train", file)
    log = TOY / "timings.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        line["rewards"] = {"brightness": 2.0, "gloom": 0.5}
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [row for section in page().rows.values() for row in section]
    # Four iterations of 16 samples: 64 in 8 and in 2 seconds.
    assert ["score: brightness", "8.0s", "–", "8.0"] in rows
    assert ["score: gloom", "2.0s", "–", "32.0"] in rows
