"""`run.device: mps`: chosen where torch has it, refused in words, and the numbers of the CPU. There is no Mac here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.distributed.processes import Processes
from dgpo_core.distributed.runtime import Runtime
from dgpo_core.draws import Draws, normal_rows
from dgpo_core.errors import RunStopped, UserError
from dgpo_core.functional import advantages, group_preference_loss, signed_weights
from dgpo_core.plugins.process_state import put_back, thread_snapshot
from dgpo_core.plugins.registry import Registry
from dgpo_core.system.device import choose_device, device_name, forget_peak_bytes, peak_bytes, wait_for_device
from dgpo_core.system.operators import refused_operator
from dgpo_core.system.out_of_memory import device_is_out_of_memory
from dgpo_core.training import memory
from dgpo_core.training.dry_run import dry_run
from dgpo_core.training.reward_calls import Reward
from dgpo_core.training.scored import thumbnails
from dgpo_core.training.scoring import Scorer
from dgpo_core.training.trainer import Trainer, run_path
from dgpo_core.transfers import in_float64, to_device
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import ToyBackbone
from dgpo_schemas.run import RunConfig
from tests.imitated_mps import MPS, available, imitated

Make = Callable[..., RunConfig]
SIZES: dict[str, Any] = {"rollout": {"micro_batch": 8}, "optimizer": {"micro_batch": 4}}
"""A GPU has other defaults, and statistics of a micro-batch are averaged in it."""


@pytest.fixture
def there() -> Iterator[None]:
    with available():
        yield


# -- the choice -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "cuda", "mps", "expected"),
    [("auto", False, True, "mps:0"), ("auto", True, True, "cuda:0"), ("cpu", False, True, "cpu"),
     ("mps", False, True, "mps:0"), ("mps", True, True, "mps:0"), ("auto", False, False, "cpu")],
)  # fmt: skip
def test_the_device(name: str, cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert str(choose_device(name)) == expected


@pytest.mark.parametrize(("built", "reason"), [(False, "built without it"), (True, "finds no GPU that it can use")])
def test_mps_that_is_not_there(built: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"^run\.device: mps is not available: .*{reason}.*; use auto or cpu$"):
        choose_device("mps")


def test_several_processes_are_refused(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=r"^several processes cannot run on MPS.* set run\.device: cpu$"):
        Processes.join(cpu=False, timeout=1.0)


IMPOSSIBLE = [
    ("run", "deterministic", True), ("backbone", "compile", True), ("precision", "attention", "flash"),
    ("optimizer", "bits", 8),
]  # fmt: skip


@pytest.mark.parametrize(("section", "key", "value"), IMPOSSIBLE)
def test_settings_that_cannot_work(section: str, key: str, value: Any, make_config: Make, there: None) -> None:
    """As the file is read if it names MPS, and at the start of the run if `auto` has chosen it."""

    def made(device: str) -> RunConfig:
        sections: dict[str, dict[str, Any]] = {"run": {"device": device}}
        sections.setdefault(section, {})[key] = value
        return make_config(**sections)

    with pytest.raises(ValueError, match=rf"{section}\.{key}: .*(use|set it to) .*, or set run\.device: cpu"):
        made("mps")
    config = made("auto")
    with pytest.raises(UserError, match=rf"^run\.device: auto is MPS on this machine, where\n  {section}\.{key}: "):
        Runtime(config)
    assert Runtime(make_config(run={"device": "mps"})).device == MPS


# -- what torch is asked for ------------------------------------------------------------------------------------------


def test_memory_and_queue(there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("empty_cache", "synchronize"):
        monkeypatch.setattr(torch.mps, name, lambda name=name: asked.append(name))
    monkeypatch.setattr("platform.mac_ver", lambda: ("15.1", ("", "", ""), "arm64"))
    assert peak_bytes(MPS) == 2**20
    forget_peak_bytes(MPS)
    wait_for_device(MPS)
    memory.free()
    assert asked == ["empty_cache", "synchronize", "empty_cache"]
    assert device_name(MPS) == "Apple M3, macOS 15.1"


@pytest.mark.parametrize(
    "message",
    [
        "MPS backend out of memory (MPS allocated: 18.02 GB, other allocations: 107.10 MB, max allowed: 18.13 GB). "
        "Tried to allocate 4.50 MB on private pool. Use PYTORCH_MPS_HIGH_WATERMARK_RATIO=0.0 to disable upper limit "
        "for memory allocations (may cause system failure).",
        "Invalid buffer size: 19.45 GB",
        "Invalid buffer size: 19.38 GiB",
        "Error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
    ],
)
def test_out_of_memory_halves(message: str, there: None) -> None:
    """The messages are from reports of users. What does not fit is tried again in halves."""
    assert device_is_out_of_memory(RuntimeError(message))
    tried: list[int] = []

    def work(size: int) -> int:
        tried.append(size)
        if size > 2:
            raise RuntimeError(message)
        return size

    assert memory.halving(work, 8, "optimizer.micro_batch", lambda text: None) == (2, 2)
    assert tried == [8, 4, 2]
    assert not device_is_out_of_memory(RuntimeError("Invalid buffer size: -1"))


def test_an_operator_that_mps_lacks_is_named(
    make_config: Make, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch's words; the run ends with its state saved, as with an operator that `run.deterministic` refuses."""
    said = (
        "The operator 'aten::lu' is not currently implemented for the MPS device. If you want this op to be considered "
        "for addition please comment on ... As a temporary fix, you can set the environment variable "
        "`PYTORCH_ENABLE_MPS_FALLBACK=1` to use the CPU as a fallback for this op."
    )
    assert refused_operator(RuntimeError(said)) is None
    assert refused_operator(NotImplementedError("anything else")) is None
    config = make_config(checkpoints={"every": 100})
    Trainer(config, registry).train(max_iterations=2)

    def lacking(*arguments: Any) -> Tensor:
        raise NotImplementedError(said)

    monkeypatch.setattr(ToyBackbone, "velocity", lacking)
    expected = r"^the operator aten::lu is not implemented on MPS; .*FALLBACK=1 .*the state after iteration 2 is"
    with pytest.raises(RunStopped, match=expected):
        Trainer(config, registry).train(resume=True)


