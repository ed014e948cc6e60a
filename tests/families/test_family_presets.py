"""Presets of all families: each says what it trades, fits its card by a plan, and uses it.

A preset is planned with the family's first example, on as many cards as it names.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.config.presets import presets_of
from dgpo_core.plugins.registry import Registry
from dgpo_lab.planning.cards import CARDS
from dgpo_lab.planning.plan import CONTEXT, Plan, make_plan, measure_model
from dgpo_schemas.run import RunConfig

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALLEST = {"16gb": "t4", "24gb": "a10g", "48gb": "l40s", "80gb": "h100"}
"""The card of each size that leaves the least memory to a process."""
MEMORY_ONLY = {
    "run.shard", "backbone.gradient_checkpointing", "backbone.cache.max_gb", "backbone.options.offload_text",
    "backbone.options.group_offload", "backbone.options.decode_chunk", "rollout.micro_batch", "optimizer.micro_batch",
}  # fmt: skip
"""Settings that do not change what is computed."""
TRADES = {"backbone.options.quantize", "backbone.options.drop_t5"}
"""Settings that change the model; a preset with one of them says so."""
USED = 0.95
"""Share of a card's memory that a plan may fill: it does not count the fragmentation of the allocator."""
REGISTRY = Registry()
STATED = re.compile(r"(\d+) GiB (?:by|according to) `dgpo plan`")


@cache
def example_of(backbone: str) -> Path | None:
    """The first example of a published model with this backbone."""
    for path in sorted(EXAMPLES.glob("*.yaml")):
        section = yaml.safe_load(path.read_text(encoding="utf-8")).get("backbone") or {}
        if section.get("use") == backbone and not section["checkpoint"].startswith("package:"):
            return path
    return None


PRESETS = [
    (backbone, name)
    for backbone in sorted(REGISTRY.components("backbone"))
    for name in presets_of(backbone, REGISTRY)
    if example_of(backbone) is not None
]
HELD = {"flux2-klein": 7.75e9, "lumina2": 5.22e9, "qwen-image": 40.87e9}
"""Bytes of some transformers: two for each parameter of the published models."""
SHIFTS = {"flux2-klein": "7.12", "qwen-image": "1.714"}
FAST = [("sd", "24gb")]
"""Planned in a few seconds."""


def read(backbone: str, name: str) -> tuple[dict[str, Any], str, int]:
    """The settings of a preset by dotted key, its comment in one line, and the GiB that it states."""
    text = presets_of(backbone, REGISTRY)[name].read_text(encoding="utf-8")
    comment = " ".join(line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
    stated = STATED.search(comment)
    assert stated is not None, f"{backbone}, {name}: its comment states no planned GiB"
    found: dict[str, Any] = {}

    def flatten(values: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and f"{path}{key}" not in TRADES:
                flatten(value, f"{path}{key}.")
            else:
                found[f"{path}{key}"] = value

    flatten(yaml.safe_load(text), "")
    return found, comment, int(stated[1])


def config_of(backbone: str, name: str) -> RunConfig:
    example = example_of(backbone)
    assert example is not None
    return load_run_config(example, registry=REGISTRY, preset=name)


def planned(backbone: str, name: str) -> tuple[RunConfig, Plan]:
    config = config_of(backbone, name)
    processes = 2 if config.run.shard else 1
    return config, make_plan(config, measure_model(config, REGISTRY), REGISTRY, processes)


def test_every_family_has_some() -> None:
    for backbone in REGISTRY.components("backbone"):
        smallest = ["16gb"] if backbone == "sd3" else []
        if example_of(backbone) is not None:
            assert list(presets_of(backbone, REGISTRY)) == [*smallest, "24gb", "48gb", "80gb"], backbone


@pytest.mark.parametrize(("backbone", "name"), [pytest.param(*case, id="-".join(case)) for case in PRESETS])
def test_it_says_what_it_trades(backbone: str, name: str) -> None:
    """Its file sets nothing but memory, or says that the model becomes another one."""
    settings, comment, stated = read(backbone, name)
    trades = settings.keys() & TRADES
    assert settings.keys() - trades <= MEMORY_ONLY
    words = ("the same result", "not change the result", "changes")
    assert any(word in comment for word in words)
    assert ("changes" in comment) == bool(trades)
    assert name.removesuffix("gb") in comment
    assert stated <= CARDS[SMALLEST[name]].memory
    config = config_of(backbone, name)
    batches = config.rollout.micro_batch, config.optimizer.micro_batch
    assert batches == (settings["rollout.micro_batch"], settings["optimizer.micro_batch"])


@pytest.mark.parametrize(
    ("backbone", "name"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.slow, id="-".join(case)) for case in PRESETS],
)
def test_it_fits_its_card_and_uses_it(backbone: str, name: str) -> None:
    """A whole group fits one micro-batch, or twice the micro-batch would not fit: activations grow with it."""
    config, plan = planned(backbone, name)
    room = CARDS[SMALLEST[name]].memory * 2**30
    assert round(plan.peak / 2**30) == read(backbone, name)[2], "what its comment says"
    assert plan.peak <= room
    assert SHIFTS.get(backbone, "") in plan.shift
    if backbone in HELD and config.backbone.options["quantize"] is None:
        copies = plan.held["trained weights"] / 2  # of the adapter, in bfloat16
        assert plan.held["transformer"] * plan.processes == pytest.approx(HELD[backbone] + copies, rel=0.01)
    size = config.optimizer.micro_batch
    assert size is not None
    held = sum(plan.held.values()) + CONTEXT
    twice = held + 2 * (plan.peaks["optimize"] - held)
    assert size >= config.rollout.group_size or twice > USED * room
