"""Prompts of several sizes in one run: groups have one, micro-batches hold one, and nothing else changes."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.contracts import PromptSource
from dgpo_core.distributed.processes import Processes
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.groups import pairwise_distances
from dgpo_core.flow.paths import PathSteps
from dgpo_core.flow.sizes import check_sizes, different, largest, named, runs
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.media.conditions import condition_medium
from dgpo_core.media.images import contact_sheet
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.dry_run import dry_run
from dgpo_core.training.engine import build_engine
from dgpo_core.training.scored import diversity
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.types import Conditioning, Prompt
from dgpo_core.types import Path as SamplerPath
from dgpo_kit.toy import ToyBackbone, ToyOptions, sizes_plugin
from dgpo_schemas.base import Options
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
SIZES = [[8, 8], [16, 8], [16, 8], [8, 24]]
PROMPTS = {"use": "toy-sizes", "options": {"sizes": SIZES}}
SEVERAL: dict[str, Any] = {"prompts": {"train": PROMPTS, "heldout": PROMPTS}}
DOUBLE = {"backbone": {"options": {"double": True}}}


@pytest.fixture
def registry(registry: Registry) -> Registry:
    """With a source of prompts that have sizes."""
    registry.register(sizes_plugin, distribution="toy-sizes")
    return registry


def logs(path: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / name).read_text().splitlines()]


def saved(path: Path) -> dict[str, bytes]:
    """What is the same byte for byte however often a run was stopped."""
    newest = sorted((path / "checkpoints").iterdir())[-1]
    files = [f for f in sorted(newest.iterdir()) if f.name != "clock.json"] + sorted((path / "images").rglob("*.*"))
    files += [path / "metrics.jsonl", path / "evaluations.jsonl"]
    return {str(f.relative_to(path)): f.read_bytes() for f in files}


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


# -- words and checks -------------------------------------------------------------------------------------------------


def test_runs_of_neighbors() -> None:
    assert runs([]) == []
    assert ["aabac"[run] for run in runs("aabac")] == ["aa", "b", "a", "c"]


def test_sizes_in_words() -> None:
    prompts = [Prompt("a", size=(16, 8)), Prompt("b"), Prompt("c", size=(8, 16)), Prompt("d", size=(16, 8))]
    assert different(prompts, (8, 8)) == [(16, 8), (8, 8), (8, 16)]
    assert named(different(prompts, (8, 8))) == "8x8, 8x16, 16x8"
    assert named([(n, 8) for n in (24, 8, 40, 16, 32)]) == "5 sizes from 8x8 to 40x8"
    assert largest(prompts, (24, 24)) == (24, 24)
    assert largest(prompts, (8, 8)) == (16, 8)
    assert largest([], (8, 8)) == (8, 8)


class Counting:
    """Asked for sizes as a backbone is."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        self.asked.append((height, width))
        if height % 8:
            raise UserError(f"rollout.resolution: {height}x{width} is not possible; the nearest is 8x8")
        return (height, width)


def test_each_size_is_asked_about_once_and_a_bad_one_is_found_where_it_stands() -> None:
    prompts = [Prompt("a"), *[Prompt("b", size=(16, 8))] * 3, Prompt("c", origin="p.jsonl:7", size=(9, 8))]
    backbone: Any = Counting()
    with pytest.raises(UserError, match=r"^p\.jsonl:7: size: 9x8 is not possible; the nearest is 8x8$"):
        check_sizes(backbone, prompts, (8, 8))
    assert backbone.asked == [(8, 8), (16, 8), (9, 8)]
    with pytest.raises(UserError, match=r"^the prompt 'x': size: 1x8 is not"):
        check_sizes(backbone, [Prompt("x", size=(1, 8))], (8, 8))
    with pytest.raises(UserError, match=r"^rollout\.resolution: 3x8 is not"):
        check_sizes(backbone, prompts, (3, 8))


def test_a_bad_size_is_found_before_the_first_sample(make_config: Make, registry: Registry) -> None:
    config = make_config(prompts={"heldout": {"use": "toy-sizes", "options": {"sizes": [[8, 8], [8, 12]]}}})
    with pytest.raises(UserError, match=r"the prompt 'heldout picture [135]': size: 8x12 is not possible; .* 8x16"):
        Trainer(config, registry).train()
    assert not run_path(config).exists()


