"""`dgpo report`, on synthetic run directories whose numbers are known in advance, and on a real toy run."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from scipy.optimize import isotonic_regression
from typer.testing import CliRunner

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_kit.toy import plugin, run_data
from dgpo_lab.commands.report import report
from dgpo_lab.reporting import figures, page, summary
from dgpo_lab.reporting.data import Evaluation, RunData, Score, read_run, reward_range
from dgpo_lab.reporting.images import read_pictures
from dgpo_lab.reporting.svg import canvas, spread, to_svg
from dgpo_schemas.metrics import EvaluationRecord, GroupScore, MetricsRecord, RewardStatistics, TimingRecord, VerbTiming
from dgpo_schemas.problems import ConfigError
from dgpo_schemas.run import RewardBlock, RunConfig

TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
BEFORE = (0.81, 0.52, 0.41, 0.62, 0.24, 0.28)
AFTER = (0.97, 0.83, 0.66, 0.86, 0.55, 0.57)
PROMPTS = (
    "a photo of a red circle", "a photo of two squares", "a photo of a blue star right of a green triangle",
    "a drawing of three yellow circles", "a photo of a purple square and a white star", "a drawing of a black triangle",
)  # fmt: skip


def metrics_line(
    iteration: int, total: int, rewards: Sequence[str] = ("brightness",), **changes: Any
) -> dict[str, Any]:
    """One line of metrics.jsonl: curves with a little deterministic noise."""
    share, wave = iteration / total, math.sin(12.9898 * iteration) * 0.5 + math.sin(78.233 * iteration) * 0.5
    mean = 0.46 + 0.3 * (1 - math.exp(-3 * share)) + 0.02 * wave
    record = MetricsRecord(
        iteration=iteration, updates=iteration,
        reward=RewardStatistics(mean=mean, std=0.3 - 0.08 * share + 0.01 * wave, missing=0),
        rewards={name: RewardStatistics(mean=mean + 0.05 * i, std=0.2, missing=0) for i, name in enumerate(rewards)},
        zero_variance_groups=max(0, round(3 * share + wave)), missing_rewards=0, residual=0.02 + 0.005 * wave,
        sigmoid=0.5 + 0.04 * share + 0.01 * wave, clip_fraction=0.1 * share * (1 + 0.3 * wave),
        dsm=0.21 - 0.01 * share + 0.004 * wave, dsm_reference=0.211 + 0.004 * wave,
        kl=0.004 * share**0.5 * (1 + 0.1 * wave), extra={}, grad_norm=0.6 + 0.2 * wave, learning_rate=3e-4,
        skipped_updates=0, optimised_members=32, skipped_members=0, change_norm=1.4 * share**0.5,
        diversity=0.23 - 0.03 * share + 0.004 * wave,
        statistics={"saturation": 0.4 + 0.1 * share, "edge_density": 0.2 + 0.01 * wave, "dark_pixels": 0.05},
        t_min=0.3, t_max=1.0,
    )  # fmt: skip
    return record.model_dump(mode="json") | changes


def timing_line(iteration: int, evaluated: bool = False) -> dict[str, Any]:
    """One line of timings.jsonl: 10 seconds an iteration, of them 4 roll-out, 1 waiting and 5 optimising."""
    verbs = {
        "roll_out": (4.0, 4.0),
        "score": (2.0, 8.0),
        "wait_for_scores": (1.0, None),
        "weigh": (0.01, None),
        "optimise": (4.99, 6.4),
    }
    if evaluated:
        verbs |= {"evaluate": (7.0, 2.0), "checkpoint": (0.2, None)}
    return TimingRecord(
        iteration=iteration, seconds=10.0, peak_memory_bytes=3 * 2**30, rewards={"brightness": 2.0},
        verbs={name: VerbTiming(seconds=s, samples_per_second=rate) for name, (s, rate) in verbs.items()},
    ).model_dump(mode="json")  # fmt: skip


def evaluation_line(
    iteration: int, share: float, reward: str = "brightness", tasks: Sequence[str] = TASKS, **changes: Any
) -> dict[str, Any]:
    """One line of evaluations.jsonl: from BEFORE to AFTER, each task with an interval of ± 0.08, the mean ± 0.04."""
    values = [b + share * (a - b) for b, a in zip(BEFORE, AFTER, strict=True)]
    mean = sum(values) / len(values)
    record = EvaluationRecord(
        iteration=iteration, view="slow", reward=reward, value=mean, low=mean - 0.04, high=mean + 0.04, n=120,
        role="target", missing=0,
        groups={
            t: GroupScore(value=v, low=v - 0.08, high=min(1, v + 0.08), n=20)
            for t, v in zip(tasks, values, strict=False)
        },
    )  # fmt: skip
    return record.model_dump(mode="json") | changes


def diversity_line(iteration: int, share: float) -> dict[str, Any]:
    """The record of a statistic: from 0.241 to 0.221."""
    value = 0.241 - 0.02 * share
    changes = {"value": value, "low": value - 0.03, "high": value + 0.03, "groups": {}}
    return evaluation_line(iteration, share, reward="diversity", role="statistic", **changes)


def write_pictures(
    run: Path, iteration: int, prompts: Sequence[str] = PROMPTS, size: tuple[int, int] = (32, 32)
) -> None:
    """Pictures of an evaluation: a disc on a coloured ground; later ones are sharper."""
    directory = run / "pictures" / f"{iteration:06d}"
    directory.mkdir(parents=True)
    y, x = np.mgrid[: size[1], : size[0]] / np.array(size[::-1]).reshape(2, 1, 1) - 0.5
    for i in range(len(prompts)):
        disc = 1 / (1 + np.exp((np.hypot(x - 0.1 * math.sin(i), y) - 0.25) * (12 if iteration == 0 else 80)))
        ground, ink = np.array([0.9, 0.9 - 0.08 * i, 0.85]), np.array([0.2 + 0.1 * i, 0.3, 0.9 - 0.12 * i])
        pixels = ground + disc[..., None] * (ink - ground)
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(directory / f"{i:02d}.png")
    Image.new("RGB", size).save(directory / "grid.png")
    (directory / "prompts.json").write_text(json.dumps(list(prompts)))


def write_lines(run: Path, log: str, lines: Sequence[dict[str, Any]]) -> None:
    """A whole log."""
    (run / log).write_text("".join(json.dumps(line) + "\n" for line in lines))


def write_config(run: Path, /, **changes: Any) -> None:
    """Only config.yaml, as a run writes it."""
    run.mkdir(parents=True, exist_ok=True)
    config = RunConfig.model_validate(run_data(run.parent, **changes))
    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))


def write_run(run: Path, /, iterations: int = 40, every: int = 10, **changes: Any) -> Path:
    """A complete run: 16 samples an iteration, an evaluation `every` so many and before the first."""
    write_config(run, **({"run": {"name": run.name, "iterations": iterations}} | changes))
    numbers = range(1, iterations + 1)
    write_lines(run, "metrics.jsonl", [metrics_line(i, iterations) for i in numbers])
    write_lines(run, "timings.jsonl", [timing_line(i, i % every == 0) for i in numbers])
    moments = range(0, iterations + 1, every)
    lines = (f(i, i / iterations) for i in moments for f in (evaluation_line, diversity_line))
    write_lines(run, "evaluations.jsonl", list(lines))
    write_pictures(run, 0)
    write_pictures(run, iterations)
    record = {
        "command": ["dgpo", "train", "examples/quickstart.yaml"], "python": "3.11.2", "platform": "Linux-6.1-x86_64",
        "versions": {"dgpo": "0.1.0", "torch": "2.7.0", "diffusers": "0.35.1", "peft": "0.17.0"},
        "plugins": {"dgpo": "0.1.0", "dgpo-miniature": "0.1.0"},
        "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "clean": False},
        "prompts": {"train": {"count": 600, "sha256": "a" * 64}, "heldout": {"count": 120, "sha256": "b" * 64}},
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(record))
    return run


# -- helpers of the tests --------------------------------------------------------------------------------------------

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """Elements with attributes and text; complains about tags that do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            return
        self.text += " ".join(data.split()) + " " if data.strip() else ""
        if "td" in self._open[-3:] or "th" in self._open[-3:]:
            self.rows[-1][-1] = (self.rows[-1][-1] + " " + data.strip()).strip()

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a complete run, as text: drawing it takes a second."""
    made = Registry()
    made.register(plugin, distribution="toy")
    return page.render(read_run(write_run(tmp_path_factory.mktemp("runs") / "quickstart"), made))


@pytest.fixture
def show(registry: Registry) -> Callable[[Path], Page]:
    """The page of a run directory, rendered and parsed."""
    return lambda run: Page(page.render(read_run(run, registry)))


@pytest.fixture
def read(registry: Registry) -> Callable[[Path], RunData]:
    """What the report knows of a run directory."""
    return lambda run: read_run(run, registry)


def score(value: float, half: float | None = 0.04) -> Score:
    """A score with a symmetric interval, or none."""
    return Score(value, None, None, 10) if half is None else Score(value, value - half, value + half, 10)


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
        ("", "this is a directory; name a file"),
        ("nowhere/page.html", "there is no directory"),
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


# -- what cannot be reported -----------------------------------------------------------------------------------------


def test_refuses_what_is_no_run_directory(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such run directory"):
        read_run(tmp_path / "nowhere", registry)
    with pytest.raises(UserError, match=r"not a run directory \(it has no config.yaml\)"):
        read_run(tmp_path, registry)


def test_refuses_a_run_that_has_logged_nothing(tmp_path: Path, registry: Registry) -> None:
    write_config(tmp_path / "fresh")
    with pytest.raises(UserError, match="nothing is logged yet: no iteration and no evaluation has finished"):
        read_run(tmp_path / "fresh", registry)


def test_refuses_a_broken_configuration_and_a_log_that_is_no_text(tmp_path: Path, registry: Registry) -> None:
    run = write_run(tmp_path / "quickstart", 1, 1)
    (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read"):
        read_run(run, registry)
    (run / "config.yaml").write_text("run: {name: x}\n")
    with pytest.raises(ConfigError, match="iterations"):
        read_run(run, registry)


# -- the sentence ----------------------------------------------------------------------------------------------------


def test_outcome_of_a_whole_run(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    # Means of BEFORE and AFTER are 0.48 and 0.74; half of what was missing to 1.
    run = read(write_run(tmp_path / "quickstart"))
    assert (
        summary.outcome(run)
        == "brightness rose from 0.48 [0.44, 0.52] to 0.74 [0.70, 0.78]: 50 % of the distance to 1.0."
    )


def outcome_of(run: RunData, before: Score, after: Score, limits: tuple[float, float] | None = None) -> str:
    moments = [Evaluation(i, "slow", "r", "target", s, {}, 0) for i, s in ((0, before), (5, after))]
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


def test_outcome_before_there_is_anything_to_compare(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = write_run(tmp_path / "young", 2, 2)
    write_lines(run, "evaluations.jsonl", [evaluation_line(0, 0)])
    first = "brightness of the base model is 0.48 [0.44, 0.52]; there is no later evaluation to compare with yet."
    assert summary.outcome(read(run)) == first
    (run / "evaluations.jsonl").unlink()
    rewards = [metrics_line(i, 2, reward={"mean": 0.25 * i, "std": 0.1, "missing": 0}) for i in (1, 2)]
    write_lines(run, "metrics.jsonl", rewards)
    curve = "The training reward went from 0.250 (iteration 1) to 0.500 (iteration 2); nothing is evaluated"
    assert summary.outcome(read(run)).startswith(curve)
    write_lines(run, "metrics.jsonl", rewards[:1])
    assert summary.outcome(read(run)).startswith("The training reward of iteration 1 is 0.250; nothing is evaluated")
    write_lines(run, "metrics.jsonl", [metrics_line(1, 2, reward=None)])
    assert summary.outcome(read(run)) == "No sample has been scored yet."


@pytest.mark.parametrize(
    "width, digits", [(0.2, 2), (0.08, 2), (0.01, 2), (0.009, 3), (0.0004, 4), (1e-7, 4), (30.0, 2)]
)
def test_digits_show_the_first_of_the_interval(width: float, digits: int) -> None:
    assert summary.digits_for([Score(0.5, 0.5, 0.5 + width, 3)]) == digits


def test_reward_range_comes_from_the_plugin_or_not_at_all(registry: Registry) -> None:
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


def test_page_is_complete_in_itself_and_accessible(quickstart: str) -> None:
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
    )  # no stand-in colour left


def test_page_says_how_to_repeat_the_run(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "quickstart", 1, 1)
    found = show(run)
    assert ["git commit", "0123456789abcdef0123456789abcdef01234567 (with uncommitted changes)"] in found.rows
    assert ["train prompts", "600, SHA-256 " + "a" * 64] in found.rows
    assert ["command", "dgpo train examples/quickstart.yaml"] in found.rows
    for text in ("torch 2.7.0", "dgpo-miniature 0.1.0", *(run / "config.yaml").read_text().split("\n")):
        assert " ".join(text.split()) in found.text
    (run / "run.json").write_text(json.dumps({"git": None, "prompts": {"train": {"count": 3, "sha256": "c"}}}))
    assert ["git commit", "not run inside a repository"] in show(run).rows


def test_times_and_memory(quickstart: str) -> None:
    # 40 iterations: 160 + 40 + 0.4 + 199.6 s in turn, 4 evaluations of 7 s and checkpoints of 0.2 s: 428.8 s in all.
    found = Page(quickstart)
    assert ["roll out", "2m40s", "37 %", "4.0"] in found.rows
    assert ["score", "1m20s", "–", "8.0"] in found.rows
    assert ["wait for scores", "40.0s", "9 %", "–"] in found.rows
    assert ["optimise", "3m20s", "47 %", "6.4"] in found.rows
    assert ["evaluate", "28.0s", "7 %", "2.0"] in found.rows
    assert "An iteration took 10.0s (median). Peak memory was 3.00 GiB." in found.text
    assert "training time 6m40s 1.6 samples a second" in found.text


def test_everything_of_others_is_escaped(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    evil = "<script>alert('x')</script>&<b>$\\frac{1}{2}$ 日本 --> #010101"
    run = write_run(tmp_path / "quickstart", 2, 1)
    lines = [evaluation_line(i, i, reward=evil, tasks=(evil, "plain"), view=evil) for i in (0, 1)]
    write_lines(run, "evaluations.jsonl", lines)
    write_lines(run, "metrics.jsonl", [metrics_line(i, 2, rewards=(evil, "other"), extra={evil: i}) for i in (1, 2)])
    for directory in (run / "pictures").iterdir():
        (directory / "prompts.json").write_text(json.dumps([evil] * 6))
        drawn_from = {"negative_prompt": evil, "media": f"../../{evil}.png"}
        (directory / "conditions.json").write_text(json.dumps([drawn_from, 3, None, {"media": ["x"]}] * 3))
    record = {"command": [evil], "git": {"commit": evil}, "versions": {evil: evil}, "prompts": {evil: {"count": evil}}}
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + f"# {evil}\n")
    found = show(run)
    assert not found.all("script")
    assert f"not: {evil}" in found.text
    assert found.text.count("<script>alert('x')</script>&<b>$\\frac{1}{2}$ 日本 --> #010101") >= 12
    assert any(image["alt"] == f"Base model: {evil}" for image in found.all("img"))


def test_several_rewards_each_have_their_place(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "guarded", 2, 1)
    guard = [evaluation_line(i, -i / 2, reward="guard.v2", missing=7 * i) for i in (0, 1, 2)]
    guard[2]["value"] = 0.2
    write_lines(run, "evaluations.jsonl", [line for i in (0, 1, 2) for line in (evaluation_line(i, i / 2), guard[i])])
    write_lines(run, "metrics.jsonl", [metrics_line(i, 2, rewards=("brightness", "guard.v2")) for i in (1, 2)])
    text = show(run).text
    assert "guard.v2 fell from 0.48 [0.44, 0.52] to 0.20" in text
    assert "The best evaluation was an earlier one (base model): 0.48 [0.44, 0.52]." in text
    assert "14 samples of the last evaluation could not be scored." in text
    assert "weighted sum of 2 rewards" in text
    assert "brightness before weighting" in text
    assert "guard.v2 before weighting" in text


def test_parts_of_a_reward_are_drawn(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "run", iterations=2)
    lines = [metrics_line(i, 2) for i in (1, 2)]
    for i, line in enumerate(lines):
        line["rewards"]["brightness"]["parts"] = {"red.er": 0.25 + i, "rare": 1.0} if i else {"red.er": 0.25}
    write_lines(run, "metrics.jsonl", lines)
    titles = panels(show(run))
    assert "brightness, red.er" in titles
    assert "brightness, rare" not in titles, "one point is no curve"


def test_sources_of_an_evaluation_are_rows() -> None:
    two = {"signs": score(0.25), "scenes": score(0.5)}
    moments = [Evaluation(i, "slow", "r", "target", score(0.4), {}, 0, two) for i in (0, 5)]
    assert [row.name for row in summary.task_rows(moments)] == ["source signs", "source scenes", "all prompts"]
    assert [row.is_mean for row in summary.task_rows(moments)] == [False, False, True]


def test_sources_are_drawn(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "run", iterations=2)
    lines = [metrics_line(i, 2) for i in (1, 2)]
    for i, line in enumerate(lines):
        line["sources"] = {"a.b": {"groups": 2, "mean": 0.5 + i, "std": 0.1, "missing": 0, "zero_variance_groups": 0}}
    write_lines(run, "metrics.jsonl", lines)
    assert any(title.startswith("Training reward of source a.b") for title in panels(show(run)))


def test_colours_have_contrast_in_both_themes() -> None:
    css = (Path(page.__file__).parent / "page.css").read_text()

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
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
        for name in ("roll-out", "wait", "weigh", "optimise", "measure"):
            assert contrast(theme[name], theme["paper"]) >= 3, (name, theme)


def timed_run(run: Path, iterations: int = 20, **values: Callable[[int], float]) -> Path:
    """A run of a policy that told these values in each iteration."""
    write_config(
        run, run={"name": run.name, "iterations": iterations}, timesteps={"use": "disagreement-t-min", "t_min": 0.0}
    )
    numbers = range(1, iterations + 1)
    told = [{name: value(i) for name, value in values.items()} for i in numbers]
    lines = [metrics_line(i, iterations, timesteps=one) for i, one in zip(numbers, told, strict=True)]
    write_lines(run, "metrics.jsonl", lines)
    return run


def panels(found: Page) -> dict[str, str]:
    """What is read aloud of the curves, by its beginning."""
    return {svg["aria-label"].partition(":")[0]: svg["aria-label"] for svg in found.all("svg")}


def test_times_that_move_are_drawn_and_told(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = timed_run(
        tmp_path / "moving",
        t_min=lambda i: 0.5 - 0.01 * i,
        t_max=lambda i: 1.0,
        disagreement=lambda i: 0.2 / i,
        kept=lambda i: 3.0,
    )
    found = show(run)
    assert "Training times come from disagreement-t-min: t_min went from 0.490 to 0.300, t_max is 1.000." in found.text
    drawn = panels(found)
    assert drawn["Training times, t_min"] == "Training times, t_min: from 0.49 to 0.3", "t_max stays and has no line"
    assert drawn["Disagreement, disagreement"].endswith("from 0.2 to 0.01")
    assert "reported by disagreement-t-min" in found.text
    assert "Kept 3 throughout" in found.text


def test_an_upper_end_that_moves_is_a_second_line(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = timed_run(tmp_path / "both", t_min=lambda i: 0.3 + 0.01 * i, t_max=lambda i: 0.8 + 0.005 * i)
    found = show(run)
    assert "t_min went from 0.310 to 0.500, t_max went from 0.805 to 0.900." in found.text
    assert "Training times, t_max: from 0.805 to 0.9" in panels(found)["Training times, t_min"]


def test_times_that_stay_are_told_only(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    found = show(timed_run(tmp_path / "still", t_min=lambda i: 0.3, t_max=lambda i: 0.9))
    assert "Training times come from disagreement-t-min: t_min is 0.300, t_max is 0.900." in found.text
    assert not any(name.startswith("Training times") for name in panels(found))
    one = show(timed_run(tmp_path / "one", iterations=1, t_min=lambda i: 0.3, t_max=lambda i: 0.9))
    assert "t_min is 0.300, t_max is 0.900." in one.text


def test_times_of_older_logs_are_left_out(quickstart: str) -> None:
    assert "Training times" not in Page(quickstart).text
    assert "not logged" not in Page(quickstart).text, "no panel wants what no run logs"


def test_chosen_times_are_drawn_as_stairs_without_a_running_mean() -> None:
    """Between two measurements t_min stays where it was."""
    x, y = np.arange(1.0, 101.0), np.repeat([0.5, 0.3, 0.4, 0.2], 25)
    axis = figures.Axis("iterations", "iterations", "iteration", float)
    points = path_points(figures.curve(x, {"t_min": y}, axis, "k", "a stair", steps=True), "var(--after)")
    assert len(np.unique(points[:, 1].round(3))) == 4
    moves = np.diff(points, axis=0)
    assert (np.isclose(moves, 0, atol=1e-6).any(axis=1)).all(), "lines are level or upright"


def test_measuring_has_its_place_among_the_verbs(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = write_run(tmp_path / "measured", 4, 4)
    lines = [timing_line(i) for i in range(1, 5)]
    lines[2]["verbs"]["measure"] = {"seconds": 3.0, "samples_per_second": None}
    write_lines(run, "timings.jsonl", lines)
    html = page.render(read(run))
    rows = [row for row in Page(html).rows if row and row[0] in ("measure", "roll out")]
    assert rows == [["measure", "3.0s", "7 %", "–"], ["roll out", "16.0s", "37 %", "4.0"]]
    assert "fill: var(--measure)" in html, "it has its part of the bars too"


# -- runs that are young, old or damaged -----------------------------------------------------------------------------


def test_young_run_shows_what_there_is_and_says_what_is_not(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = tmp_path / "young"
    write_config(run, run={"name": "young", "iterations": 40})
    write_lines(run, "metrics.jsonl", [metrics_line(1, 40, kl=0.125)])
    found = show(run)
    for line in (
        "The run is not finished: 1 of 40 iterations are logged.",
        "No evaluation has been made yet: there are no scores by task.",
        "Only one iteration has finished: there are no curves yet.",
        "There are no pictures.",
        "1 of 1 iterations have no timing; clock times count them as 0 seconds.",
        "There is no run.json: versions, git state and prompt digests are unknown.",
    ):
        assert line in found.text
    assert "KL 0.125" in found.text
    assert not found.all("svg")


def test_run_of_which_only_the_base_model_is_evaluated(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = tmp_path / "started"
    write_config(run, run={"name": "started", "iterations": 9})
    write_lines(run, "evaluations.jsonl", [evaluation_line(0, 0)])
    write_pictures(run, 0)
    found = show(run)
    assert "There is only one evaluation: nothing to compare it with yet." in found.text
    assert "No iteration has finished: there are no training curves." in found.text
    assert "There are pictures of one evaluation only." in found.text
    assert "Drawn by the base model." in found.text
    assert ["single_object", "20", "0.81 [0.73, 0.89]"] in found.rows
    assert len(found.all("img")) == 6
    assert len(found.all("svg")) == 1


def test_reasons_in_the_configuration_are_named(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = tmp_path / "blind"
    write_config(run, prompts={"heldout": None}, evaluation={"every": 0, "pictures": 0})
    write_lines(run, "metrics.jsonl", [metrics_line(1, 4), metrics_line(2, 4)])
    text = show(run).text
    assert "No evaluation has been made yet (prompts.heldout is not set): there are no scores by task." in text
    assert "There are no pictures (evaluation.pictures is 0)." in text


def test_old_and_damaged_logs_are_read_as_far_as_they_go(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = tmp_path / "old"
    write_config(run)
    lines: list[Any] = [
        {"iteration": 2, "kl": 0.2},
        {"iteration": 1, "kl": 0.1},
        {"iteration": 2, "kl": 0.3},
        {"kl": 1},
        7,
    ]
    write_lines(run, "metrics.jsonl", [*lines, {"iteration": 3, "kl": None, "reward": {"mean": "high"}}])
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"iteration": 4, "kl')
    write_lines(
        run, "evaluations.jsonl", [{"iteration": 0, "reward": "r", "value": 0.5}, {"iteration": 1, "reward": "r"}]
    )
    (run / "run.json").write_text("[1]")
    data = read(run)
    np.testing.assert_array_equal(data.column("iteration"), [1, 2, 3])
    np.testing.assert_array_equal(data.column("kl"), [0.1, 0.3, np.nan])  # the later line of an iteration counts
    assert np.isnan(data.column("reward.mean")).all()
    assert data.evaluations["r"][0].score == Score(0.5, None, None, None)
    assert "2 of 6 lines of metrics.jsonl could not be understood." in data.problems
    assert "1 of 2 lines of evaluations.jsonl could not be understood." in data.problems
    assert any("run.json could not be understood" in problem for problem in data.problems)
    found = Page(page.render(data))
    assert "0.500" in found.text
    assert "not logged" in found.text


@pytest.mark.parametrize(
    "log, line",
    [
        ("metrics.jsonl", {"iteration": "three"}),
        ("metrics.jsonl", {"iteration": 0}),
        ("timings.jsonl", {"seconds": 3.0}),
        ("evaluations.jsonl", {"iteration": -1, "reward": "brightness", "value": 0.5}),
        ("evaluations.jsonl", {"iteration": 9, "reward": "brightness", "value": None}),
        ("evaluations.jsonl", {"iteration": 9, "reward": "brightness", "value": 0.5, "groups": ["colors"]}),
    ],
)
def test_lines_without_sense_are_left_out(
    tmp_path: Path, read: Callable[[Path], RunData], log: str, line: dict[str, Any]
) -> None:
    run = write_run(tmp_path / "damaged", 2, 1)
    with (run / log).open("a") as file:
        file.write(json.dumps(line) + "\n")
    (run / "run.json").write_text('{"python": ')
    data = read(run)
    count = 7 if log == "evaluations.jsonl" else 3
    assert f"1 of {count} lines of {log} could not be understood." in data.problems
    assert "run.json could not be understood: versions, git state and prompt digests are unknown." in data.problems
    assert (len(data.metrics), len(data.timings), data.done) == (2, 2, 2)
    assert [e.iteration for e in data.evaluations["brightness"]] == [0, 1, 2]


# -- pictures --------------------------------------------------------------------------------------------------------


def decoded(uri: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_pictures_stand_side_by_side_without_loss(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "quickstart", 4, 2)
    images = show(run).all("img")
    assert len(images) == 12
    for i, prompt in enumerate(PROMPTS):
        for image, iteration, when in ((images[2 * i], 0, "Base model"), (images[2 * i + 1], 4, "Iteration 4")):
            file = run / "pictures" / f"{iteration:06d}" / f"{i:02d}.png"
            np.testing.assert_array_equal(decoded(image["src"]), np.asarray(Image.open(file)))
            assert image["alt"] == f"{when}: {prompt}"
            assert "tiny" in image["class"]
            assert prompt in image["title"]


def test_pictures_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "000000").mkdir()
    for number in (9, 11, 100):
        Image.new("RGB", (4, 4)).save(tmp_path / "000000" / f"{number:02d}.png")
    (tmp_path / "000000" / "prompts.json").write_text(json.dumps([str(number) for number in range(101)]))
    found = read_pictures(tmp_path, [])
    assert [pair.prompt for pair in found.pairs] == ["9", "11", "100"]


def test_large_pictures_are_reduced(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "large", 2, 1)
    write_pictures(run, 1, PROMPTS[:1])  # one in between: not shown
    for iteration in (3, 4):
        write_pictures(run, iteration, PROMPTS[:1], size=(1024, 768))
    for iteration in (0, 2):
        (run / "pictures" / f"{iteration:06d}").rename(run / f"aside{iteration}")
    (run / "pictures" / "000001").rename(run / "aside1")
    images = show(run).all("img")
    assert [image["alt"].partition(":")[0] for image in images] == ["Iteration 3", "Iteration 4"]
    for image in images:
        assert image["src"].startswith("data:image/jpeg")
        assert decoded(image["src"]).shape == (384, 512, 3)
        assert "tiny" not in image["class"]


def test_small_videos_play_beside_their_film_strips(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    """In the page itself, without scripts; of a large file, or without one, there is the strip."""
    run = write_run(tmp_path / "films", 2, 2)
    for iteration in (0, 2):
        shutil.rmtree(run / "pictures" / f"{iteration:06d}")
        write_pictures(run, iteration, PROMPTS[:3], size=(168, 32))
        (run / "pictures" / f"{iteration:06d}" / "00.mp4").write_bytes(b"film %d" % iteration)
        (run / "pictures" / f"{iteration:06d}" / "01.mp4").write_bytes(bytes(300_001))
    found = show(run)
    videos = found.all("video")
    assert [base64.b64decode(v["src"].removeprefix("data:video/mp4;base64,")) for v in videos] == [b"film 0", b"film 2"]
    assert [v["title"] for v in videos] == [f"base model: {PROMPTS[0]}", f"iteration 2: {PROMPTS[0]}"]
    assert all("controls" in v and "autoplay" not in v for v in videos)
    assert "media-src data:" in found.all("meta")[-1]["content"]
    images = found.all("img")
    assert len(images) == 6
    for image in images:  # a strip of tiny frames loses nothing, however long it is
        assert decoded(image["src"]).shape == (32, 168, 3)
        assert image["src"].startswith("data:image/png")
        assert "tiny" in image["class"]
    assert "base model above, iteration 2 below." in found.text


def test_pictures_are_paired_by_prompt_where_the_selection_changed(
    tmp_path: Path, read: Callable[[Path], RunData]
) -> None:
    run = write_run(tmp_path / "changed", 2, 2)
    later = run / "pictures" / "000002" / "prompts.json"
    later.write_text(json.dumps([PROMPTS[3], "new", "twice", "twice", PROMPTS[0], "newer"]))
    assert [pair.prompt for pair in read(run).pictures.pairs] == [PROMPTS[0], PROMPTS[3]]
    later.write_text(json.dumps(["other"] * 6))
    data = read(run)
    assert not data.pictures.pairs
    assert any("show different prompts" in line for line in summary.what_is_missing(data))


def test_damaged_pictures_are_left_out_and_mentioned(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = write_run(tmp_path / "damaged", 2, 2)
    (run / "pictures" / "000000" / "01.png").write_bytes(b"no picture")
    (run / "pictures" / "000002" / "prompts.json").unlink()
    data = read(run)
    assert "The picture 000000/01.png is damaged." in data.problems
    assert "The prompts of the pictures in 000002 are not known (prompts.json)." in data.problems


# -- numbers behind the figures --------------------------------------------------------------------------------------


def test_axes_turn_iterations_into_time_and_samples(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = read(write_run(tmp_path / "quickstart", 40))
    by_key = {axis.key: axis for axis in figures.axes_of(run)}
    assert [by_key[key].at(30) for key in ("iterations", "time", "samples")] == [30, 300 / 60, 30 * 16]
    assert by_key["time"].label == "training time, minutes"
    (run.path / "timings.jsonl").unlink()
    assert [axis.key for axis in figures.axes_of(read(run.path))] == ["iterations", "samples"]


@pytest.mark.parametrize(
    "longest, unit", [(179, (1.0, "seconds")), (180, (60.0, "minutes")), (10800, (3600.0, "hours"))]
)
def test_time_unit(longest: float, unit: tuple[float, str]) -> None:
    assert figures._time_unit(longest) == unit


def path_points(svg: str, colour: str) -> np.ndarray[Any, Any]:
    """Points of the thickest path that is stroked in a colour."""
    paths = re.findall(rf'<path d="([^"]+)"[^>]*style="fill: none; stroke: {re.escape(colour)}[^"]*"', svg)
    numbers = max((re.findall(r"-?[\d.]+", path) for path in paths), key=len)
    return np.array(numbers, dtype=np.float64).reshape(-1, 2)


def test_curve_is_to_scale() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.1, 0.5, 0.2, 0.3])
    axis = figures.Axis("iterations", "iterations", "iteration", float)
    points = path_points(figures.curve(x, {"kl": y}, axis, "k", "a curve"), "var(--after)")
    # Positions in the drawing are affine in the data; y points down.
    np.testing.assert_allclose(np.diff(points[:, 0]) / np.diff(x), np.ptp(points[:, 0]) / 7, rtol=1e-4)
    slopes = np.diff(points[:, 1]) / np.diff(y)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-4)
    assert slopes[0] < 0


def test_labels_are_spread_like_an_isotonic_regression() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 7, 20):
        values = np.sort(generator.random(count))
        ranks = 0.08 * np.arange(count)
        expected = isotonic_regression(values - ranks).x + ranks
        np.testing.assert_allclose(spread(list(values), 0.08), expected, atol=1e-12)


def test_long_curves_show_means_of_equal_stretches() -> None:
    values = np.random.default_rng(0).random(2 * figures.POINTS + 1)
    values[:3] = np.nan
    values[7] = np.nan
    assert figures.points_each(len(values)) == 3
    with pytest.warns(RuntimeWarning, match="empty slice"):  # numpy's word for a stretch without values
        expected = [np.nanmean(values[i : i + 3]) for i in range(0, len(values), 3)]
    np.testing.assert_allclose(figures._binned(values), expected)
    assert figures._binned(values[: figures.POINTS]) is not None
    np.testing.assert_array_equal(figures._binned(values[:5]), values[:5])


def test_running_mean_leaves_out_what_is_not_there() -> None:
    values = np.random.default_rng(0).random(100)
    values[[0, 50, 51]] = np.nan
    expected = [np.nanmean(values[max(0, i - 2) : i + 3]) for i in range(100)]
    found = figures._running_mean(values)
    assert found is not None
    np.testing.assert_allclose(found, np.array(expected))
    assert figures._running_mean(values[: figures.SMOOTH_FROM - 1]) is None


def test_diversity_falls_back_to_the_training_groups(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = write_run(tmp_path / "plain", 20, 10)
    assert summary.diversity(read(run)) == summary.Diversity(0.241, 0.221, "between samples of one held-out prompt")
    write_lines(run, "evaluations.jsonl", [evaluation_line(i, 0) for i in (0, 20)])
    write_lines(run, "metrics.jsonl", [metrics_line(i, 20, diversity=i) for i in range(1, 21)])
    found = summary.diversity(read(run))
    assert found == summary.Diversity(1.5, 19.5, "within training groups, first and last 2 iterations")


def test_svg_takes_the_pages_colours_and_keeps_other_peoples_words() -> None:
    with canvas(100, 50) as (figure, axes):
        axes.set_title("#010101 font: 3px url(#x)")
        svg = to_svg(figure, "k", 'a "quoted" < description')
    assert svg.startswith('<svg role="img" aria-label="a &#34;quoted&#34; &lt; description" viewBox="0 0 100 50">')
    assert ">#010101 font: 3px url(#x)<" in svg
    assert "var(--text)" in svg
    assert 'id="k-axes_1"' in svg
    assert "<style" not in svg
    assert "<metadata" not in svg


# -- a real run ------------------------------------------------------------------------------------------------------


def test_report_of_a_real_run(make_config: Callable[..., RunConfig], registry: Registry) -> None:
    trainer = Trainer(make_config(evaluation={"prompts": 6}), registry)
    assert trainer.train() == "finished"
    run = read_run(run_path(trainer.config), registry)
    assert not summary.what_is_missing(run)
    found = Page(page.render(run))
    assert "brightness" in summary.outcome(run)
    assert len(found.all("img")) == 4
    assert ["even", "3"] in [row[:2] for row in found.rows]
