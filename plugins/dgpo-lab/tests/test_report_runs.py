"""Reports of runs that are young, old or damaged; images in them, and the numbers behind their figures."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.optimize import isotonic_regression

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_lab.reporting import figures, page, summary
from dgpo_lab.reporting.data import RunData, Score, read_run
from dgpo_lab.reporting.images import read_images
from dgpo_lab.reporting.svg import canvas, sharded, to_svg
from dgpo_schemas.run import RunConfig
from tests.reported import (
    PROMPTS,
    Page,
    evaluation_line,
    metrics_line,
    path_points,
    write_config,
    write_images,
    write_lines,
    write_run,
)

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
        "There are no images.",
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
    write_images(run, 0)
    found = show(run)
    assert "There is only one evaluation: nothing to compare it with yet." in found.text
    assert "No iteration has finished: there are no training curves." in found.text
    assert "There are images of one evaluation only." in found.text
    assert "Drawn by the base model." in found.text
    assert ["single_object", "20", "0.81 [0.73, 0.89]"] in found.rows
    assert len(found.all("img")) == 6
    assert len(found.all("svg")) == 1


def test_reasons_in_the_configuration_are_named(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = tmp_path / "blind"
    write_config(run, prompts={"heldout": None}, evaluation={"every": 0, "images": 0})
    write_lines(run, "metrics.jsonl", [metrics_line(1, 4), metrics_line(2, 4)])
    text = show(run).text
    assert "No evaluation has been made yet (prompts.heldout is not set): there are no scores by task." in text
    assert "There are no images (evaluation.images is 0)." in text


def test_old_and_damaged_logs_are_read_as_far_as_they_go(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = tmp_path / "ema_fast"
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


# -- images --------------------------------------------------------------------------------------------------------


def decoded(uri: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_images_stand_side_by_side_without_loss(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "quickstart", 4, 2)
    images = show(run).all("img")
    assert len(images) == 12
    for i, prompt in enumerate(PROMPTS):
        for image, iteration, when in ((images[2 * i], 0, "Base model"), (images[2 * i + 1], 4, "Iteration 4")):
            file = run / "images" / f"{iteration:06d}" / f"{i:02d}.png"
            np.testing.assert_array_equal(decoded(image["src"]), np.asarray(Image.open(file)))
            assert image["alt"] == f"{when}: {prompt}"
            assert "tiny" in image["class"]
            assert prompt in image["title"]


def test_images_stand_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "000000").mkdir()
    for number in (9, 11, 100):
        Image.new("RGB", (4, 4)).save(tmp_path / "000000" / f"{number:02d}.png")
    (tmp_path / "000000" / "prompts.json").write_text(json.dumps([str(number) for number in range(101)]))
    found = read_images(tmp_path, [])
    assert [pair.prompt for pair in found.pairs] == ["9", "11", "100"]


def test_large_images_are_reduced(tmp_path: Path, show: Callable[[Path], Page]) -> None:
    run = write_run(tmp_path / "large", 2, 1)
    write_images(run, 1, PROMPTS[:1])  # one in between: not shown
    for iteration in (3, 4):
        write_images(run, iteration, PROMPTS[:1], size=(1024, 768))
    for iteration in (0, 2):
        (run / "images" / f"{iteration:06d}").rename(run / f"aside{iteration}")
    (run / "images" / "000001").rename(run / "aside1")
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
        shutil.rmtree(run / "images" / f"{iteration:06d}")
        write_images(run, iteration, PROMPTS[:3], size=(168, 32))
        (run / "images" / f"{iteration:06d}" / "00.mp4").write_bytes(b"film %d" % iteration)
        (run / "images" / f"{iteration:06d}" / "01.mp4").write_bytes(bytes(300_001))
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


def test_images_are_paired_by_prompt_where_the_selection_changed(
    tmp_path: Path, read: Callable[[Path], RunData]
) -> None:
    run = write_run(tmp_path / "changed", 2, 2)
    later = run / "images" / "000002" / "prompts.json"
    later.write_text(json.dumps([PROMPTS[3], "new", "twice", "twice", PROMPTS[0], "newer"]))
    assert [pair.prompt for pair in read(run).images.pairs] == [PROMPTS[0], PROMPTS[3]]
    later.write_text(json.dumps(["other"] * 6))
    data = read(run)
    assert not data.images.pairs
    assert any("show different prompts" in line for line in summary.what_is_missing(data))


def test_damaged_images_are_left_out_and_mentioned(tmp_path: Path, read: Callable[[Path], RunData]) -> None:
    run = write_run(tmp_path / "damaged", 2, 2)
    (run / "images" / "000000" / "01.png").write_bytes(b"no image")
    (run / "images" / "000002" / "prompts.json").unlink()
    data = read(run)
    assert "The image 000000/01.png is damaged." in data.problems
    assert "The prompts of the images in 000002 are not known (prompts.json)." in data.problems


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
    assert figures.time_unit(longest) == unit


def test_curve_is_to_scale() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 8.0]), np.array([0.1, 0.5, 0.2, 0.3])
    axis = figures.Axis("iterations", "iterations", "iteration", float)
    points = path_points(figures.curve(x, {"kl": y}, axis, "k", "a curve"), "var(--after)")
    # Positions in the drawing are affine in the data; y points down.
    np.testing.assert_allclose(np.diff(points[:, 0]) / np.diff(x), np.ptp(points[:, 0]) / 7, rtol=1e-4)
    slopes = np.diff(points[:, 1]) / np.diff(y)
    np.testing.assert_allclose(slopes, slopes[0], rtol=1e-4)
    assert slopes[0] < 0


def test_labels_are_sharded_like_an_isotonic_regression() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 7, 20):
        values = np.sort(generator.random(count))
        ranks = 0.08 * np.arange(count)
        expected = isotonic_regression(values - ranks).x + ranks
        np.testing.assert_allclose(sharded(list(values), 0.08), expected, atol=1e-12)


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


def test_svg_takes_the_pages_colors_and_keeps_other_peoples_words() -> None:
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
