"""Feature caches: against diffusers' cached pipeline, for any micro-batch, in the rollouts of training alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import TaylorSeerCacheConfig
from pydantic import ValidationError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from dgpo_core.builtin.samplers import FlowEuler
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.engine import build_engine
from dgpo_core.training.policy import ConditioningCache, Policy
from dgpo_core.training.rollout import RolloutSampler
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.options import CACHES, DiffusersOptions
from dgpo_kit.drawing import randomize
from dgpo_kit.toy import plugin, run_data
from dgpo_lab.planning.iteration import Iteration
from dgpo_lab.planning.plan import measure_model
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.training import ObjectiveSection
from tests.families.proof import among, build, load, proofs

FAMILIES = proofs()
VIDEOS = ("wan", "wan-i2v", "ltx-video")
CACHED = [pytest.param(name, marks=pytest.mark.slow if name in VIDEOS else ()) for name in CACHES["taylorseer"]]
COMPARED = [one for one in CACHED if one.values[0] != "wan-i2v"]
"""In one call of a pipeline, which has the same image for all prompts."""
TAYLORSEER = {"use": "taylorseer", "interval": 2, "full_steps": 2}
STEPS = 7
EXACT = 4
"""Steps without prediction: 0 and 1 of `full_steps`, then every second, 3 and 5."""
TEXTS = ["a red circle", "two blue squares, left", "green"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: FAMILIES[name].make(tmp_path_factory.mktemp("cached") / "tiny"))


def made(name: str, directory: Path, rollout_cache: dict[str, Any] | None, **settings: Any) -> DiffusersBackbone:
    family = FAMILIES[name]
    options = {} if rollout_cache is None else {"rollout_cache": rollout_cache}
    backbone = build(family, directory, {**family.quick, **options}, **settings)
    randomize(backbone)
    return backbone


def size_of(backbone: DiffusersBackbone) -> tuple[int, int]:
    return FAMILIES[backbone.layout.backbone].sizes[0]


def drawn(
    backbone: DiffusersBackbone, *, training: bool = True, guidance: float = 1.0, micro_batch: int = 3, **more: Any
) -> Tensor:
    size = size_of(backbone)
    rollout_sampler = RolloutSampler(
        Policy(backbone, ObjectiveSection()), FlowEuler(None), ConditioningCache(backbone), resolution=size,
        steps=STEPS, shift="auto", guidance=guidance, micro_batch=micro_batch, autocast=nullcontext, training=training,
        **more,
    )  # fmt: skip
    prompts = [replace(backbone.example(size), text=text) for text in TEXTS]
    return torch.cat([r.x0 for r in rollout_sampler.sample_groups(prompts, 1, Draws(0), "policy")])


@pytest.mark.parametrize("name", COMPARED)
def test_samples_are_those_of_the_cached_pipeline(checkpoint: Callable[[str], Path], name: str) -> None:
    """diffusers enables its cache on the transformer of its pipeline. The adapter is new, and changes nothing."""
    family, directory = FAMILIES[name], checkpoint(name)
    backbone = build(family, directory, {**family.values, "rollout_cache": TAYLORSEER})
    shape = backbone.latent_shape(*size_of(backbone))
    noise = normal_rows([Draws(0).at(i, 0).at("noise") for i in range(3)], shape, torch.device("cpu"))
    pipeline = load(family, directory)
    found, exact = drawn(backbone), drawn(backbone, training=False)

    def by_pipeline() -> Tensor:
        height, width = size_of(backbone)
        media = pipeline(
            prompt=TEXTS, height=height, width=width, num_inference_steps=STEPS, latents=family.packed(noise),
            output_type="latent", **family.call, **next(iter(family.cases.values())).pipeline,
        )[0]  # fmt: skip
        return family.unpacked(family.normalized(pipeline, media), tuple(noise.shape[1:])).view_as(noise)

    tolerance = 1e-5 * float(exact.abs().max())
    assert_close(exact, by_pipeline(), atol=tolerance, rtol=0)
    pipeline.transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32,
            cache_identifiers=[r"blocks\.\d+\.attn[12]", r"transformer_blocks\.\d+\.attn[12]"]
            if name in VIDEOS else None,
        )
    )  # fmt: skip
    assert_close(found, by_pipeline(), atol=tolerance, rtol=0)
    effect = 50 if name == "flux2-klein" else 100  # its tiny model changes little between steps
    assert (found - exact).abs().max() > effect * tolerance


@pytest.mark.parametrize("interval", [None, [0.0, 0.8]], ids=["all steps", "guidance begins late"])
@pytest.mark.parametrize("name", among([*CACHES["taylorseer"], "wan, two experts"], quick=["flux"]))
def test_samples_do_not_depend_on_the_micro_batch(
    checkpoint: Callable[[str], Path], name: str, interval: Sequence[float] | None
) -> None:
    backbone = made(name, checkpoint(name), TAYLORSEER)
    how: dict[str, Any] = {"guidance": 3.0, "guidance_interval": interval}
    together, alone = (drawn(backbone, micro_batch=size, **how) for size in (3, 1))
    assert_close(alone, together, atol=2e-5 * float(together.abs().max()), rtol=0)
    exact = drawn(backbone, training=False, **how)
    assert (together - exact).abs().max() > 1e-3 * exact.abs().max(), "the cache has no effect"


@pytest.mark.parametrize("name", among(CACHES["taylorseer"], quick=["flux"]))
def test_nothing_but_training_rollouts_is_cached(checkpoint: Callable[[str], Path], name: str) -> None:
    """Losses and evaluations of a model with a cache equal those of one without, to the bit."""
    cached, plain = (made(name, checkpoint(name), settings) for settings in (TAYLORSEER, None))
    x, sigma = torch.randn(3, *cached.latent_shape(*size_of(cached))), torch.tensor([0.9, 0.5, 0.2])
    rows = cached.encode([replace(cached.example(size_of(cached)), text=text) for text in TEXTS])
    drawn(cached)
    assert cached._cache is not None
    assert cached._cache.layers() == []
    gradients = []
    for backbone in (cached, plain):
        backbone.velocity(x, sigma, rows).square().sum().backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in backbone.trainable().items() if p.grad is not None})
    assert len(gradients[0]) > 4
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())
    assert torch.equal(drawn(cached, training=False), drawn(plain))
    with cached.sampling():  # type: ignore[union-attr]
        wanted = (".attn1", ".attn2") if name in VIDEOS else ".attn"
        assert cached._cache.layers() == [n for n, _ in cached.network.named_modules() if n.endswith(wanted)]
        assert len(cached._cache.layers()) > 1


def test_an_error_ends_the_cache(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = made("flux", checkpoint("flux"), TAYLORSEER)
    monkeypatch.setattr(backbone, "predict", lambda *given: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            drawn(backbone)
        assert backbone._cache is not None
        assert backbone._cache.layers() == []


@pytest.mark.parametrize("name", CACHED)
def test_attention_runs_at_the_exact_steps_alone(checkpoint: Callable[[str], Path], name: str) -> None:
    """With an adapter in its layers, whose linear layers are counted. The next rollout begins anew."""
    backbone = made(name, checkpoint(name), TAYLORSEER | {"order": 0})
    assert backbone._cache is not None
    with backbone._cache.active():
        layers = backbone._cache.layers()
    calls: Counter[str] = Counter()
    for layer in layers:
        linear = next(m for m in backbone.network.get_submodule(layer).modules() if hasattr(m, "base_layer"))
        linear.register_forward_hook(lambda *_, layer=layer: calls.update([layer]))
    for rollout in (1, 2):
        drawn(backbone)
        assert calls == dict.fromkeys(layers, rollout * EXACT)
    calls.clear()
    drawn(backbone, training=False)
    assert calls == dict.fromkeys(layers, STEPS)


def test_a_predicted_step_costs_no_attention(checkpoint: Callable[[str], Path]) -> None:
    backbone = made("flux", checkpoint("flux"), TAYLORSEER)
    with FlopCounterMode(display=False) as cached:
        drawn(backbone)
    with FlopCounterMode(display=False) as exact:
        drawn(backbone, training=False)
    assert cached.get_total_flops() < exact.get_total_flops()


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        ("firstblockcache", "decides for a whole batch at once, so that samples would depend on their micro-batch"),
        ("FirstBlockCache", "decides for a whole batch at once"),
        ("PyramidAttentionBroadcast", "repeats outputs of attention as they are"),
        ("magcache", "needs ratios that are measured for one checkpoint and schedule"),
        ("pab", "repeats outputs of attention as they are, which taylorseer does with `order: 0`"),
        ("TaylorSeer", "is not a known cache; did you mean taylorseer?"),
        ("deepcache", "is not a known cache"),
    ],
)
def test_other_caches_are_refused(use: str, reason: str) -> None:
    with pytest.raises(ValidationError) as refused:
        DiffusersOptions.model_validate({"rollout_cache": {"use": use}})
    assert f"'{use}' {reason}" in str(refused.value)
    assert "possible: taylorseer with flux, flux2-klein, qwen-image, wan, wan-i2v or ltx-video" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("sdxl", "is not possible with sdxl: its layers are not known to be cached correctly; possible: taylorseer"),
        ("sd3", "is not possible with sd3: its layers are not known to be cached correctly; possible: taylorseer"),
        ("z-image", "is not possible with z-image: its layers are not known to be cached correctly; possible: tay"),
    ],
)
def test_other_families_are_refused(checkpoint: Callable[[str], Path], name: str, reason: str) -> None:
    with pytest.raises(UserError) as refused:
        made(name, checkpoint(name), TAYLORSEER)
    assert f"backbone.options.rollout_cache: taylorseer {reason}" in str(refused.value)


def test_a_cache_without_layers_is_an_error(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers says nothing if no layer has the name it looks for."""
    monkeypatch.setattr("dgpo_diffusers.feature_cache.ATTENTION", "no_such_blocks")
    with pytest.raises(UserError, match="with flux: no layer of this FluxTransformer2DModel matches"):
        made("flux", checkpoint("flux"), TAYLORSEER)