# -- rolling out ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 100])
def test_a_sample_is_what_it_would_be_alone(micro_batch: int, make_config: Make, registry: Registry) -> None:
    """Whatever is drawn beside it; the order stays, and a micro-batch holds one size."""
    engine = build_engine(make_config(**SEVERAL, **DOUBLE, rollout={"guidance": 2.0}), registry)
    loaded = engine.load_prompts("train")
    prompts, members = [*loaded[:4], replace(loaded[4], size=None)], 3
    rollout_sampler = engine.rollout_sampler(micro_batch=micro_batch)
    drawn = list(rollout_sampler.sample_groups(prompts, members, Draws(8), "policy"))
    assert [i for r in drawn for i in r.samples] == list(range(15))
    assert [list(r.samples) for r in drawn] == [
        list(batch) for batch in rollout_sampler.micro_batches(prompts, members)
    ]
    for rollout in drawn:
        assert {prompt.size for prompt in rollout.prompts} == {(2 * rollout.x0.shape[2], 2 * rollout.x0.shape[3])}
    if micro_batch == 100:
        assert [len(r.samples) for r in drawn] == [3, 6, 3, 3]
    whole = [x0 for r in drawn for x0 in r.x0]
    for g, prompt in enumerate(prompts):
        alone = engine.rollout_sampler().sample_groups([prompt], members, Draws(8), "policy", places=[g])
        for x0, wanted in zip(whole[3 * g : 3 * g + 3], next(alone).x0, strict=True):
            torch.testing.assert_close(x0, wanted, rtol=0, atol=1e-12)