def test_autocast_is_that_of_the_device_and_is_put_back(make_config: Make, there: None) -> None:
    runtime = Runtime(make_config(run={"device": "mps"}, precision={"autocast": "bf16"}))
    before = thread_snapshot()
    with runtime.autocast():
        assert torch.is_autocast_enabled("mps")
        assert torch.get_autocast_dtype("mps") == torch.bfloat16
        assert not torch.is_autocast_enabled("cpu")
    torch.set_autocast_enabled("mps", True)
    changed = [name for name, value in thread_snapshot().items() if before[name] != value]
    assert changed == ["autocast"]
    put_back(before, changed)
    assert not torch.is_autocast_enabled("mps")


# -- numbers ----------------------------------------------------------------------------------------------------------


def test_the_imitation_refuses_what_mps_does() -> None:
    with imitated():
        x = torch.ones(2, device="mps")
        assert (x.device, (x + 1)[:1].device, x.cpu().device.type) == (MPS, MPS, "cpu")
        assert x.cpu().tolist() == [1.0, 1.0]
        with pytest.raises(TypeError, match="float64"):
            x.double()
        with pytest.raises(TypeError, match="float64"):
            torch.zeros(2, dtype=torch.float64).to("mps")
        with pytest.raises(RuntimeError, match="same device"):
            x + torch.ones(2)
        with pytest.raises(RuntimeError, match="generator"):
            x.normal_(generator=torch.Generator())
        with pytest.raises(TypeError, match="numpy"):
            x.numpy()
    assert torch.ones(2).device.type == "cpu"


def test_draws_are_those_of_the_cpu() -> None:
    keys = [Draws(3).at("noise", i) for i in range(3)]
    expected = normal_rows(keys, (4, 5), "cpu"), Draws(1).normal((70_000,))
    with imitated():
        found = normal_rows(keys, (4, 5), MPS), Draws(1).normal((70_000,), MPS)
        assert {one.device for one in found} == {MPS}
        assert Draws(1).generator(MPS).device.type == "cpu"
        found = found[0].cpu(), found[1].cpu()
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_float64_stays_on_the_host() -> None:
    sixty_four = torch.tensor([0.1, 0.2], dtype=torch.float64)
    with imitated():
        put = to_device(sixty_four, MPS, torch.float32)
        assert (put.device, put.dtype) == (MPS, torch.float32)
        exact = in_float64(put)
        assert (exact.device.type, exact.dtype) == ("cpu", torch.float64)
        assert torch.equal(exact, sixty_four.float().double())
        assert in_float64(sixty_four) is sixty_four


def test_thumbnails_of_sizes_that_do_not_divide() -> None:
    for side in (64, 50):
        media = torch.rand(2, 3, side, 64, generator=Draws(0).generator())
        with imitated():
            there = thumbnails(media.to(MPS))
            assert there.device == (MPS if side == 64 else torch.device("cpu"))
            found = there.cpu()
        assert torch.equal(found, thumbnails(media))


