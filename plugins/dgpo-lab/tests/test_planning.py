"""Plans compared with real iterations: FLOPs from torch's counter and layer by layer, memory from the CPU allocator."""

# ruff: noqa: F811 - fixtures are imported to be found

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.flow.groups import compute_advantages
from dgpo_core.flow.paths import random_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import build_engine
from dgpo_core.training.optimizer import Optimizer
from dgpo_core.training.policy import Policy
from dgpo_core.types import Prompt, ScoredGroups
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import run_data
from dgpo_lab.planning.embeddings import embeddings_of
from dgpo_lab.planning.fit import changed, fitting
from dgpo_lab.planning.iteration import Iteration
from dgpo_lab.planning.meter import LOOKS, Meter
from dgpo_lab.planning.plan import Held, Plan, _gathered, _sharded, make_plan, measure_model, on_each
from dgpo_lab.planning.shapes import CPU, CUDA
from dgpo_lab.planning.waiting import Waiting
from dgpo_schemas.run import BackboneSection, RunConfig
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.testing import make_tiny_checkpoint
from tests.conftest import make_config, registry  # noqa: F401

ROOT = Path(__file__).parents[3]
GIB = 2**30
SMALL = (
    "rollout.groups=2", "rollout.group_size=4", "rollout.micro_batch=3", "rollout.steps=3", "objective.kl=0.02",
    "timesteps.count=2", "run.threads=1",
)  # fmt: skip
"""Micro-batches of 3, 3 and 2 samples."""


@pytest.fixture(scope="module")
def everything() -> Registry:
    return Registry()


def miniature(registry: Registry, *settings: str, example: str = "quickstart") -> RunConfig:
    return load_run_config(ROOT / "examples" / f"{example}.yaml", [*SMALL, *settings], registry)


def planned(config: RunConfig, registry: Registry, processes: int = 1, device: torch.device = CUDA) -> Iteration:
    model = measure_model(config, registry, device=device)
    return Iteration(config, model.backbone, registry, model.meter, {}, processes=processes)


class Real:
    """Runs an iteration on the real model, phase by phase, without a reward."""

    def __init__(self, config: RunConfig, registry: Registry, around: Callable[[str], Any]) -> None:
        engine = build_engine(config, registry)
        objective = engine.create("objective", config.objective)
        backbone, rollout = engine.backbone, config.rollout
        prompts = [backbone.example(rollout.height_width)] * rollout.groups
        engine.conditioning.rows(prompts)
        engine.conditioning.unconditional_rows(prompts)
        optimizer = Optimizer(
            config, engine.policy, objective, engine.conditioning, autocast=engine.runtime.autocast,
            sampler=engine.sampler,
        )  # fmt: skip
        self.engine, self.optimizer = engine, optimizer
        path = objective.needs_path
        explore = rollout.explore
        rounds = [] if explore is None else [(explore.candidates, explore.steps)]
        for members, steps in (*rounds, (rollout.group_size, rollout.steps)):
            sampler = engine.rollout_sampler(steps=steps)
            draws = sampler.sample_groups(prompts, members, Draws(0), "policy", keep_path=path)
            rollouts = []
            while True:
                with around("rollout"):
                    sampled = next(draws, None)
                if sampled is None:
                    break
                rollouts.append(sampled)
                with around("decode"):
                    backbone.decode(sampled.x0)
        rewards = torch.randn(rollout.groups, rollout.group_size, dtype=torch.float64)
        scored = torch.ones_like(rewards, dtype=torch.bool)
        groups = ScoredGroups(
            prompts=tuple(prompts), x0=[x for r in rollouts for x in r.x0], own=range(rewards.numel()), rewards=rewards,
            summed=rewards, scored=scored, per_reward={}, diversity=rewards[:, 0],
            paths=tuple(r.path for r in rollouts if r.path is not None),
        )  # fmt: skip
        batch = compute_advantages(groups, config.advantages, engine.create("weighting", config.weighting))
        times = engine.sampler.sigmas(config.rollout.steps, engine.times.schedule)
        sigmas = (random_times(engine.sampler, times) if path else times)[: config.timesteps.count]
        with around("optimize"):
            for _ in range(config.optimizer.passes):
                optimizer.step(batch, sigmas, Draws(0))


