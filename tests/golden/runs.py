"""The runs that are compared: small, and together through everything that computes a result.

A run is a run file and commands; what `runs/NAME` and `out/NAME` hold afterwards is compared. Where a tree of another
contract needs other keys, an `Either` says which and why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.golden import words
from tests.golden.sides import Either, Side

__all__ = ["CHECKPOINTS", "RUNS", "Run", "Step", "third_party"]

SOURCES = Path(__file__).parent / "third_party"


def third_party(side: Side) -> Path:
    """The third party's plugin, as it is written for the contract of that side's tree: a directory of `third_party`,
    each for a contract. They compute the same."""
    found: str = side.resolved(
        Either(
            "dgpo_core/hookspecs.py", "class Component", "third",
            Either(
                "dgpo_core/contracts/adapter.py", "class Adapter", "second", "first",
                "Prompts are encoded, and an adapter is an object: A contract of adapters, and a backbone that has one",
            ),
            "A declaration is a component: Moves: the words of the field",
        )
    )  # fmt: skip
    return SOURCES / found


CHECKPOINTS: Sequence[Sequence[Any]] = (
    ("dgpo_sd3.testing:make_tiny_checkpoint", "checkpoints/sd3", {"t5": True}),
    ("dgpo_wan.testing:make_tiny_checkpoint", "checkpoints/wan", {}),
    ("dgpo_wan.testing:make_tiny_checkpoint", "checkpoints/wan22", {"boundary": 0.875}),
)
"""Made once a side, by the side's own code: MODULE:FUNCTION, directory, options."""


@dataclass(frozen=True)
class Step:
    """`dgpo` with these arguments, in so many processes. kill: process 0 is killed before so many backward passes."""

    arguments: tuple[str, ...]
    processes: int = 1
    kill: int | None = None


@dataclass(frozen=True)
class Run:
    """A run file, and what is done with it."""

    name: str
    data: Mapping[str, Any]
    steps: Sequence[Step]

    def file(self, side: Side) -> dict[str, Any]:
        """The run file's data, for the tree of that side."""
        data: dict[str, Any] = words.of(side.tree).run_file(side.resolved(self.data))
        return data

    def arguments(self, step: Step, side: Side) -> list[str]:
        """What `dgpo` is called with, for the tree of that side."""
        return words.of(side.tree).command(step.arguments)


KILL = 10
"""Of three iterations of four backward passes (two groups at two times), the third is under way. Several processes
share the passes."""


def _merged(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = deepcopy(dict(data))
    for key, value in changes.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict) and "use" not in value
        merged[key] = _merged(old, value) if both and old is not None else value
    return merged


SMALL: Mapping[str, Any] = {
    "run": {"iterations": 3, "seed": 5, "device": "cpu", "threads": 1},
    "rollout": {"sampler": "flow-euler", "steps": 3, "shift": 2.0, "group_size": 4, "groups": 2, "micro_batch": 6},
    "objective": {"beta": 20, "kl": 0.02, "ema_rollouts_after": 2, "ema": {"decay": 0.9, "every": 1}},
    "timesteps": {"count": 2},
    "optimizer": {"learning_rate": 3e-3},
    "evaluation": {"every": 2, "prompts": 2, "samples_per_prompt": 2, "images": 2},
    "checkpoints": {"every": 1},
}
SHAPES = _merged(SMALL, {
    "backbone": {"use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint", "lora": {"rank": 4, "alpha": 8},
                 "options": {"text_length": 0, "decode_chunk": 3}},
    "prompts": {"train": {"use": "miniature"}, "heldout": {"use": "miniature", "options": {"heldout_count": 40}}},
    "rollout": {"resolution": 64},
    "rewards": [{"use": "geneval", "options": {"detector": "shapes"}}],
    "evaluation": {"rewards": [{"use": "geneval-official", "options": {"detector": "shapes"}}]},
})  # fmt: skip
SIGNS = _merged(SMALL, {
    "backbone": {"use": "sd3", "checkpoint": "package:dgpo_miniature/checkpoint_signs",
                 "lora": {"rank": 4, "alpha": 8}, "options": {"text_length": 0}},
    "prompts": {"train": {"use": "miniature-signs"}, "heldout": {"use": "miniature-signs"}},
    "rollout": {"resolution": [32, 64]},
    "rewards": [{"use": "ocr", "options": {"engine": "rapidocr", "min_side": 64, "detection_side": 128,
                                           "recognition_width": 96, "readers": 1}}],
})  # fmt: skip
VIDEO = _merged(SMALL, {
    "backbone": {"use": "wan", "checkpoint": "package:dgpo_video/checkpoint", "lora": {"rank": 4, "alpha": 8},
                 "options": {"frames": 5, "text_length": 12, "decode_chunk": 3}},
    "prompts": {"train": {"use": "miniature-video"}, "heldout": {"use": "miniature-video"}},
    "rollout": {"resolution": 32},
    "rewards": [{"use": "miniature-motion", "options": {"strict": False}}],
    "evaluation": {"rewards": [{"use": "miniature-motion"}], "monitors": {"rewards": [{"use": "motion"}]}},
})  # fmt: skip
GUEST = _merged(SMALL, {
    "backbone": {"use": "guest", "checkpoint": "none", "lora": {"rank": 2, "alpha": 4}},
    "prompts": {"train": {"use": "guest-things"}, "heldout": {"use": "guest-things"}},
    "rollout": {"resolution": 16},
    "rewards": [{"use": "guest-brightness"}],
})  # fmt: skip
SD3 = _merged(GUEST, {
    "backbone": {"use": "sd3", "checkpoint": "checkpoints/sd3", "lora": {"rank": 4, "alpha": 8},
                 "options": {"text_length": 24}},
    "rollout": {"sampler": "flow-dpmpp", "resolution": [32, 48], "guidance": 3.0},
})  # fmt: skip
WAN = _merged(GUEST, {
    "backbone": {"use": "wan", "checkpoint": "checkpoints/wan", "lora": {"rank": 4, "alpha": 8},
                 "options": {"frames": 5, "text_length": 24}},
    "rollout": {"sampler": "flow-dpmpp", "resolution": [32, 48], "guidance": 3.0},
})  # fmt: skip


