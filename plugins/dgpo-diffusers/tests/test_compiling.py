"""Denoisers whose repeated blocks are compiled: the same velocities and gradients in every model, from few graphs.

Most tests trace the blocks without generating code (backend "eager"), where adapters, models and shapes could go wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.callbacks import Callback
from dgpo_core.training.compiling import CompileReport, prepare_compile
from dgpo_core.training.trainer import Trainer
from dgpo_core.types import Prompt
from dgpo_diffusers import compiling
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.compiling import repeated_blocks
from dgpo_kit.drawing import randomize
from dgpo_kit.toy import plugin, run_data
from dgpo_schemas.metrics import MetricsRecord, TimingRecord
from dgpo_schemas.run import RunConfig
from tests.families.proof import Case, among, build, proofs

FAMILIES = proofs()
TEXTS = ["a red circle", "two blue squares, left of a green one", "green"]
BOUND = 2e-5
"""Of velocities and gradients, relative to their largest number: the order of float32 sums."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return cache(lambda name: FAMILIES[name].make(tmp_path_factory.mktemp("compiled") / "tiny"))


@pytest.fixture(autouse=True)
def _compiler_as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    dynamo = torch._dynamo.config
    before = dynamo.recompile_limit, dynamo.accumulated_recompile_limit
    torch._dynamo.reset()
    prepare_compile()
    yield
    dynamo.recompile_limit, dynamo.accumulated_recompile_limit = before
    torch._dynamo.reset()


def built(name: str, directory: Path, **section: Any) -> DiffusersBackbone:
    backbone: DiffusersBackbone = build(FAMILIES[name], directory, FAMILIES[name].quick, **section)
    randomize(backbone)
    return backbone


def inputs(name: str, backbone: DiffusersBackbone, texts: list[str]) -> tuple[Any, ...]:
    """x, sigma and conditioning of a family's smaller size."""
    case: Case = next(iter(FAMILIES[name].cases.values()))
    size = FAMILIES[name].sizes[0]
    prompts = [Prompt(text, media=case.media(i), size=size) for i, text in enumerate(texts)]
    noise = torch.randn(len(texts), *backbone.latent_shape(*size), generator=torch.Generator().manual_seed(1))
    return noise, torch.full((len(texts),), 0.5), backbone.encode(prompts)


def passes(backbone: DiffusersBackbone, given: tuple[Any, ...]) -> dict[str, Tensor]:
    """Velocities of the policy, of the base model, of another set of weights by pointer, and with a merged adapter; and
    the gradient."""
    found: dict[str, Tensor] = {}
    trained, adapter = backbone.trainable(), backbone.adapter
    for parameter in trained.values():
        parameter.grad = None
    velocity = backbone.velocity(*given)
    velocity.square().mean().backward()  # type: ignore[no-untyped-call]
    found |= {f"gradient of {n}": p.grad.clone() for n, p in trained.items() if p.grad is not None}
    found["policy, with gradient"] = velocity.detach()
    with torch.no_grad():
        found["policy"] = backbone.velocity(*given)
        weights = {name: parameter.data for name, parameter in trained.items()}
        for parameter in trained.values():
            parameter.data = 0.5 * parameter.data
        found["average"] = backbone.velocity(*given)
        for name, parameter in trained.items():
            parameter.data = weights[name]
        if adapter is not None:
            merged = adapter.merged()
            for model, context in (("base", adapter.off()), ("merged", merged or nullcontext())):
                with context:
                    found[model] = backbone.velocity(*given)
    return found


def assert_near(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float = BOUND) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert_close(found[name], tensor, atol=bound * max(1e-3, float(tensor.abs().max())), rtol=0, msg=name)


@pytest.mark.parametrize("name", among(FAMILIES, quick=["flux, schnell"]))
def test_every_family_is_the_same_without_a_break(name: str, checkpoint: Callable[[str], Path]) -> None:
    eager, backbone = built(name, checkpoint(name)), built(name, checkpoint(name), compile=True)
    assert list(backbone.trainable()) == list(eager.trainable())
    given, report = inputs(name, eager, TEXTS), CompileReport()
    assert_near(passes(backbone, given), passes(eager, given))
    first = report.counts()
    assert first["graphs"] > 0
    assert first["eager"] == 0, "a block is not compiled as a whole"
    passes(backbone, given)
    assert report.counts() == first, "what was compiled is compiled again"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen-image", "z-image", "lumina2", "qwen-image-2.1"])
def test_texts_of_many_lengths_do_not_compile_for_each(name: str, checkpoint: Callable[[str], Path]) -> None:
    eager, backbone = built(name, checkpoint(name)), built(name, checkpoint(name), compile=True)
    report, counts = CompileReport(), []
    for words in range(3, 11):
        given = inputs(name, eager, [" ".join(["circle"] * words), "green"])
        with torch.no_grad():
            assert_close(backbone.velocity(*given), eager.velocity(*given), atol=1e-4, rtol=1e-4)
        counts.append(report.counts()["graphs"])
    assert counts[-1] == counts[-4], f"graphs after each length: {counts}"
    assert report.counts()["eager"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"gradient_checkpointing": True}, {"lora": {"rank": 4, "dora": True}},
                                     {"lora": {"rank": 4, "rslora": True}}, {"train": "full"}, {"dtype": "bfloat16"}],
                         ids=str)  # fmt: skip
