"""AdamW with moments of 32 and of 8 bits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.training.adamw import make_adamw, restore, state_of
from dgpo_core.training.trainer import Trainer
from dgpo_lab.planning.plan import _held
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sections.training import OptimizerSection
from dgpo_sd3.testing import make_tiny_checkpoint

SECTION: dict[str, Any] = {"learning_rate": 1e-2, "betas": [0.8, 0.95], "epsilon": 1e-6, "weight_decay": 0.02}


def parameters() -> list[nn.Parameter]:
    """One that is large enough for moments of 8 bits (4096 numbers), and one that is not."""
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in ((64, 128), (16, 8))]


def gradients(step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step + 1)
    return [torch.randn(size, generator=generator) for size in ((64, 128), (16, 8))]


def train(section: dict[str, Any], steps: range, made: tuple[Any, list[nn.Parameter]] | None = None) -> Any:
    if made is None:
        own = parameters()
        made = make_adamw(own, OptimizerSection.model_validate(section)), own
    optimizer, own = made
    for step in steps:
        for parameter, gradient in zip(own, gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return made


def by_hand(parameter: Tensor, of: Callable[[int], Tensor], steps: int) -> Tensor:
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, in float64."""
    x, m, v = parameter.double(), torch.zeros(()).double(), torch.zeros(()).double()
    (b1, b2), rate, eps, decay = SECTION["betas"], SECTION["learning_rate"], SECTION["epsilon"], SECTION["weight_decay"]
    for t in range(1, steps + 1):
        g = of(t - 1).double()
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        x = x - rate * (m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + eps) + decay * x)
    return x


@pytest.mark.parametrize(("bits", "within"), [(32, 1e-4), (8, 0.05)])
def test_against_the_algorithm(bits: int, within: float) -> None:
    """Relative to the distance that was gone; small parameters have exact moments in any case."""
    start = parameters()
    _, found = train(SECTION | {"bits": bits}, range(20))
    for i, tolerance in ((0, within), (1, 1e-4)):
        wanted = by_hand(start[i].detach(), lambda step, i=i: gradients(step)[i], 20)  # type: ignore[misc]
        error = (found[i].detach() - wanted).norm() / (wanted - start[i]).norm()
        assert error < tolerance


@pytest.mark.parametrize("bits", [32, 8])
def test_the_state_can_be_put_back(bits: int) -> None:
    """Half of the way, saved and put into a new one: the same bits at the end."""
    section = SECTION | {"bits": bits}
    _, wanted = train(section, range(10))
    half, mine = train(section, range(5))
    saved = {i: state_of(half.state[p]) for i, p in enumerate(mine)}
    pointers = [t.untyped_storage().data_ptr() for state in saved.values() for t in state.values()]
    assert len(set(pointers)) == len(pointers), "safetensors wants tensors that share nothing"
    new = make_adamw(mine, OptimizerSection.model_validate(section))
    for i, state in saved.items():
        for key, tensor in state.items():
            restore(new, mine[i], key, tensor)
    train(section, range(5, 10), (new, mine))
    for a, b in zip(mine, wanted, strict=True):
        assert torch.equal(a, b)


def test_moments_of_8_bits_take_a_quarter() -> None:
    optimizer, (large, _) = train(SECTION | {"bits": 8}, range(1))
    state = optimizer.state[large]
    held = sum(t.numel() * t.element_size() for key, t in state.items() if key.startswith(("state", "absmax")))
    assert held == 2 * large.numel() * (1 + 4 / 256)


def test_bitsandbytes_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"optimizer\.bits: .* pip install 'dgpo\[8bit\]'"):
        train(SECTION | {"bits": 8}, range(1))


def test_a_run_with_8_bits_resumes_bit_for_bit(
    make_config: Callable[..., RunConfig], registry: Registry, tmp_path: Path
) -> None:
    checkpoint = make_tiny_checkpoint(tmp_path / "sd3")

    def run(name: str, *limits: int | None) -> Trainer:
        for i, limit in enumerate(limits):
            config = make_config(
                run={"name": name, "output": str(tmp_path), "iterations": 3},
                optimizer={"bits": 8, "learning_rate": 1e-3},
                rollout={"steps": 2, "group_size": 2, "groups": 2, "resolution": 16, "shift": 1.0},
            )
            backbone = {"use": "sd3", "checkpoint": str(checkpoint), "train": "full"}
            config = RunConfig.model_validate(
                config.model_dump(mode="json", exclude={"backbone"}, exclude_unset=True) | {"backbone": backbone}
            )
            trainer = Trainer(config, registry)
            trainer.train(resume=i > 0, max_iterations=limit)
        return trainer

    whole, parts = run("whole", None), run("parts", 1, 1, None)
    assert any(t.dtype == torch.uint8 for t in whole.build().optimizer.state().values()), (
        "there must be something to compare"
    )
    for found, wanted in (
        (parts.build().policy.state(), whole.build().policy.state()),
        (parts.build().optimizer.state(), whole.build().optimizer.state()),
    ):
        assert found.keys() == wanted.keys()
        for key, tensor in wanted.items():
            assert torch.equal(found[key], tensor), key
    held = _held(whole.build().backbone, whole.config)
    assert held["AdamW state"] == pytest.approx(2 * held["trained weights"] * (1 + 4 / 256) / 4, abs=1)