def test_a_compiled_model_is_not_cached(checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match="rollout_cache: layers of a compiled model cannot be cached"):
        made("flux", checkpoint("flux"), TAYLORSEER, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux", "flux2-klein"])
def test_a_plan_counts_cached_steps(checkpoint: Callable[[str], Path], name: str) -> None:
    """Of micro-batches of 3, 3 and 2 samples, with guidance at some steps. Outputs that are kept take memory."""
    registry = Registry()
    data = run_data(Path("unused"), rollout={"steps": STEPS, "sampler": "flow-euler", "shift": "auto", "resolution": 32,
                                             "groups": 2, "group_size": 4, "micro_batch": 3, "guidance": 2.0,
                                             "guidance_interval": [0, 0.8]})  # fmt: skip
    options = {**FAMILIES[name].values, **FAMILIES[name].quick}
    registry.register(plugin, distribution="toy")
    peaks = []
    for kept in ({}, {"rollout_cache": TAYLORSEER})[0 if name == "flux2-klein" else 1 :]:
        data["backbone"] = {"use": name, "checkpoint": str(checkpoint(name)), "options": options | kept}
        config = RunConfig.model_validate(data)
        model = measure_model(config, registry)
        iteration = Iteration(config, model.backbone, registry, model.meter, {})
        peaks.append(iteration.peaks["rollout"])
    planned = iteration.operations["rollout"]
    assert peaks == sorted(set(peaks)), "outputs that are kept take memory"
    engine = build_engine(config, registry)
    prompts = [engine.backbone.example((32, 32))] * 2

    def counted(*, training: bool) -> int:
        sampler = engine.rollout_sampler(training=training)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            list(sampler.sample_groups(prompts, 4, Draws(0), "policy"))
        return int(counter.get_total_flops())

    counted(training=True)  # encodes the prompts
    assert planned == counted(training=True) < counted(training=False)
