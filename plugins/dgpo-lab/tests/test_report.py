"""`dgpo report` on synthetic run directories with known numbers: the command, the summary and the page."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_lab.commands.report import report
from dgpo_lab.reporting import figures, page, summary
from dgpo_lab.reporting.data import Evaluation, RunData, Score, read_run, reward_range
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.sections.rewards import RewardBlock
from tests.reported import (
    AFTER,
    BEFORE,
    TASKS,
    Page,
    evaluation_line,
    metrics_line,
    path_points,
    score,
    timing_line,
    write_config,
    write_lines,
    write_run,
)

# -- the command -----------------------------------------------------------------------------------------------------


def invoke(*arguments: str | Path) -> Any:
    app = typer.Typer()
    app.command()(report)
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_command_writes_one_page_and_prints_its_path(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quickstart", 4, 2)
    done = invoke(run)
    assert done.exit_code == 0
    assert done.stdout == f"{run / 'report.html'}\n"
    assert "brightness rose from" in done.stderr
    assert (run / "report.html").read_text().rstrip().endswith("</html>")
    elsewhere = tmp_path / "page.html"
    assert invoke(run, "--output", elsewhere).stdout == f"{elsewhere}\n"
    assert Page(elsewhere.read_text()).all("h1")


@pytest.mark.parametrize(
    "output, message",
    [
        ("", "is a directory; give a file name"),
        ("nowhere/page.html", "no such directory"),
        ("/proc/p.html", "p.html"),
    ],
)
def test_command_refuses_outputs_it_cannot_write(tmp_path: Path, output: str, message: str) -> None:
    run = write_run(tmp_path / "quickstart", 1, 1)
    done = invoke(run, "--output", tmp_path / output)
    assert isinstance(done.exception, UserError)
    assert message in str(done.exception)


def test_command_is_light_to_import() -> None:
    heavy = ("torch", "matplotlib", "jinja2", "numpy")
    code = f"import sys, dgpo_lab.commands.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# -- runs that cannot be reported ------------------------------------------------------------------------------------


def test_a_path_that_is_not_a_run_directory_is_refused(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match="nowhere: no such run directory"):
        read_run(tmp_path / "nowhere", registry)
    with pytest.raises(UserError, match=r"not a run directory \(it has no config.yaml\)"):
        read_run(tmp_path, registry)


def test_a_run_without_logs_is_refused(tmp_path: Path, registry: Registry) -> None:
    write_config(tmp_path / "fresh")
    with pytest.raises(UserError, match="nothing is logged yet: no iteration and no evaluation has finished"):
        read_run(tmp_path / "fresh", registry)


def test_invalid_configurations_and_binary_logs_are_refused(tmp_path: Path, registry: Registry) -> None:
    run = write_run(tmp_path / "quickstart", 1, 1)
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read"):
        read_run(run, registry)
    (run / "config.yaml").write_text("run: {name: x}\n")
    with pytest.raises(ConfigError, match="iterations"):
        read_run(run, registry)


# -- the summary -----------------------------------------------------------------------------------------------------


def test_outcome_of_a_complete_run(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    # The means of BEFORE and AFTER are 0.48 and 0.74: half of the distance to 1.
    run = read(write_run(tmp_path / "quickstart"))
    assert (
        summary.outcome(run)
        == "brightness rose from 0.48 [0.44, 0.52] to 0.74 [0.70, 0.78]: 50 % of the distance to 1.0."
    )


def outcome_of(run: RunData, before: Score, after: Score, limits: tuple[float, float] | None = None) -> str:
    moments = [Evaluation(i, "ema", "r", "target", s, {}, 0) for i, s in ((0, before), (5, after))]
    ranges = {} if limits is None else {"r": limits}
    return summary.outcome(RunData(**{**vars(run), "evaluations": {"r": moments}, "ranges": ranges}))


@pytest.mark.parametrize(
    "before, after, limits, sentence",
    [
        (score(0.5), score(0.7), None, "r rose from 0.50 [0.46, 0.54] to 0.70 [0.66, 0.74]."),
        (score(0.5), score(0.7), (0.0, math.inf), "r rose from 0.50 [0.46, 0.54] to 0.70 [0.66, 0.74]."),
        (score(0.5), score(1.5), (0.0, 1.0), "r rose from 0.50 [0.46, 0.54] to 1.50 [1.46, 1.54]."),
        (
            score(2.0),
            score(5.0),
            (0.0, 10.0),
            "r rose from 2.00 [1.96, 2.04] to 5.00 [4.96, 5.04]: 38 % of the distance to 10.0.",
        ),
        (score(0.5), score(0.3), (0.0, 1.0), "r fell from 0.50 [0.46, 0.54] to 0.30 [0.26, 0.34]."),
        (score(0.5), score(0.52), None, "r rose from 0.50 [0.46, 0.54] to 0.52 [0.48, 0.56]; the intervals overlap."),
        (score(0.5), score(0.5), (0.0, 1.0), "r did not change: 0.50 [0.46, 0.54] before, 0.50 [0.46, 0.54] after."),
        (score(0.5, None), score(0.7, None), None, "r rose from 0.500 to 0.700."),
        (
            score(21.7, 0.004),
            score(21.8, 0.003),
            None,
            "r rose from 21.700 [21.696, 21.704] to 21.800 [21.797, 21.803].",
        ),
    ],
)
def test_outcome_in_every_case(
    tmp_path: Path, read: Callable[[Path], RunData], before: Score, after: Score, limits: Any, sentence: str
) -> None:
    run = read(write_run(tmp_path / "quickstart", 1, 1))
    assert outcome_of(run, before, after, limits) == sentence


def test_outcome_without_a_second_evaluation(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = write_run(tmp_path / "young", 2, 2)
    write_lines(run, "evaluations.jsonl", [evaluation_line(0, 0)])
    first = "brightness of the base model is 0.48 [0.44, 0.52]; there is no later evaluation to compare it with yet."
    assert summary.outcome(read(run)) == first
    (run / "evaluations.jsonl").unlink()
    rewards = [metrics_line(i, 2, reward={"mean": 0.25 * i, "std": 0.1, "missing": 0}) for i in (1, 2)]
    write_lines(run, "metrics.jsonl", rewards)
    curve = "The training reward went from 0.250 (iteration 1) to 0.500 (iteration 2); there is no evaluation"
    assert summary.outcome(read(run)).startswith(curve)
    write_lines(run, "metrics.jsonl", rewards[:1])
    assert summary.outcome(read(run)).startswith("The training reward of iteration 1 is 0.250; there is no evaluation")
    write_lines(run, "metrics.jsonl", [metrics_line(1, 2, reward=None)])
    assert summary.outcome(read(run)) == "No samples have been scored yet."


@pytest.mark.parametrize(
    "width, digits", [(0.2, 2), (0.08, 2), (0.01, 2), (0.009, 3), (0.0004, 4), (1e-7, 4), (30.0, 2)]
)
def test_digits_follow_the_width_of_the_interval(width: float, digits: int) -> None:
    assert summary.digits_for([Score(0.5, 0.5, 0.5 + width, 3)]) == digits


def test_reward_range_comes_from_the_plugin(registry: Registry) -> None:
    blocks = [RewardBlock(use="brightness", name="light"), RewardBlock(use="geneval-of-mars")]
    assert reward_range("light", blocks, registry) == (0.0, 1.0)
    assert reward_range("geneval-of-mars", blocks, registry) is None
    assert reward_range("never configured", blocks, registry) is None


# -- the page --------------------------------------------------------------------------------------------------------


def test_table_of_tasks_holds_every_number(quickstart: str) -> None:
    rows = Page(quickstart).rows
    for task, before, after in zip(TASKS, BEFORE, AFTER, strict=True):
        texts = [f"{v:.2f} [{v - 0.08:.2f}, {min(1, v + 0.08):.2f}]" for v in (before, after)]
        assert [task, "20", *texts, f"+{after - before:.2f}"] in rows
    assert ["mean of tasks", "120", "0.48 [0.44, 0.52]", "0.74 [0.70, 0.78]", "+0.26"] in rows


def test_page_is_self_contained_and_accessible(quickstart: str) -> None:
    found = Page(quickstart)
    assert not found.all("script")
    assert not found.all("link")
    for name, attributes in found.elements:
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:image/")), (name, attributes)
    assert not re.search(r"@import|url\((?!#)", quickstart)
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = re.findall(r"(?:url\(#|href=\"#|for=\"|aria-labelledby=\")([^)\"]+)", quickstart)
    assert references
    assert set(references) <= set(ids)
    assert all(image["alt"] for image in found.all("img"))
    drawings = found.all("svg")
    assert len(drawings) > 10
    assert all(svg["role"] == "img" and svg["aria-label"] and svg["viewbox"] for svg in drawings)
    assert all(th["scope"] in ("col", "row") for th in found.all("th"))
    assert found.all("html")[0]["lang"] == "en"
    assert "#0" not in "".join(
        attributes.get("style", "") for _, attributes in found.elements
    )  # no placeholder color is left


def test_page_shows_how_to_reproduce_the_run(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "quickstart", 1, 1)
    found = show(run)
    assert ["git commit", "0123456789abcdef0123456789abcdef01234567 (with uncommitted changes)"] in found.rows
    assert ["train prompts", "600, SHA-256 " + "a" * 64] in found.rows
    assert ["command", "dgpo train examples/quickstart.yaml"] in found.rows
    for text in ("torch 2.7.0", "dgpo-miniature 0.1.0", *(run / "config.yaml").read_text().split("\n")):
        assert " ".join(text.split()) in found.text
    (run / "run.json").write_text(json.dumps({"git": None, "prompts": {"train": {"count": 3, "sha256": "c"}}}))
    assert ["git commit", "not inside a git repository"] in show(run).rows


def test_times_and_memory(quickstart: str) -> None:
    # 40 iterations: phases of 160 + 40 + 0.4 + 199.6 s, 4 evaluations of 7 s and checkpoints of 0.2 s; total 428.8 s.
    found = Page(quickstart)
    assert ["rollout", "2m40s", "37 %", "4.0"] in found.rows
    assert ["score", "1m20s", "–", "8.0"] in found.rows
    assert ["wait for scores", "40.0s", "9 %", "–"] in found.rows
    assert ["optimize", "3m20s", "47 %", "6.4"] in found.rows
    assert ["evaluate", "28.0s", "7 %", "2.0"] in found.rows
    assert "An iteration took 10.0s (median). Peak memory was 3.00 GiB." in found.text
    assert "training time 6m40s 1.6 samples per second" in found.text


def test_user_text_is_escaped(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    evil = "<script>alert('x')</script>&<b>$\\frac{1}{2}$ 日本 --> #010101"
    run = write_run(tmp_path / "quickstart", 2, 1)
    lines = [evaluation_line(i, i, reward=evil, tasks=(evil, "plain"), model=evil) for i in (0, 1)]
    write_lines(run, "evaluations.jsonl", lines)
    write_lines(run, "metrics.jsonl", [metrics_line(i, 2, rewards=(evil, "other"), extra={evil: i}) for i in (1, 2)])
    for directory in (run / "images").iterdir():
        (directory / "prompts.json").write_text(json.dumps([evil] * 6))
        drawn_from = {"negative_prompt": evil, "media": f"../../{evil}.png"}
        (directory / "conditions.json").write_text(json.dumps([drawn_from, 3, None, {"media": ["x"]}] * 3))
    record = {"command": [evil], "git": {"commit": evil}, "versions": {evil: evil}, "prompts": {evil: {"count": evil}}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"# {evil}\n")
    found = show(run)
    assert not found.all("script")
    assert f"negative prompt: {evil}" in found.text
    assert found.text.count("<script>alert('x')</script>&<b>$\\frac{1}{2}$ 日本 --> #010101") >= 12
    assert any(image["alt"] == f"Base model: {evil}" for image in found.all("img"))


def test_several_rewards_have_separate_sections(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "guarded", 2, 1)
    monitor = [evaluation_line(i, -i / 2, reward="monitor.v2", missing=7 * i) for i in (0, 1, 2)]
    monitor[2]["value"] = 0.2
    write_lines(run, "evaluations.jsonl", [line for i in (0, 1, 2) for line in (evaluation_line(i, i / 2), monitor[i])])
    write_lines(run, "metrics.jsonl", [metrics_line(i, 2, rewards=("brightness", "monitor.v2")) for i in (1, 2)])
    text = show(run).text
    assert "monitor.v2 fell from 0.48 [0.44, 0.52] to 0.20" in text
    assert "The best evaluation was an earlier one (base model): 0.48 [0.44, 0.52]." in text
    assert "14 samples of the last evaluation could not be scored." in text
    assert "weighted sum of 2 rewards" in text
    assert "brightness before weighting" in text
    assert "monitor.v2 before weighting" in text


def test_subscores_of_a_reward_are_drawn(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "run", iterations=2)
    lines = [metrics_line(i, 2) for i in (1, 2)]
    for i, line in enumerate(lines):
        line["rewards"]["brightness"]["subscores"] = {"red.er": 0.25 + i, "rare": 1.0} if i else {"red.er": 0.25}
    write_lines(run, "metrics.jsonl", lines)
    titles = panels(show(run))
    assert "brightness, red.er" in titles
    assert "brightness, rare" not in titles, "a single point is not drawn as a curve"


def test_sources_of_an_evaluation_are_rows() -> None:
    two = {"signs": score(0.25), "scenes": score(0.5)}
    moments = [Evaluation(i, "ema", "r", "target", score(0.4), {}, 0, two) for i in (0, 5)]
    assert [row.name for row in summary.task_rows(moments)] == ["source signs", "source scenes", "all prompts"]
    assert [row.is_mean for row in summary.task_rows(moments)] == [False, False, True]


def test_sources_are_drawn(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "run", iterations=2)
    lines = [metrics_line(i, 2) for i in (1, 2)]
    for i, line in enumerate(lines):
        line["sources"] = {"a.b": {"groups": 2, "mean": 0.5 + i, "std": 0.1, "missing": 0, "zero_variance_groups": 0}}
    write_lines(run, "metrics.jsonl", lines)
    assert any(title.startswith("Training reward of source a.b") for title in panels(show(run)))


def test_colors_have_contrast_in_both_themes() -> None:
    css = (Path(page.__file__).parent / "page.css").read_text()

    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    themes = [
        dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)
    ]
    assert len(themes) == 2
    for theme in themes:  # WCAG 2.1: 4.5 for text, 3 for large text and for parts of figures
        for name in ("text", "muted", "before", "after"):
            assert contrast(theme[name], theme["paper"]) >= 4.5, (name, theme)
            assert contrast(theme[name], theme["tint"]) >= (3 if name == "before" else 4.5), (name, theme)
        assert contrast(theme["warn"], theme["warn-tint"]) >= 4.5
        for name in ("rollout", "wait", "advantages", "optimize", "measure"):
            assert contrast(theme[name], theme["paper"]) >= 3, (name, theme)


def timed_run(run: Path, iterations: int = 20, **values: Callable[[int], float]) -> Path:
    """Write a run whose timestep policy reports these values in each iteration."""
    write_config(
        run, run={"name": run.name, "iterations": iterations}, timesteps={"use": "disagreement-t-min", "t_min": 0.0}
    )
    numbers = range(1, iterations + 1)
    reported = [{name: value(i) for name, value in values.items()} for i in numbers]
    lines = [metrics_line(i, iterations, timesteps=one) for i, one in zip(numbers, reported, strict=True)]
    write_lines(run, "metrics.jsonl", lines)
    return run


def panels(found: Page) -> dict[str, str]:
    """Return the descriptions of the figures, by their first part."""
    return {svg["aria-label"].partition(":")[0]: svg["aria-label"] for svg in found.all("svg")}


def test_changing_timestep_ranges_are_drawn(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = timed_run(
        tmp_path / "moving",
        t_min=lambda i: 0.5 - 0.01 * i,
        t_max=lambda i: 1.0,
        disagreement=lambda i: 0.2 / i,
        kept=lambda i: 3.0,
    )
    found = show(run)
    expected = "Training timesteps come from disagreement-t-min: t_min went from 0.490 to 0.300, t_max is 1.000."
    assert expected in found.text
    drawn = panels(found)
    assert drawn["Training timesteps, t_min"] == "Training timesteps, t_min: from 0.49 to 0.3", "t_max is constant"
    assert drawn["Disagreement, disagreement"].endswith("from 0.2 to 0.01")
    assert "reported by disagreement-t-min" in found.text
    assert "Kept 3 throughout" in found.text


def test_a_changing_t_max_is_a_second_line(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = timed_run(tmp_path / "both", t_min=lambda i: 0.3 + 0.01 * i, t_max=lambda i: 0.8 + 0.005 * i)
    found = show(run)
    assert "t_min went from 0.310 to 0.500, t_max went from 0.805 to 0.900." in found.text
    assert "Training timesteps, t_max: from 0.805 to 0.9" in panels(found)["Training timesteps, t_min"]


def test_constant_timestep_ranges_are_not_drawn(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    found = show(timed_run(tmp_path / "still", t_min=lambda i: 0.3, t_max=lambda i: 0.9))
    assert "Training timesteps come from disagreement-t-min: t_min is 0.300, t_max is 0.900." in found.text
    assert not any(name.startswith("Training timesteps") for name in panels(found))
    one = show(timed_run(tmp_path / "one", iterations=1, t_min=lambda i: 0.3, t_max=lambda i: 0.9))
    assert "t_min is 0.300, t_max is 0.900." in one.text


def test_timesteps_of_older_logs_are_left_out(quickstart: str) -> None:
    assert "Training timesteps" not in Page(quickstart).text
    assert "not logged" not in Page(quickstart).text, "every panel has a metric that runs log"


def test_timestep_ranges_are_drawn_as_steps_without_a_running_mean() -> None:
    """Between two measurements t_min does not change."""
    x, y = np.arange(1.0, 101.0), np.repeat([0.5, 0.3, 0.4, 0.2], 25)
    axis = figures.Axis("iterations", "iterations", "iteration", float)
    points = path_points(figures.curve(x, {"t_min": y}, axis, "k", "a stair", steps=True), "var(--after)")
    assert len(np.unique(points[:, 1].round(3))) == 4
    moves = np.diff(points, axis=0)
    assert (np.isclose(moves, 0, atol=1e-6).any(axis=1)).all(), "all segments are horizontal or vertical"


def test_the_measure_phase_is_shown(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = write_run(tmp_path / "measured", 4, 4)
    lines = [timing_line(i) for i in range(1, 5)]
    lines[2]["phases"]["measure"] = {"seconds": 3.0, "samples_per_second": None}
    write_lines(run, "timings.jsonl", lines)
    html = page.render(read(run))
    rows = [row for row in Page(html).rows if row and row[0] in ("measure", "rollout")]
    assert rows == [["measure", "3.0s", "7 %", "–"], ["rollout", "16.0s", "37 %", "4.0"]]
    assert "fill: var(--measure)" in html, "the phase is in the stacked figure too"