def test_other_ways_to_train(setting: dict[str, Any], checkpoint: Callable[[str], Path]) -> None:
    eager, backbone = (built("sd3", checkpoint("sd3"), compile=c, **copy.deepcopy(setting)) for c in (False, True))
    given, report = inputs("sd3", eager, TEXTS), CompileReport()
    bound = 0.02 if "dtype" in setting else BOUND  # of one rounding to bfloat16
    assert_near(passes(backbone, given), passes(eager, given), bound)
    dora = setting.get("lora", {}).get("dora", False)  # peft's layers enter contexts that Dynamo does not trace
    assert (report.counts()["eager"] > 0) == dora


def test_blocks_are_what_is_repeated(checkpoint: Callable[[str], Path]) -> None:
    backbone = built("flux, schnell", checkpoint("flux, schnell"))
    names = {type(block).__name__ for block in repeated_blocks(backbone.module, backbone.blocks())}
    assert names == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
    plain = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert repeated_blocks(plain, list(plain)) == list(plain)
    assert repeated_blocks(plain, []) == [plain]


# -- a run ------------------------------------------------------------------------------------------------------------


class Heard(Callback):
    def __init__(self) -> None:
        self.messages, self.warnings = list[str](), list[str]()
        self.metrics, self.timings = list[MetricsRecord](), list[TimingRecord]()

    def on_message(self, text: str) -> None:
        self.messages.append(text)

    def on_warning(self, text: str) -> None:
        self.warnings.append(text)

    def on_iteration_end(self, metrics: MetricsRecord, timing: TimingRecord) -> None:
        self.metrics.append(metrics)
        self.timings.append(timing)


def trained(directory: Path, checkpoint: Path, name: str, *, compile: bool) -> Heard:
    """Three iterations with a smaller last micro-batch in roll-outs (9 samples by 2), groups in two parts (3 by 2), and
    evaluations."""
    registry, heard = Registry(), Heard()
    registry.register(plugin, distribution="toy")
    data = run_data(
        directory, run={"name": name, "iterations": 3},
        rollout={"steps": 2, "group_size": 3, "groups": 3, "micro_batch": 2, "resolution": 16, "guidance": 1.5},
        optimizer={"learning_rate": 1e-3, "epsilon": 1e-3, "micro_batch": 2},
        objective={"kl": 0.02, "ema_rollouts_after": 1}, evaluation={"every": 2, "prompts": 3, "samples_per_prompt": 1},
    )  # fmt: skip
    lora = {"rank": 4, "alpha": 8}
    data["backbone"] = {"use": "sd3", "checkpoint": str(checkpoint), "lora": lora, "compile": compile}
    Trainer(RunConfig.model_validate(data), registry, callbacks=[heard]).train()
    return heard


@pytest.mark.slow
def test_a_run_compiles_in_its_first_iteration_alone(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    plain, compiled = (trained(tmp_path, checkpoint("sd3"), str(c), compile=c) for c in (False, True))
    first, *later = [timing.compile for timing in compiled.timings]
    assert 0 < first["graphs"] <= 10, "two kinds of blocks: roll-out, base, statistic, gradient; one input is a leaf"
    assert all(counts == first for counts in later), "no recompilation after the first iteration"
    assert first["eager"] == 0
    assert [m for m in compiled.messages if "compile" in m] == [
        f"backbone.compile: torch.compile made {first['graphs']} more graphs"
    ]
    assert not any("compile" in text for text in compiled.warnings)
    assert all(timing.compile == {} for timing in plain.timings)
    for found, expected in zip(compiled.metrics, plain.metrics, strict=True):
        for key in ("dsm", "kl", "grad_norm", "change_norm", "diversity"):
            assert getattr(found, key) == pytest.approx(getattr(expected, key), rel=1e-3, abs=1e-6), key


@pytest.mark.slow
def test_a_run_says_so_when_it_falls_back(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dgpo_core.training.compiling.VARIANTS", 1)
    torch._dynamo.config.recompile_limit = 1
    heard = trained(tmp_path, checkpoint("sd3"), "few", compile=True)
    (warning,) = [text for text in heard.warnings if "compile" in text]
    assert "a part of the model runs without compilation: Dynamo recompile limit exceeded" in warning
    assert heard.timings[-1].compile["eager"] >= 1


@pytest.mark.slow
def test_generated_code(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Inductor's, which a second process finds in the cache."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(compiling, "BACKEND", "inductor")
    eager = built("sd3", checkpoint("sd3"))
    given = inputs("sd3", eager, TEXTS)
    expected = passes(eager, given)
    hits = []
    for _ in range(2):
        torch._dynamo.reset()  # as a new process begins
        counters.clear()
        assert_near(passes(built("sd3", checkpoint("sd3"), compile=True), given), expected, 1e-4)
        hits.append(counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"])
    assert hits[0] == 0
    assert hits[1] > 0, dict(counters)
    assert any((tmp_path / "inductor").rglob("*.py"))
