"""Plans against what really happens: operations counted layer by layer, memory as the CPU's allocator sees it."""

# ruff: noqa: F811 - fixtures are imported to be found

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgpo_core.config.resolve import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import run_data
from dgpo_lab.planning.fit import changed, fitting
from dgpo_lab.planning.plan import Model, Plan, _gathered, _spread, _Steps, make_plan, measure_model
from dgpo_lab.planning.simulate import Cost, cost, faked, operations
from dgpo_schemas.run import BackboneSection, RunConfig
from dgpo_sd3.testing import make_tiny_checkpoint
from tests.conftest import make_config, registry  # noqa: F401

ROOT = Path(__file__).parents[3]
GIB = 2**30


@pytest.fixture(scope="module")
def everything() -> Registry:
    return Registry()


@pytest.fixture(scope="module")
def miniature(everything: Registry) -> RunConfig:
    # A block with both streams at work, without a kl that would need other weights.
    return load_run_config(ROOT / "examples" / "quickstart.yaml", ["objective.kl=0.02"], everything)


@pytest.fixture(scope="module")
def sketched(miniature: RunConfig, everything: Registry) -> Model:
    return measure_model(miniature, everything)


@pytest.fixture(scope="module")
def real(miniature: RunConfig, everything: Registry) -> _Steps:
    backbone = everything.create("backbone", miniature.backbone, device=torch.device("cpu"))
    for parameter in backbone.trainable().values():
        parameter.data.normal_(std=0.02)
    objective = everything.create("objective", miniature.objective)
    return _Steps(backbone, objective, miniature, backbone.latent_shape(64, 64))


def operations_of_layers(module: nn.Module, run: Any) -> int:
    """Two for every multiplication of each linear layer and convolution, from the shapes that they see."""
    total = 0

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.Linear):
            total += 2 * output.numel() * layer.in_features
        elif isinstance(layer, nn.Conv2d):
            window = layer.kernel_size[0] * layer.kernel_size[1] * layer.in_channels // layer.groups
            total += 2 * output.numel() * window

    handles = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return total