class Edited(ToyBackbone):
    """A model whose prompts bring media: their rows are as long as there are media."""

    def bucket(self, prompt: Prompt) -> Hashable:
        return len(prompt.media)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Any media will do."""

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        media = [[round(255 * float(m.read().mean()), 3) for m in prompt.media] for prompt in prompts]
        return Conditioning({**super().encode(prompts).tensors, "media": torch.tensor(media, dtype=self.dtype)})

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        seen.add((x_sigma.shape, conditioning.tensors["media"].shape))
        found = super().velocity(x_sigma, sigma, conditioning)
        return found + conditioning.tensors["media"].sum(1)[:, None, None, None].to(found)


seen: set[tuple[torch.Size, torch.Size]] = set()


def picture(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (2, 2), (level, level, level)).save(file, "PNG")
    return file.getvalue()


class Media(PromptSource):
    """Prompts of two sizes, with none, one or two media."""

    def prompts(self, split: Literal["train", "heldout"]) -> Sequence[Prompt]:
        media = [condition_medium(picture(level)) for level in (1, 2)]
        counts, sizes = [0, 1, 1, 2, 2, 0], [None, None, None, None, (16, 8), (16, 8)]
        return [Prompt(f"{split} {i}", media=tuple(media[:n]), size=sizes[i]) for i, n in enumerate(counts)]


class _MediaPlugin:
    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return [Component("edited", "The toy with media", f"{__name__}:Edited", ToyOptions)]

    @hookimpl
    def dgpo_prompt_sources(self) -> list[Component]:
        return [Component("media", "With media", f"{__name__}:Media", Options)]


def test_prompts_of_one_size_and_several_buckets(make_config: Make, registry: Registry) -> None:
    """Rows of different shapes never meet, and the buckets say nothing of sizes, which are kept apart all the same."""
    registry.register(_MediaPlugin(), distribution="media")
    seen.clear()
    found = []
    for name, micro_batch in (("three", 3), ("all", 100)):
        config = make_config(
            run={"name": name, "iterations": 2},
            backbone={"use": "edited", "options": {"double": True}},
            prompts={"train": {"use": "media"}, "heldout": {"use": "media"}},
            rollout={"guidance": 1.5, "groups": 6, "micro_batch": micro_batch},
            optimizer={"micro_batch": micro_batch, "learning_rate": 0.01},
        )
        Trainer(config, registry).train()
        found.append(logs(run_path(config), "metrics.jsonl"))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            assert mine["change_norm"] == pytest.approx(theirs["change_norm"], rel=1e-9)
    assert found[0][-1]["change_norm"] > 1e-3
    assert {shape[1] for _, shape in seen} == {0, 1, 2}
    assert {(shape[1], x[2]) for x, shape in seen} == {(0, 4), (1, 4), (2, 4), (2, 8), (0, 8)}


# -- scores and images ----------------------------------------------------------------------------------------------


def test_diversity_is_of_each_group_whatever_the_others_are() -> None:
    generator = torch.Generator().manual_seed(0)
    groups = [torch.rand(3, width, generator=generator) for width in (12, 12, 48, 12)]
    found = diversity([row for group in groups for row in group], 4)
    assert found.tolist() == pytest.approx([float(pairwise_distances(group[None])[1]) for group in groups], rel=1e-6)


def test_a_sheet_of_several_sizes() -> None:
    """Cells are as large as the largest image; what is left is white."""
    sheet = contact_sheet([Image.new("RGB", size, "black") for size in ((8, 4), (2, 6), (3, 3))], 2, 1)
    assert sheet.size == (17, 13)
    dark = {(x, y) for x in range(17) for y in range(13) if sheet.getpixel((x, y)) == (0, 0, 0)}
    assert dark == (
        {(x, y) for x in range(8) for y in range(4)}
        | {(9 + x, y) for x in range(2) for y in range(6)}
        | {(x, 7 + y) for x in range(3) for y in range(3)}
    )


def test_one_process_gathers_what_it_has() -> None:
    media = [torch.zeros(3, 2, 2), torch.ones(3, 4, 2)]
    assert all(a is b for a, b in zip(Processes().all_gather_tensors(media), media, strict=True))


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("paths", [False, True])
def test_the_same_at_any_micro_batch(paths: bool, make_config: Make, registry: Registry) -> None:
    changes: dict[str, Any] = {"rollout": {"steps": 3}}
    if paths:
        changes = {
            "rollout": {"sampler": "flow-sde", "steps": 4},
            "timesteps": {"use": "sampler-steps", "count": 2, "t_min": 0.1},
            "objective": {"use": "flow-grpo", "ema_rollouts_after": None, "kl": 0.02},
            "evaluation": {"sampler": "flow-euler"},
        }
    found = []
    for name, rolled, learned in (("one", 1, 1), ("some", 3, 7), ("all", None, 100)):
        config = make_config(
            **SEVERAL, **DOUBLE,
            run={"name": name, "iterations": 2},
            optimizer={"micro_batch": learned, "learning_rate": 0.01},
            **{**changes, "rollout": {**changes["rollout"], "micro_batch": rolled}},
        )  # fmt: skip
        Trainer(config, registry).train()
        found.append(run_path(config))
    for log, keys in (("metrics.jsonl", ("grad_norm", "change_norm", "diversity")), ("evaluations.jsonl", ("value",))):
        for path in found[1:]:
            for mine, theirs in zip(logs(found[0], log), logs(path, log), strict=True):
                assert [mine[key] for key in keys] == pytest.approx([theirs[key] for key in keys], rel=1e-5), "float32"
    assert logs(found[0], "metrics.jsonl")[-1]["change_norm"] > 1e-3


def test_stopped_and_resumed_bit_by_bit(make_config: Make, registry: Registry) -> None:
    """With a policy that measures, videos and images in between, and finer solves."""
    config = make_config(
        **SEVERAL,
        rollout={"micro_batch": 5},
        optimizer={"micro_batch": 6, "updates": 2, "learning_rate": 0.01},
        timesteps={"use": "disagreement-t-min", "t_min": 0.1, "count": 2, "options": {"every": 2, "samples": 3}},
        evaluation={"samples_per_prompt": 2, "images": 4, "many_step": {"steps": 5, "prompts": 3}},
    )
    Trainer(config, registry).train()
    wanted = saved(run_path(config))
    assert {size_of(f) for f in (run_path(config) / "images" / "000004").glob("0*.png")} == {(8, 8), (8, 16), (24, 8)}
    assert {"step_disagreement", "diversity"} <= {r["reward"] for r in logs(run_path(config), "evaluations.jsonl")}
    for stop_after in (1, 3):
        shutil.rmtree(run_path(config))
        Trainer(config, registry).train(max_iterations=stop_after)
        assert Trainer(config, registry).train(resume=True) == "finished"
        assert saved(run_path(config)) == wanted


def test_videos_of_several_sizes(make_config: Make, registry: Registry, film: object) -> None:
    registry.register(film, distribution="film")
    config = make_config(**SEVERAL, run={"iterations": 1}, backbone={"use": "film"}, rewards=[{"use": "glow"}])
    Trainer(config, registry).train()
    found = run_path(config) / "images" / "000001"
    # Five frames of each, tiny ones enlarged by whole numbers up to 128 pixels.
    assert size_of(found / "grid.png") == (5 * 128 + 4 * 4, 2 * 128 + 4)


def test_a_dry_run_tries_the_largest(make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, ...]] = []
    decode = ToyBackbone.decode
    monkeypatch.setattr(ToyBackbone, "decode", lambda self, x0: decoded.append(x0.shape[2:]) or decode(self, x0))
    found = dry_run(Trainer(make_config(**SEVERAL), registry))
    assert decoded == [(4, 12)] * 3, "a group of each split and a micro-batch"
    assert found["sizes"] == "8x8, 16x8, 8x24"
    assert "sizes" not in dry_run(Trainer(make_config(), registry))


def test_a_probe_is_of_the_usual_size(make_config: Make, registry: Registry) -> None:
    run = Trainer(make_config(**SEVERAL), registry).build()
    assert run.probe(run.training_rollout_sampler, "policy").samples(5).shape == (5, 2, 8, 4)


def test_paths_of_different_times_cannot_be_mixed() -> None:
    paths = [SamplerPath(torch.zeros(3, 1, 2), torch.tensor([1.0, s, 0.0])) for s in (0.5, 0.6)]
    sampler: Any = None
    PathSteps([paths[0], replace(paths[0], sigmas=paths[0].sigmas.clone())], sampler)
    with pytest.raises(UserError, match="samples of different sizes have different times"):
        PathSteps(paths, sampler)
