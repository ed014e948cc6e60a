"""`dgpo evaluate`, `sample`, `score` and `export` in several processes: the same files to the byte, one voice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dgpo_sd3.testing import make_tiny_checkpoint
from tests.integration.test_processes import PATIENT, SIZES, Driver, Run, assert_all_well

FULL: dict[str, Any] = {"backbone": {"use": "toy", "checkpoint": "toy", "train": "full"}}
SHARDED = {"iterations": 2, "process_timeout": PATIENT, "shard": True}


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver("dgpo_core.distributed.sharding", "dgpo_cli.evaluate", "dgpo_cli.sample", "dgpo_lab.scoring.job")
    yield made
    made.close()


def files(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def said(ended: dict[str, Any]) -> str:
    """What a process has printed, without the warnings of libraries."""
    of_libraries = ("warning: ", "UserWarning: ", "warnings.warn(")
    return "\n".join(line for line in ended["output"].splitlines() if not any(word in line for word in of_libraries))


def in_each(driver: Driver, counts: tuple[int, ...], directory: Path, *command: str, status: int = 0) -> None:
    """A command in so many processes each: the files that it writes to OUT, and what it prints, are the same."""
    wanted: Any = None
    for count in counts:
        out = directory / f"out-{count}"
        out.mkdir(parents=True)
        ended = driver.run([word.replace("OUT", str(out)) for word in command], count)
        assert ended[0]["status"] == status, ended[0]["output"]
        assert_all_well(ended[1:])
        assert not any(said(one) for one in ended[1:]), "one voice"
        found = files(out), said(ended[0]).replace(str(out), "OUT")
        assert found[0]
        wanted = wanted or found
        assert found == wanted, f"{count} processes"


def test_evaluations_are_the_same(driver: Driver, tmp_path: Path) -> None:
    """Prompts of several sizes, samples in many steps."""
    run = Run(tmp_path, **SIZES, evaluation={"prompts": 7, "samples_per_prompt": 3})
    in_each(driver, (1, 3), tmp_path, "evaluate", str(run.file), "--output", "OUT/scores.json", "--micro-batch", "4")


def test_samples_are_the_same(driver: Driver, tmp_path: Path) -> None:
    run = Run(tmp_path, **SIZES)
    in_each(
        driver, (1, 2, 3), tmp_path, "sample", str(run.file), "--output", "OUT/samples", "--limit", "5", "--count", "3"
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Of three sizes, and one file that is no image."""
    (tmp_path / "in").mkdir()
    for i in range(9):
        pixels = np.random.default_rng(i).integers(0, 256, (8 + 4 * (i % 3), 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / "broken.png").write_text("no image")
    return tmp_path / "in"


@pytest.mark.slow
def test_scores_are_the_same(driver: Driver, images: Path, tmp_path: Path) -> None:
    in_each(
        driver, (1, 2, 3), tmp_path, "score", "brightness", str(images), "--prompt", "bright", "--batch", "2",
        "--output", "OUT/scores.json", "--annotate", "OUT/seen", status=1,
    )  # fmt: skip


def test_groups_are_compared_whole(driver: Driver, images: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"file": f"{i}.png", "prompt": f"prompt {i % 3}"}) for i in range(9)]
    (images / "prompts.jsonl").write_text("\n".join(lines))
    files_ = [str(images / f"{i}.png") for i in range(9)]
    in_each(
        driver, (1, 2), tmp_path, "score", "win-rate", *files_, "--prompts", str(images / "prompts.jsonl"),
        "--output", "OUT/scores.json",
    )  # fmt: skip


def test_processes_without_work_go_along(driver: Driver, tmp_path: Path) -> None:
    run = Run(tmp_path)
    command = ["sample", str(run.file), "--prompt", "a circle", "--count", "2", "--output"]
    ended = driver.run([*command, str(tmp_path / "out")], 2)
    assert_all_well(ended)
    assert "note: 1 of 2 processes have samples to draw; --micro-batch makes batches smaller" in ended[0]["output"]
    ended = driver.run([*command, str(tmp_path / "two"), "--micro-batch", "1"], 2)
    assert "note: " not in ended[0]["output"]
    assert (tmp_path / "two" / "01.png").is_file()


def in_all_ways(driver: Driver, counts: tuple[int, ...], run: Run, tmp_path: Path) -> None:
    place = str(run.path)
    commands = [
        ["evaluate", place, "--output", "OUT/scores.json", "--samples", "3"],
        ["sample", place, "--output", "OUT/samples", "--limit", "3", "--count", "3"],
        ["export", place, "--output", "OUT/weights"],
    ]
    for command in commands:
        in_each(driver, counts, tmp_path / command[0], *command)


@pytest.mark.slow
def test_a_model_that_is_sharded(driver: Driver, tmp_path: Path) -> None:
    run = Run(tmp_path, **FULL, run=SHARDED, rollout={"micro_batch": 2})
    assert_all_well(driver.train(run, 2))
    in_all_ways(driver, (1, 2), run, tmp_path)


@pytest.fixture(scope="module")
def diffusers_driver() -> Iterator[Driver]:
    """One that has imported what an SD3 model needs."""
    made = Driver(
        "dgpo_core.distributed.sharding", "dgpo_sd3.backbone", "dgpo_core.lora", "diffusers:StableDiffusion3Pipeline",
        "diffusers:SD3Transformer2DModel", "diffusers:AutoencoderKL", "diffusers:FlowMatchEulerDiscreteScheduler",
        "transformers:CLIPTextModelWithProjection", "transformers:CLIPTokenizer", "peft:LoraConfig",
    )  # fmt: skip
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize(("train", "counts"), [("lora", (1, 2)), ("full", (1, 2, 3))])
def test_a_network_with_blocks_that_is_sharded(
    train: str, counts: tuple[int, ...], diffusers_driver: Driver, tmp_path: Path
) -> None:
    backbone = {"use": "sd3", "checkpoint": str(make_tiny_checkpoint(tmp_path / "sd3")), "train": train}
    run = Run(
        tmp_path,
        backbone=backbone | ({"lora": {"rank": 4, "alpha": 8}} if train == "lora" else {}),
        run=SHARDED,
        rollout={"steps": 2, "group_size": 3, "groups": 3, "micro_batch": 2, "resolution": 16, "guidance": 1.5},
        optimizer={"learning_rate": 1e-3, "micro_batch": 2},
    )
    assert_all_well(diffusers_driver.train(run, 2))
    in_all_ways(diffusers_driver, counts, run, tmp_path)
