"""What timestep policies see of the model, against the toy network written out in numpy float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.draws import Draws
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.memory import TooLittleMemoryError
from dgpo_core.training.policy import ModelName
from dgpo_core.training.probe import PolicyProbe
from dgpo_core.training.run import TrainingRun
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Schedule
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import SHAPE
from dgpo_schemas.run import RunConfig

Make = Callable[..., RunConfig]
Array = np.ndarray[Any, np.dtype[np.float64]]
SIGMAS = torch.tensor([0.05, 0.4, 1.0], dtype=torch.float64)


@pytest.fixture
def engine(make_config: Make, registry: Registry) -> TrainingRun:
    """The toy in float64, every view with weights of its own; six prompts, samples in micro-batches of 4."""
    made = Trainer(
        make_config(
            backbone={"options": {"double": True}},
            rollout={"guidance": 2.5, "steps": 3, "shift": 3.0, "micro_batch": 4},
        ),
        registry,
    ).build()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in made.policy.state().items():
        tensor += (1 + len(name)) * 0.02 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
    return made


def probe(engine: TrainingRun, model: ModelName = "policy", micro_batch: int | None = None) -> PolicyProbe:
    return engine.probe(engine.rollout_sampler(micro_batch=micro_batch), model)


def velocity(engine: TrainingRun, model: ModelName, x: Array, sigma: float, text: str) -> Array:
    """Of one sample: a hidden layer of tanh, each layer with its adapter unless the view is the base."""
    fixed = {name: p.detach().numpy() for name, p in engine.backbone.module.named_parameters() if "base" in name}
    trained = {name: t.numpy() for name, t in engine.policy.state().items()}

    def layer(number: int, inputs: Array) -> Array:
        out = fixed[f"{number}.base.weight"] @ inputs + fixed[f"{number}.base.bias"]
        if model == "base":
            return out
        down, up = (trained[f"{model}/{number}.{part}.weight"] for part in ("down", "up"))
        return out + up @ (down @ inputs)  # alpha = rank, so the scale is 1

    c = engine.backbone.encode(prompts_of([text])).tensors["c"][0].numpy()
    return layer(2, np.tanh(layer(0, np.concatenate([x.ravel(), [sigma], c])))).reshape(x.shape)


def texts_of(engine: TrainingRun) -> list[str]:
    """Of the first six samples."""
    order = Draws(3).at("probe", "prompts").permutation(6).tolist()
    return [engine.train_prompts[i].text for i in order]


def x0_by_hand(engine: TrainingRun, model: ModelName, i: int, steps: int) -> Array:
    """Euler steps of the guided flow from the noise of sample i."""
    x = Draws(3).at("probe", "samples", i, 0, "noise").normal(SHAPE).double().numpy()
    sigmas = engine.sampler.sigmas(steps, Schedule(3.0)).tolist()
    for here, there in pairwise(sigmas):
        unguided, guided = (velocity(engine, model, x, here, text) for text in ("", texts_of(engine)[i % 6]))
        x = x + (there - here) * (unguided + 2.5 * (guided - unguided))
    return x


@pytest.mark.parametrize("model", ["policy", "ema_fast"])
@pytest.mark.parametrize("refine", [1, 4])
def test_samples_are_rollouts_of_the_same_noise_in_more_steps(
    engine: TrainingRun, model: ModelName, refine: int
) -> None:
    found = probe(engine, model).samples(7, refine=refine)
    assert found.shape == (7, *SHAPE)
    for i in range(7):
        expected = x0_by_hand(engine, model, i, 3 * refine)
        np.testing.assert_allclose(found[i].numpy(), expected, atol=1e-6)  # the sampler's times are float32


def test_samples_do_not_depend_on_their_number_or_the_micro_batch(engine: TrainingRun) -> None:
    whole = probe(engine, micro_batch=100).samples(7, refine=2)
    for micro_batch in (1, 3):
        torch.testing.assert_close(
            probe(engine, micro_batch=micro_batch).samples(5, refine=2), whole[:5], rtol=0, atol=1e-12
        )


def test_every_measurement_has_the_same_noise_and_prompts(engine: TrainingRun) -> None:
    """Whatever was drawn before, so that what changes is the model."""
    first = probe(engine).samples(4)
    torch.manual_seed(5)
    again = probe(engine)
    again.samples(3, refine=2)
    assert torch.equal(again.samples(4), first)
    for tensor in engine.policy.parameters.values():
        tensor.data += 0.01
    assert not torch.allclose(again.samples(4), first, atol=1e-4)


@pytest.mark.parametrize("model", ["policy", "ema_fast"])
@pytest.mark.parametrize("micro_batch", [1, 3, 100])
def test_errors_are_those_of_a_loop_in_float64(engine: TrainingRun, model: ModelName, micro_batch: int) -> None:
    """Of the unguided model, as it is trained; one noise a sample for every time."""
    x0 = torch.randn(7, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = probe(engine, model, micro_batch).errors(x0, SIGMAS)
    for errors, of in zip(found, (model, "base"), strict=True):
        assert errors.shape == (3, 7)
        assert (errors.dtype, errors.device.type) == (torch.float64, "cpu")
        for t, sigma in enumerate(SIGMAS.tolist()):
            for i in range(7):
                clean = x0[i].numpy()
                noise = Draws(3).at("probe", "noise", i).normal(SHAPE).double().numpy()
                seen = (1 - sigma) * clean + sigma * noise
                predicted = velocity(engine, of, seen, sigma, texts_of(engine)[i % 6])
                expected = np.mean((predicted - (noise - clean)) ** 2)
                np.testing.assert_allclose(float(errors[t, i]), expected, rtol=1e-10)
    assert not torch.allclose(*found, rtol=1e-3)


def test_errors_in_halves_are_the_same(engine: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    x0, sigmas = probe(engine).samples(5), torch.tensor([0.7, 0.2], dtype=torch.float64)
    whole = probe(engine).errors(x0, sigmas)
    velocity, sizes, most = type(engine.backbone).velocity, list[int](), 2

    def tight(self: Any, x: Tensor, sigma: Tensor, conditioning: Any) -> Tensor:
        sizes.append(len(x))
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return velocity(self, x, sigma, conditioning)

    monkeypatch.setattr(type(engine.backbone), "velocity", tight)
    for found, wanted in zip(probe(engine).errors(x0, sigmas), whole, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    assert max(sizes) == 4
    most = 0
    with pytest.raises(TooLittleMemoryError, match=r"timesteps: .* a single sample"):
        probe(engine).errors(x0, sigmas)
    monkeypatch.setattr(engine.policy, "sharded", True)  # all ranks run the same passes
    sizes.clear()
    with pytest.raises(TooLittleMemoryError, match=r"timesteps: .* 4 samples; lower rollout\.micro_batch"):
        probe(engine).errors(x0, sigmas)
    assert sizes == [4]


def test_errors_of_single_precision_are_counted_in_double(make_config: Make, registry: Registry) -> None:
    single = Trainer(make_config(), registry).build()
    x0 = probe(single).samples(2)
    assert x0.dtype == torch.float32
    policy, base = probe(single).errors(x0, SIGMAS)
    assert policy.dtype == base.dtype == torch.float64
    assert torch.equal(policy, base), "nothing is trained yet"


def test_prompts_are_in_an_order_of_their_own(make_config: Make, registry: Registry) -> None:
    """Files are sorted by task: the first few would be of one."""
    orders = []
    for seed in (3, 4):
        config = make_config(run={"seed": seed}, prompts={"train": {"use": "toy", "options": {"count": 40}}})
        engine = Trainer(config, registry).build()
        order = [prompt.text for prompt in probe(engine).prompts]
        assert sorted(order) == sorted(p.text for p in engine.train_prompts)
        assert order == [engine.train_prompts[i].text for i in Draws(seed).at("probe", "prompts").permutation(40)]
        orders.append(order)
    assert orders[0] != orders[1]


def test_the_models_model_and_gradients_are_as_they_were(engine: TrainingRun) -> None:
    weights = {name: p.data_ptr() for name, p in engine.policy.parameters.items()}
    for model in ("policy", "ema_fast"):
        seen = probe(engine, model)
        x0 = seen.samples(2, refine=2)
        assert not any(tensor.requires_grad for tensor in (x0, *seen.errors(x0, SIGMAS)))
        assert {name: p.data_ptr() for name, p in engine.policy.parameters.items()} == weights
        with engine.policy.activate("ema"):  # views are not nested: none is in place
            pass
    assert all(p.requires_grad and p.grad is None for p in engine.policy.parameters.values())


def test_the_model_is_restored_where_the_model_fails(engine: TrainingRun, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = probe(engine, "ema_fast")
    x0: Tensor = seen.samples(2)
    with monkeypatch.context() as patched:

        def broken(*arguments: Any) -> Any:
            raise RuntimeError("out of memory")

        patched.setattr(engine.backbone, "velocity", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            seen.errors(x0, SIGMAS)
    seen.errors(x0, SIGMAS)


def test_errors_have_the_models_weight(engine: TrainingRun) -> None:
    x0 = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    plain = probe(engine).errors(x0, SIGMAS)
    engine.backbone.loss_weight = lambda sigma: (2 - sigma).square()  # type: ignore[method-assign]
    for found, before in zip(probe(engine).errors(x0, SIGMAS), plain, strict=True):
        torch.testing.assert_close(found, (2 - SIGMAS[:, None]) ** 2 * before, rtol=1e-12, atol=0)