def _train(name: str, data: Mapping[str, Any], changes: Mapping[str, Any] | None = None, *, processes: int = 1,
           killed: bool = False, full: bool = False, then: Sequence[tuple[str, ...]] = ()) -> Run:  # fmt: skip
    """`dgpo train`, and what comes after it; in `then`, RUN and OUT stand for the run's directories."""
    data = _merged(_merged(data, changes or {}), {"run": {"name": name, "output": "runs"}})
    if full:
        data["backbone"] = {key: value for key, value in data["backbone"].items() if key != "lora"} | {"train": "full"}
    command = ("train", f"{name}.yaml", "--quiet")
    steps = [Step(command, processes, KILL // processes), Step((*command, "--resume"), processes)] if killed else []
    places = {"RUN": f"runs/{name}", "OUT": f"out/{name}"}
    for arguments in then:
        steps.append(Step(tuple(_placed(argument, places) for argument in arguments)))
    return Run(name, data, steps if killed else [Step(command, processes), *steps])


def _placed(argument: str, places: Mapping[str, str]) -> str:
    for short, place in places.items():
        if argument.partition("/")[0] == short:
            argument = place + argument.removeprefix(short)
    return argument


PROMPTS = ("--prompt", "a photo of a teapot", "--prompt", "two boats, far out at sea")
LOOKS: Sequence[tuple[str, ...]] = (
    ("sample", "RUN", *PROMPTS, "--count", "2", "--output", "OUT/samples"),
    ("sample", "RUN", *PROMPTS, "--count", "2", "--model", "base", "--guidance", "5", "--output", "OUT/base"),
    ("evaluate", "RUN", "--model", "policy", "--output", "OUT/evaluation.json"),
    ("export", "RUN", "--output", "OUT/plain", "--model", "policy"),
)
FORMATS: Sequence[tuple[str, ...]] = tuple(
    ("export", "RUN", "--format", name, "--output", f"OUT/{name}") for name in ("diffusers", "peft", "kohya", "comfyui")
)

RUNS: Sequence[Run] = (
    # The miniatures: with trained weights, so that scores, and what is learned from them, are of some kind.
    _train("shapes", SHAPES, then=(*LOOKS, *FORMATS)),
    _train("shapes-full", SHAPES, full=True, then=LOOKS[-1:]),
    _train("shapes-two-processes", SHAPES, processes=2),
    _train("shapes-killed", SHAPES, killed=True),
    _train("signs", SIGNS),
    _train("signs-full", SIGNS, full=True),
    _train("video", VIDEO, then=LOOKS),
    _train("video-full", VIDEO, full=True),
    _train("video-two-processes-killed", VIDEO, processes=2, killed=True),
    # What a run file may ask of the engine.
    _train("guided", SHAPES, {
        "rollout": {"guidance": 2.5, "merge_adapter": True},
        "evaluation": {"guidance": 4.0, "many_step": {"steps": 6, "prompts": 2}, "model": "policy"},
    }),
    _train("old-and-kl", SHAPES, {
        "objective": {"reference": "ema_fast", "kl": 0.1, "clip": 1e-3, "ema_rollouts_after": 1,
                      "ema_fast": {"max_decay": 0.5, "ramp": 0.3}},
        "optimizer": {"updates": 2, "micro_batch": 3, "schedule": "cosine", "warmup": 1},
        "weighting": {"use": "softmax", "options": {"temperature": 0.5}},
        "advantages": {"std": "batch", "balance": True},
    }),
    _train("flow-grpo", SHAPES, {
        "rollout": {"sampler": {"use": "flow-sde", "options": {"noise": 0.7}}, "guidance": 1.5},
        "objective": {"use": "flow-grpo", "options": {"clip": 1e-4}, "kl": 0.02, "ema_rollouts_after": None,
                      "clip": None},
        "timesteps": {"use": "sampler-steps", "count": 2, "t_min": 0.1},
        "evaluation": {"sampler": "flow-euler"},
    }, killed=True),
    _train("measured-by-gap", SHAPES, {
        "timesteps": {"use": "dsm-gap-t-min", "t_min": 0.1, "count": 2,
                      "options": {"every": 2, "samples": 3, "bins": 4}},
    }),
    _train("measured-by-disagreement", SHAPES, {
        "timesteps": {"use": "disagreement-t-min", "t_min": 0.1, "count": 2, "options": {"every": 2, "samples": 3}},
    }, killed=True),
    # The families, on random weights: loading, three text encoders, guidance, decoding, adapters, every format.
    _train("sd3", SD3, then=(*LOOKS, *FORMATS)),
    _train("sd3-full", SD3, {"backbone": {"gradient_checkpointing": True}}, full=True, then=LOOKS),
    _train("sd3-bfloat16-killed", SD3, {
        "backbone": {"dtype": "bfloat16", "gradient_checkpointing": True,
                     "lora": {"targets": ["attn.to_q", "attn.to_v"]}},
        "rollout": {"merge_adapter": True},
        "precision": {"autocast": "bf16"},
    }, killed=True, then=FORMATS[:1]),
    _train("sd3-two-processes", SD3, processes=2),
    _train("sd3-guided-reference", SD3, {
        "rollout": {"guidance": 1.0}, "objective": {"kl_cfg": 2.0, "ema_rollouts_after": None},
    }),
    _train("wan", WAN, then=(*LOOKS, *FORMATS)),
    _train("wan-full", WAN, {"backbone": {"gradient_checkpointing": True}}, full=True, then=LOOKS),
    _train("wan22", WAN, {
        "backbone": {"checkpoint": "checkpoints/wan22", "dtype": "bfloat16"},
        "timesteps": {"t_min": 0.9},
    }, then=FORMATS),
    _train("wan22-low", WAN, {
        "backbone": {"checkpoint": "checkpoints/wan22", "options": {"frames": 1, "text_length": 24, "expert": "low"}},
        "timesteps": {"t_max": 0.85},
    }, then=LOOKS),
    # Somebody else's plugin, and with it what costs no more than a moment.
    _train("third-party", GUEST, then=LOOKS),
    _train("third-party-full", GUEST, {"rollout": {"guidance": 2.0}}, full=True, then=LOOKS[-1:]),
    _train("third-party-two-processes-killed", GUEST, processes=2, killed=True),
    _train("worker", GUEST, {"rewards": [{"use": "guest-brightness", "worker": {}}]}),
    _train("sharded", GUEST, {"run": {"shard": True}}, processes=2, full=True),
    *(
        _train(f"objective-{name}", GUEST, {
            "objective": {"use": name, "clip": None, "ema_rollouts_after": ema_rollouts_after, "kl": 0.02},
            "weighting": weighting,
            "rollout": {"sampler": sampler, "steps": 4},
            "evaluation": {"sampler": "flow-euler"},
        })
        for name, weighting, ema_rollouts_after, sampler in (
            ("diffusion-dpo", "best-vs-worst", None, "flow-cps"),
            ("diffusion-nft", "abs-advantage", 0, "flow-dpmpp"),
            ("awm", "abs-advantage", None, "flow-euler"),
        )
    ),
    *(
        _train(f"weighting-{name}", GUEST, {"weighting": name, "timesteps": {"use": "scheduled-t-min", "count": 2}})
        for name in ("uniform", "best-vs-worst", "rank")
    ),
)  # fmt: skip