def test_the_functions_of_the_objective() -> None:
    values = torch.rand(2, 3, generator=Draws(0).generator())
    tensors = [torch.rand(6, 4, generator=Draws(i).generator()) for i in range(1, 4)]
    found = []
    for device in (torch.device("cpu"), MPS):
        with imitated():
            rewards, inputs = values.to(device), [t.detach().to(device) for t in tensors]
            inputs[0].requires_grad_()
            signed = signed_weights(advantages(rewards), rewards, balance=True)
            assert (signed.dtype, signed.device.type) == (torch.float64, "cpu")
            loss = group_preference_loss(*inputs, signed, beta=2.0)
            assert loss.device == device
            loss.backward()
            assert inputs[0].grad is not None
            found.append((loss.detach().cpu(), inputs[0].grad.cpu()))
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


class OnMps(RewardModel):
    """Brightness, on MPS: with the thread that called it and the number of calls at once."""

    range = (0.0, 1.0)
    concurrency = 4

    def __init__(self, remote: bool = False) -> None:
        super().__init__(None, device=MPS)
        self.is_remote = remote  # type: ignore[misc]
        self.seen: list[tuple[str, str]] = []

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        self.seen.append((threading.current_thread().name, media.device.type))
        return Scores(media.float().mean((1, 2, 3)), torch.zeros(len(media), dtype=torch.bool, device=media.device))


def test_rewards_on_mps_score_on_the_thread_of_the_rollouts() -> None:
    """Two threads that use MPS at once end the process; remote rewards do not use it, and get copies."""
    near, far = OnMps(), OnMps(remote=True)
    media = torch.rand(2, 3, 4, 4, generator=Draws(0).generator())
    with imitated():
        scorer = Scorer([Reward("near", 1.0, near), Reward("far", 1.0, far)])
        scorer.submit(media.to(MPS), [Prompt("a"), Prompt("b")])
        values = scorer.collect().values
        scorer.close()
    assert near.seen == [(threading.main_thread().name, "mps")]
    assert far.seen == [("reward", "cpu")]
    assert torch.equal(values["near"], media.mean((1, 2, 3)).double())
    assert torch.equal(values["near"], values["far"])


def test_a_failure_on_the_thread_of_the_rollouts_is_a_missing_score() -> None:
    class Broken(OnMps):
        def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
            raise RuntimeError("the lamp is broken")

    with imitated():
        scorer = Scorer([Reward("a", 1.0, Broken())])
        scorer.submit(torch.rand(2, 3, 4, 4).to(MPS), [Prompt("a"), Prompt("b")])
        assert scorer.collect().values["a"].isnan().all()
        scorer.close()
    assert scorer.failures == ["a: RuntimeError: the lamp is broken"]


def fingerprint(path: Path) -> dict[str, Any]:
    """Everything that a run computed."""
    logs = {
        name: [json.loads(line) for line in (path / name).read_text().splitlines()]
        for name in ("metrics.jsonl", "evaluations.jsonl")
    }
    newest = sorted((path / "checkpoints").iterdir())[-1]
    files = [*newest.glob("*.safetensors"), *(path / "images").rglob("*.png")]
    return logs | {str(file.relative_to(path)): file.read_bytes() for file in sorted(files)}


@pytest.mark.parametrize("sampler", ["flow-euler", "flow-dpmpp"])
def test_a_run_computes_what_it_does_on_the_cpu(
    sampler: str, make_config: Make, registry: Registry, there: None
) -> None:
    """Rollouts, rewards, updates, evaluations, checkpoints and a resume, byte for byte."""
    found = []
    for device in ("cpu", "mps"):
        sections = SIZES | {"rollout": SIZES["rollout"] | {"sampler": sampler}}
        config = make_config(run={"name": f"on-{device}", "device": device}, **sections)
        with imitated():
            for _ in range(2):
                trainer = Trainer(config, registry)
                assert trainer.runtime.device.type == device
                trainer.train(resume="auto", max_iterations=2)
        found.append(fingerprint(run_path(config)))
    assert found[0] == found[1]
    assert len(found[0]["metrics.jsonl"]) == 4


def test_a_dry_run(make_config: Make, registry: Registry, there: None) -> None:
    with imitated():
        found = dry_run(Trainer(make_config(run={"device": "mps"}, **SIZES), registry))
    assert found["peak memory, update"] == "0.00 GiB on mps:0, micro-batches of 4"


def test_a_network_in_float64_is_refused(make_config: Make, registry: Registry) -> None:
    """The rule itself: the toy's option for proofs is what MPS cannot do."""
    config = make_config(backbone={"options": {"double": True}})
    with imitated(), pytest.raises(TypeError, match="float64"):
        ToyBackbone(config.backbone, registry.options_model(registry.find("backbone", "toy")).model_validate(
            config.backbone.options), device=MPS)  # fmt: skip