@pytest.mark.parametrize(
    ("example", "settings"),
    [
        ("quickstart", ["optimizer.micro_batch=3", "rollout.guidance=2", "objective.clip=0.01"]),
        ("quickstart", ["weighting=best-vs-worst", "objective.kl=0", "rollout.merge_adapter=true"]),
        pytest.param("quickstart", ["objective.reference=ema_fast", "optimizer.updates=2"], marks=pytest.mark.slow),
        ("quickstart", ["optimizer.passes=2", "optimizer.updates=2"]),
        ("quickstart", ["rollout.guidance=2", "rollout.explore={candidates: 7, steps: 2}"]),
        pytest.param("quickstart", ["backbone.gradient_checkpointing=true", "optimizer.micro_batch=2"],
                     marks=pytest.mark.slow),
        pytest.param("quickstart", ["backbone={use: sd3, checkpoint: 'package:dgpo_miniature/checkpoint', "
                                    "train: full, options: {text_length: 0}}"], marks=pytest.mark.slow),
        pytest.param("miniature-flow-grpo", ["rollout.guidance=2"], marks=pytest.mark.slow),
        ("quickstart", ["rollout.guidance=2", "rollout.guidance_interval=[0.3, 0.9]"]),
        pytest.param("miniature-flow-grpo", ["rollout.guidance=2", "rollout.guidance_interval=[0.3, 0.9]"],
                     marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_operations_equal_those_of_a_real_iteration(
    example: str, settings: Sequence[str], everything: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Policy, "fast_is_policy", False)  # as in a plan, which is of a later iteration
    config = miniature(everything, *settings, example=example)
    counted: Counter[str] = Counter()

    @contextmanager
    def counting(phase: str) -> Iterator[None]:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            yield
        counted[phase] += counter.get_total_flops()

    Real(config, everything, counting)
    assert planned(config, everything).operations == counted


@pytest.mark.slow
def test_peak_memory(everything: Registry) -> None:
    """Compares with the peak of the CPU allocator in torch's profiler.

    Convolutions copy their inputs to another layout on the CPU, which the plan does not count.
    """
    config = miniature(
        everything, "rollout.group_size=24", "rollout.micro_batch=24", "optimizer.micro_batch=24", "rewards.0.worker={}"
    )  # no media wait for scores, as in `Real`
    found: dict[str, int] = {}

    @contextmanager
    def profiled(phase: str) -> Iterator[None]:
        gc.collect()  # what other tests have left must not be freed in between
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            yield
        most = now = 0
        for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
            if event.name() == "[memory]":
                now += event.nbytes()
                most = max(most, now)
        found.setdefault(phase, most)

    real = Real(config, everything, profiled)
    gradients = sum(4 * p.numel() for p in real.engine.policy.parameters.values())
    peaks = planned(config, everything, device=CPU).peaks
    assert peaks["rollout"] == pytest.approx(found["rollout"], rel=0.02)
    assert peaks["optimize"] + gradients == pytest.approx(found["optimize"], rel=0.02)
    assert peaks["decode"] == pytest.approx(found["decode"], rel=0.3)


def test_media_that_wait_for_scores_are_counted(everything: Registry) -> None:
    here = miniature(everything, "rollout.micro_batch=2", "scoring.in_flight=1")
    elsewhere = miniature(everything, "rollout.micro_batch=2", "rewards.0.worker={}")
    found, without = (planned(config, everything).peaks for config in (here, elsewhere))
    medium = 3 * 64 * 64 * 4
    assert found["rollout"] - without["rollout"] == 4 * medium  # two queued, and two being scored
    assert found["decode"] - without["decode"] == 4 * medium
    assert abs(found["optimize"] - without["optimize"]) < medium


@pytest.mark.parametrize(
    ("settings", "held"),
    [
        (["scoring.in_flight=0"], [3, 3, 3]),  # those being scored
        (["scoring.in_flight=1"], [3, 6, 6]),
        (["scoring.in_flight=9"], [3, 6, 8]),
        (["scoring.in_flight=9", "rewards.0.worker={}"], [0, 0, 0]),  # copies in host memory
    ],
)
def test_how_many_media_wait(settings: list[str], held: list[int], everything: Registry) -> None:
    waiting, found = Waiting(miniature(everything, *settings), everything), []
    for count in (3, 3, 2):
        waiting.add(torch.zeros(count, 3, 2, 2))
        found.append(waiting.nbytes / (3 * 2 * 2 * 4))
    assert found == held


def test_groups_that_are_compared_wait_whole(registry: Registry, tmp_path: Path) -> None:
    data = run_data(tmp_path, rollout={"group_size": 4, "micro_batch": 3}, scoring={"in_flight": 1})
    config = RunConfig.model_validate(data | {"rewards": [{"use": "win-rate"}]})
    assert Waiting(config, registry).most == (1 + 1) * 4 + 4
    data["rollout"]["explore"] = {"candidates": 9, "steps": 1}
    config = RunConfig.model_validate(data | {"rewards": [{"use": "win-rate"}]})
    assert Waiting(config, registry).most == (1 + 1) * 9 + 9


# -- layer by layer ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(everything: Registry) -> SD3Backbone:
    made: SD3Backbone = everything.create("backbone", miniature(everything).backbone, device=torch.device("cpu"))
    return made


@torch.no_grad()
def forward(real: SD3Backbone) -> int:
    """Return the FLOPs of a forward pass: layers by hooks, and two matrix products of attention in every block."""
    prompts = [real.example((64, 64))]
    x = torch.zeros(1, *real.latent_shape(64, 64))
    layers = operations_of_layers(real.module, lambda: real.velocity(x, torch.full((1,), 0.5), real.encode(prompts)))
    config: Any = real.module.config
    tokens = (8 // config.patch_size) ** 2
    text = real.encode(prompts_of([""])).tensors["prompt_embeds"].shape[1]
    width = config.num_attention_heads * config.attention_head_dim
    image = 4 * tokens**2 * width * len(config.dual_attention_layers or ())
    return layers + config.num_layers * 4 * (tokens + text) ** 2 * width + image


def operations_of_layers(module: nn.Module, run: Any) -> int:
    """Return two FLOPs per multiplication of each linear layer, adapter and convolution, from the shapes in hooks."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * output.numel() * layer.in_features
        elif isinstance(layer, nn.Conv2d):
            window = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
            total += 2 * output.numel() * window
        elif isinstance(layer, LoraLayer) and not layer.disable_adapters:
            total += 2 * (inputs[0].numel() + output.numel()) * layer.r["default"]

    counted = [m for name, m in module.named_modules() if "lora_" not in name]
    handles = [m.register_forward_hook(count) for m in counted if isinstance(m, nn.Linear | nn.Conv2d | LoraLayer)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return total


def test_operations_of_the_layers(everything: Registry, real: SD3Backbone) -> None:
    """Rollout: one pass per step. Decoding: convolutions, and attention over the latent pixels in the middle block.
    Training: forward of the policy and the reference; backward through frozen layers only for their inputs, and not
    below the first adapter."""
    found, step = planned(miniature(everything), everything).operations, forward(real)
    assert found["rollout"] == 8 * 3 * step
    layers = operations_of_layers(real.vae.decoder, lambda: real.decode(torch.zeros(1, *real.latent_shape(64, 64))))
    vae = real.vae.config
    attention = 4 * (8 * 8) ** 2 * vae.block_out_channels[-1] if vae.mid_block_add_attention else 0
    assert found["decode"] == 8 * (layers + attention)
    assert 2.8 * step < found["optimize"] / 16 < 3.2 * step


def test_candidates_are_drawn_too(everything: Registry, real: SD3Backbone) -> None:
    """Of 8 samples in 3 steps, and of 2 groups of 7 candidates in 2 steps; on several ranks, those of all of them."""
    explore = "rollout.explore={candidates: 7, steps: 2}"
    plain, found = (planned(miniature(everything, *more), everything) for more in ((), (explore,)))
    assert found.operations["rollout"] == (8 * 3 + 14 * 2) * forward(real)
    assert found.operations["decode"] * 8 == plain.operations["decode"] * (8 + 14)
    assert found.operations["optimize"] == plain.operations["optimize"]
    for processes in (1, 3):
        of_all = planned(miniature(everything, explore), everything, processes)
        assert of_all.drawn == pytest.approx(found.operations["rollout"] + found.operations["decode"])


def test_passes_that_settings_add(everything: Registry, real: SD3Backbone) -> None:
    """With a moving reference, S_g compares with ema_fast and the KL term with the base model: one more pass.

    A group of two micro-batches needs three passes of half of it. A fast EMA that is the policy needs none.
    """

    def learn(*settings: str) -> int:
        changes = ("objective.reference=ema_fast", "objective.beta=2000", *settings)
        return planned(miniature(everything, *changes), everything).operations["optimize"]

    with real.adapter.off() if real.adapter else nullcontext():
        base = forward(real)
    plain = learn("objective.kl=0")
    assert learn("objective.kl=0.02") - plain == 16 * base
    assert learn("objective.kl=0", "optimizer.micro_batch=2") - plain == 8 * forward(real)
    assert plain - learn("objective.kl=0", "objective.ema_fast.ramp=0") == 16 * forward(real)


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_operations_are_linear_in_groups_and_members(everything: Registry) -> None:
    base = planned(miniature(everything), everything).operations
    for change in ("rollout.groups=4", "rollout.group_size=8"):
        twice = planned(miniature(everything, change), everything).operations
        assert twice == {phase: 2 * count for phase, count in base.items()}


def test_held_memory(everything: Registry, real: SD3Backbone) -> None:
    config = miniature(everything)
    model = measure_model(config, everything)
    trained = sum(p.numel() for p in real.trainable().values())
    assert model.held["trained weights"] == 4 * trained
    assert model.held["AdamW state"] == 8 * trained
    frozen = sum(p.numel() for p in real.module.parameters()) - trained
    buffers = sum(b.numel() for b in real.module.buffers())
    assert model.held["transformer"] == 4 * (frozen + buffers)
    one, two = (make_plan(config, model, everything, count) for count in (1, 2))
    assert one.operations == two.operations, "samples are split over the ranks"
    assert one.held == two.held, "weights are not"
    assert one.seconds(1e-12, {"rollout": 1, "optimize": 1})["optimize"] == one.operations["optimize"]
    assert two.seconds(1e-12, {"rollout": 1, "optimize": 0.5})["optimize"] == one.operations["optimize"]


def test_memory_of_a_sharded_model() -> None:
    held = {"model": 1000, "trained weights": 100, "EMA and initial weights": 300, "gradients": 100}
    assert on_each(Held(held, frozenset(), 90, 0), 1, shards=1) == (held, {"optimize": 0}), (
        "a single process holds everything"
    )
    assert on_each(Held(held, frozenset(), 90, 0), 2, shards=1) == (held, {"optimize": 200}), (
        "a flat buffer for gradients"
    )
    assert on_each(Held(held, frozenset({"model"}), 90, 0), 4, shards=4) == ({
        "model": 250, "trained weights": 100, "EMA and initial weights": 300,
        "gradients": 100, "gathered block weights": 90,
    }, {"optimize": 200})  # fmt: skip
    full = frozenset({"model", "trained weights", "EMA and initial weights", "gradients"})
    assert on_each(Held(held, full, 90, 0), 4, shards=4) == ({
        "model": 250, "trained weights": 25, "EMA and initial weights": 100, "gradients": 25,
        "gathered block weights": 90,
    }, {"optimize": 0})  # fmt: skip


def test_gathered_memory(everything: Registry, tmp_path: Path) -> None:
    """A tiny SD3 has two blocks of different size, and weights outside of them."""
    checkpoint = make_tiny_checkpoint(tmp_path / "sd3")
    kind = everything.implementation(everything.find("backbone", "sd3"))
    for train in ("lora", "full"):
        section = BackboneSection.model_validate({"use": "sd3", "checkpoint": str(checkpoint), "train": train})
        options = everything.options_model(everything.find("backbone", "sd3"))()
        meta_model = kind.meta_model(section, options)
        named = {n: p.numel() * p.element_size() for n, p in meta_model.module.named_parameters() if "lora" not in n}
        blocks = [sum(b for n, b in named.items() if n.startswith(f"transformer_blocks.{i}.")) for i in (0, 1)]
        assert blocks[0] > blocks[1] > 0
        expected = sum(named.values()) - sum(blocks) + 2 * blocks[0]
        assert _gathered(meta_model) == expected * (1 if train == "lora" else 2)
        assert "transformer" in _sharded(meta_model)
        assert ("AdamW state" in _sharded(meta_model)) == (train == "full")


def test_fitting_makes_the_fewest_changes() -> None:
    data = run_data("x", rollout={"micro_batch": 8}, optimizer={"micro_batch": 4})
    data["backbone"] |= {"options": {"decode_chunk": 8}}
    config = RunConfig.model_validate(data)

    def plan(candidate: RunConfig) -> Plan:
        size = (candidate.optimizer.micro_batch or 4) * (1 if candidate.backbone.gradient_checkpointing else 10)
        return Plan(1, {}, {"optimize": float(size)}, {}, 0.0)

    assert fitting(config, plan, 40)[0] == {}  # type: ignore[index]
    found = fitting(config, plan, 25)
    assert found is not None
    assert found[0] == {
        "rollout.micro_batch": 4, "optimizer.micro_batch": 2, "backbone.options.decode_chunk": 4,
    }  # fmt: skip
    assert fitting(config, plan, 5)[0] == {"backbone.gradient_checkpointing": True}  # type: ignore[index]
    assert fitting(config, plan, 0.5) is None
    without_option = fitting(config, plan, 25, lambda changes: "backbone.options.decode_chunk" not in changes)
    assert without_option is not None
    assert without_option[0] == {"rollout.micro_batch": 4, "optimizer.micro_batch": 2}
    assert changed(config, {"optimizer.micro_batch": 2}).optimizer.micro_batch == 2


def test_a_backbone_without_a_meta_model_is_refused(make_config: Any, registry: Registry) -> None:
    with pytest.raises(
        UserError, match=r"backbone\.use: toy cannot be planned: ToyBackbone does not implement meta_model"
    ):
        measure_model(make_config(), registry)


def test_a_backbone_with_weights_outside_of_its_components_is_refused(
    everything: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = miniature(everything)
    components = SD3Backbone.components
    monkeypatch.setattr(
        SD3Backbone, "components", lambda self: {n: p for n, p in components(self).items() if n != "autoencoder"}
    )
    with pytest.raises(
        UserError, match=r"^backbone\.use: sd3 cannot be planned: it uses a weight .* not in its `components`"
    ):
        planned(config, everything)


def test_tables_that_are_neither_parameters_nor_buffers_are_known() -> None:
    """As complex tables of positions, which a buffer would lose the imaginary part of when the dtype changes."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.polar(torch.ones(8), torch.arange(8.0))

        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(torch.view_as_complex(x) * self.table)

    with torch.device("meta"):
        module = Turned()
    with Meter("here", module) as meter, meter.lap() as lap:
        assert module(torch.zeros(8, 2, device=CUDA)).shape == (8, 2)
    assert lap.peak > 0


def test_a_sampler_that_depends_on_values_is_refused(everything: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler loops until its error is small, which never happens without values."""

    def sample(self: FlowEuler, velocity: Any, noise: Tensor, **keywords: Any) -> Any:
        error = velocity(noise, noise.new_tensor(0.5)).abs().max()
        for _ in range(2 * LOOKS):
            if float(error) < 1e-3:
                break
        else:
            raise AssertionError("the loop was not stopped")

    monkeypatch.setattr(FlowEuler, "sample", sample)
    config = miniature(everything, "rollout.sampler=flow-euler")
    with pytest.raises(UserError, match=r"^this run cannot be planned: its sampler, .* depend on values"):
        planned(config, everything)


def test_an_unknown_checkpoint_is_reported(everything: Registry) -> None:
    config = load_run_config(ROOT / "examples" / "sd35-geneval.yaml", ["backbone.checkpoint=a/b"], everything)
    with pytest.raises(UserError, match=r"a/b is neither a local directory nor .*; known models:"):
        measure_model(config, everything)


def test_sd35_medium_is_as_large_as_published(everything: Registry) -> None:
    """The published transformer is a file of 4.94 GB in bfloat16, position embeddings included."""
    config = load_run_config(ROOT / "examples" / "sd35-geneval.yaml", [], everything)
    kind = everything.implementation(everything.find("backbone", "sd3"))
    options = everything.options_model(everything.find("backbone", "sd3")).model_validate(config.backbone.options)
    backbone = kind.meta_model(config.backbone, options)
    own = {id(p) for p in backbone.trainable().values()}
    tensors = [t for t in (*backbone.module.parameters(), *backbone.module.buffers()) if id(t) not in own]
    assert sum(t.numel() for t in tensors) * 2 / 1e9 == pytest.approx(4.94, abs=0.01)


def test_embeddings_on_disk(tmp_path: Path) -> None:
    """Distinct prompts and negative prompts, by size; the rows are those of the meta model."""
    checkpoint = str(make_tiny_checkpoint(tmp_path / "sd3"))
    backbone = {"use": "sd3", "checkpoint": checkpoint, "options": {"text_length": 0}, "cache": {"max_gb": 1e-3}}
    config = RunConfig.model_validate(run_data(tmp_path, rollout={"resolution": 32}) | {"backbone": backbone})
    model = measure_model(config, Registry())
    with model.meter:
        rows = model.backbone.encode([model.backbone.example((32, 32))])
    row = sum(4 * t.numel() for t in rows.tensors.values())
    prompts = [Prompt("a"), Prompt("a", size=(32, 32)), Prompt("a", size=(64, 32)), Prompt("b", negative="c")]
    found = embeddings_of(config, model, prompts)
    assert found is not None
    assert (found.rows, found.bytes, found.limit) == (3 + 3, 6 * row, 10**6)
    assert found.encoders == model.held["text encoders"] > 0
    assert found.lines()[0].startswith("backbone.cache: 6 embeddings, 0.0")
    many = embeddings_of(config, model, [Prompt(f"{i}") for i in range(10**6 // row + 1)])
    assert many is not None
    assert many.lines()[1] == "keeps only the last used ones. All of them need max_gb: 2."
    plain = config.model_copy(update={"backbone": config.backbone.model_copy(update={"cache": None})})
    assert embeddings_of(plain, model, prompts) is None