def test_operations_of_a_solver_step(sketched: Model, real: _Steps) -> None:
    """Layers as hooks see them, and two products of attention in every block."""
    transformer = real.backbone.module
    layers = operations_of_layers(transformer, lambda: real.draw(1))
    config: Any = transformer.config
    tokens = (8 // config.patch_size) ** 2
    text = real.backbone.encode(prompts_of([""])).tensors["prompt_embeds"].shape[1]
    width = config.num_attention_heads * config.attention_head_dim
    joint = 4 * (tokens + text) ** 2 * width
    image = 4 * tokens**2 * width * len(config.dual_attention_layers or ())
    assert sketched.draw.operations == layers + config.num_layers * joint + image


def test_operations_of_decoding(sketched: Model, real: _Steps) -> None:
    """Convolutions, and attention over the latent's pixels in the middle."""
    layers = operations_of_layers(real.backbone.vae.decoder, lambda: real.decode(1))  # type: ignore[attr-defined]
    vae = real.backbone.vae.config  # type: ignore[attr-defined]
    attention = 4 * (8 * 8) ** 2 * vae.block_out_channels[-1] if vae.mid_block_add_attention else 0
    assert sketched.decode.operations == layers + attention


def test_training_costs_a_backward_pass_more(sketched: Model) -> None:
    """Forward of the policy and of the reference, backward through frozen layers: for their inputs alone, and nothing
    before the first adapter."""
    forward = sketched.reference_operations
    assert 2.8 * forward < sketched.learn.operations < 3.2 * forward


def test_a_kl_term_with_a_moving_reference_costs_a_pass_of_the_base_more(everything: Registry, real: _Steps) -> None:
    """Mode 2b: S_g compares with the fast EMA, the KL term with the base."""

    def learn(kl: float) -> int:
        changes = ["objective.reference=ema", f"objective.kl={kl}", "objective.beta=2000"]
        config = load_run_config(ROOT / "examples" / "quickstart.yaml", changes, everything)
        objective = everything.create("objective", config.objective)
        steps = _Steps(real.backbone, objective, config, real.shape)
        return operations(lambda: steps.learn(1), real.backbone.module)

    with real.backbone.adapter.off() if real.backbone.adapter else nullcontext():
        base = operations(lambda: real.look(1), real.backbone.module)
    assert learn(0.02) - learn(0.0) == base


def real_peak(step: Any) -> int:
    """Largest sum of what the CPU's allocator had given out, by torch's profiler, which knows nothing of us."""
    step()  # buffers that are made once
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    found = now = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            found = max(found, now)
    return found


@pytest.mark.parametrize(("step", "within"), [("draw", 0.01), ("learn", 0.02), ("decode", 0.3)])
def test_peak_memory(step: str, within: float, sketched: Model, real: _Steps) -> None:
    def run() -> None:
        getattr(real, step)(24)
        for parameter in real.backbone.module.parameters():
            parameter.grad = None

    # On the CPU, convolutions lay their inputs out anew, which is no tensor's memory.
    assert getattr(sketched, step).bytes(24) == pytest.approx(real_peak(run), rel=within)


def test_peaks_are_linear(miniature: RunConfig, everything: Registry) -> None:
    kind = everything.implementation(everything.find("backbone", "sd3"))
    options = everything.options_model(everything.find("backbone", "sd3")).model_validate(miniature.backbone.options)
    backbone = kind.sketch(miniature.backbone, options)
    with faked(*backbone.parts().values()):
        backbone.device = torch.device("cpu")
        steps = _Steps(
            backbone, everything.create("objective", miniature.objective), miniature, backbone.latent_shape(64, 64)
        )
        from dgpo_lab.planning.simulate import peak_bytes

        found = cost(steps.learn, backbone.module)
        assert found.bytes(7) == pytest.approx(peak_bytes(lambda: steps.learn(7), backbone.module), rel=1e-2)


def test_what_is_held(sketched: Model, real: _Steps) -> None:
    trained = sum(p.numel() for p in real.backbone.trainable().values())
    assert sketched.held["trained weights"] == 4 * trained
    assert sketched.held["AdamW"] == 8 * trained
    frozen = sum(p.numel() for p in real.backbone.module.parameters()) - trained
    buffers = sum(b.numel() for b in real.backbone.module.buffers())
    assert sketched.held["transformer"] == 4 * (frozen + buffers)


# -- the plan ---------------------------------------------------------------------------------------------------------


def plan_of(data: dict[str, Any], processes: int = 1, spread: frozenset[str] = frozenset()) -> Plan:
    registry = Registry()
    from dgpo_kit.toy import plugin

    registry.register(plugin, distribution="toy")
    model = Model(
        held={"model": 1000, "trained weights": 100, "their averages and start": 300, "gradients": 100}, spread=spread,
        gathered=90, visitors=0, latent=10, draw=Cost(7, 50, 5),
        decode=Cost(3, 20, 2), learn=Cost(11, 80, 30), reference_operations=5, evaluate_operations=7,
    )  # fmt: skip
    return make_plan(RunConfig.model_validate(data), model, registry, processes)


def test_operations_are_linear_in_groups_and_members() -> None:
    base = plan_of(run_data("x", rollout={"groups": 4, "group_size": 4}))
    assert base.operations == {"roll out": 16 * (3 * 7 + 3), "optimise": 16 * 2 * 11}
    for groups, members in ((8, 4), (4, 8)):
        twice = plan_of(run_data("x", rollout={"groups": groups, "group_size": members}))
        assert twice.operations == {verb: 2 * count for verb, count in base.operations.items()}


def test_a_group_that_does_not_fit_is_looked_at_twice() -> None:
    small = plan_of(run_data("x", optimiser={"micro_batch": 2}))
    assert small.operations["optimise"] == 16 * 2 * (11 + 5)


def test_processes_share_samples_and_not_weights() -> None:
    one, two = plan_of(run_data("x")), plan_of(run_data("x"), processes=2)
    assert two.operations == one.operations
    assert two.peaks["optimise"] - one.peaks["optimise"] == 200 - 80, "flat gradients come, half of the latents go"
    assert one.seconds(1e-12, {"roll out": 1, "optimise": 1})["optimise"] == one.operations["optimise"]
    assert two.seconds(1e-12, {"roll out": 1, "optimise": 0.5})["optimise"] == one.operations["optimise"]


def test_a_model_that_is_spread() -> None:
    data = run_data("x", run={"shard": True})
    assert plan_of(data).held == plan_of(run_data("x")).held, "one process has all of it"
    adapter = plan_of(data, 4, frozenset({"model"}))
    assert adapter.held == {
        "model": 250, "trained weights": 100, "their averages and start": 300,
        "gradients": 100, "a block's weights": 90,
    }  # fmt: skip
    full = plan_of(data, 4, frozenset({"model", "trained weights", "their averages and start", "gradients"}))
    assert full.held == {
        "model": 250, "trained weights": 25, "their averages and start": 100, "gradients": 25, "a block's weights": 90,
    }  # fmt: skip
    assert adapter.peaks["optimise"] - full.peaks["optimise"] == 350 + 200, "nor are gradients laid out flat"
    assert full.operations == plan_of(data).operations


def test_what_is_gathered_at_a_time(everything: Registry, tmp_path: Path) -> None:
    """The two blocks of a tiny SD3, which differ, and what is outside of them."""
    checkpoint = make_tiny_checkpoint(tmp_path / "sd3")
    kind = everything.implementation(everything.find("backbone", "sd3"))
    for train in ("lora", "full"):
        section = BackboneSection.model_validate({"use": "sd3", "checkpoint": str(checkpoint), "train": train})
        options = everything.options_model(everything.find("backbone", "sd3"))()
        sketch = kind.sketch(section, options)
        named = {n: p.numel() * p.element_size() for n, p in sketch.module.named_parameters() if "lora" not in n}
        blocks = [sum(b for n, b in named.items() if n.startswith(f"transformer_blocks.{i}.")) for i in (0, 1)]
        assert blocks[0] > blocks[1] > 0
        wanted = sum(named.values()) - sum(blocks) + 2 * blocks[0]
        assert _gathered(sketch) == wanted * (1 if train == "lora" else 2)
        assert "transformer" in _spread(sketch)
        assert ("AdamW" in _spread(sketch)) == (train == "full")


def test_fitting_takes_the_fewest_changes() -> None:
    data = run_data("x", rollout={"micro_batch": 8}, optimiser={"micro_batch": 4})
    data["backbone"] |= {"options": {"decode_chunk": 8}}
    config = RunConfig.model_validate(data)

    def plan(one: RunConfig) -> Plan:
        size = (one.optimiser.micro_batch or 4) * (1 if one.backbone.gradient_checkpointing else 10)
        return Plan(1, {}, {"optimise": float(size)}, {}, 0.0)

    assert fitting(config, plan, 40)[0] == {}  # type: ignore[index]
    found = fitting(config, plan, 25)
    assert found is not None
    assert found[0] == {
        "rollout.micro_batch": 4, "optimiser.micro_batch": 2, "backbone.options.decode_chunk": 4,
    }  # fmt: skip
    assert fitting(config, plan, 5)[0] == {"backbone.gradient_checkpointing": True}  # type: ignore[index]
    assert fitting(config, plan, 0.5) is None
    has_no_such_option = fitting(config, plan, 25, lambda changes: "backbone.options.decode_chunk" not in changes)
    assert has_no_such_option is not None
    assert has_no_such_option[0] == {"rollout.micro_batch": 4, "optimiser.micro_batch": 2}
    assert changed(config, {"optimiser.micro_batch": 2}).optimiser.micro_batch == 2


def test_a_backbone_that_cannot_be_sketched(make_config: Any, registry: Registry) -> None:
    with pytest.raises(UserError, match=r"backbone\.use: toy cannot be planned: ToyBackbone does not say"):
        measure_model(make_config(), registry)


def test_a_name_that_is_not_known(everything: Registry) -> None:
    config = load_run_config(ROOT / "examples" / "sd35-geneval.yaml", ["backbone.checkpoint=a/b"], everything)
    with pytest.raises(UserError, match="a/b is no directory here, and what it looks like is not known; known are"):
        measure_model(config, everything)


def test_sd35_medium_is_as_large_as_published(everything: Registry) -> None:
    """The published transformer is a file of 4.94 GB in bfloat16, position embeddings included."""
    config = load_run_config(ROOT / "examples" / "sd35-geneval.yaml", [], everything)
    kind = everything.implementation(everything.find("backbone", "sd3"))
    options = everything.options_model(everything.find("backbone", "sd3")).model_validate(config.backbone.options)
    backbone = kind.sketch(config.backbone, options)
    own = {id(p) for p in backbone.trainable().values()}
    tensors = [t for t in (*backbone.module.parameters(), *backbone.module.buffers()) if id(t) not in own]
    assert sum(t.numel() for t in tensors) * 2 / 1e9 == pytest.approx(4.94, abs=0.01)
