"""The authors' side: `main` of scripts/train_sd3_dgpo.py (github.com/Luo-Yihong/DGPO), whole.

What is given to it: a configuration (theirs for GenEval, at the work's size), a checkpoint, prompts, a reward. What is
replaced in it: wandb and matplotlib (nothing is logged and no figure drawn), the scheduler's settings, which it would
download, and the T5 length, which it states as a number.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed

from benchmarks.peers.pace import Pace
from benchmarks.peers.stand_ins import Nothing, import_real, replace, stand_in
from benchmarks.peers.work import Work

__all__ = ["FILES", "drive"]

FILES = ("scripts/train_sd3_dgpo.py", "config/dgpo.py", "flow_grpo/ema.py")
"""By which a directory is known to hold their code."""
NEEDLESS = ("absl", "absl.flags", "absl.app", "torchvision", "torchvision.utils")
SCHEDULER: dict[str, Any] = {
    "algorithm_type": "dpmsolver++", "solver_order": 2, "solver_type": "midpoint", "lower_order_final": True,
    "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0, "final_sigmas_type": "zero",
}  # fmt: skip
"""Scheduler of Sana 1600M, which the script takes from there."""


class Tree(dict[str, Any]):
    """Stands in for `ml_collections.ConfigDict`: keys are attributes too."""

    __setattr__ = dict.__setitem__

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def drive(path: Path, work: Work, checkpoint: Path, directory: Path, pace: Pace, device: torch.device) -> None:
    """Train until Enough."""
    import_real()
    sys.path.insert(0, str(path))
    replace("wandb")
    replace("matplotlib", use=Nothing())
    replace("matplotlib.pyplot")
    replace("ml_collections", ConfigDict=Tree)
    replace("ml_collections.config_flags", DEFINE_config_file=Nothing())
    replace("imp", load_source=_load)  # gone from Python 3.12
    stand_in(NEEDLESS)
    script = _load("train_sd3_dgpo", path / FILES[0])
    config = _configuration(_load("dgpo", path / FILES[1]).geneval_sd3_4gpu(), work, checkpoint, directory)
    _prepare(script, config, work, pace)
    # The script expects a launcher: collectives, and the module inside what a launcher wraps.
    store = torch.distributed.HashStore()  # type: ignore[attr-defined]
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1
    )
    script.PeftModel.module = property(lambda model: model)
    script.main(None)


def _load(name: str, file: str | Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _configuration(config: Any, work: Work, checkpoint: Path, directory: Path) -> Any:
    """Change their configuration to the work's size, in float32, for one process."""
    prompts = directory / "prompts"
    prompts.mkdir()
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in work.prompts)
    for split in ("train", "test"):
        (prompts / f"{split}_metadata.jsonl").write_text(lines, encoding="utf-8")
    config.dataset, config.logdir, config.save_dir = str(prompts), str(directory), str(directory)
    config.pretrained.model = str(checkpoint)
    config.mixed_precision = "no"
    config.resolution = work.pixels
    config.num_train_timesteps = work.times
    config.sample.num_steps, config.sample.guidance_scale = work.steps, work.guidance
    config.sample.train_batch_size = config.train.batch_size = work.group_size
    config.sample.num_image_per_prompt = work.group_size
    config.sample.num_batches_per_epoch = config.train.gradient_accumulation_steps = work.groups
    config.save_freq = config.eval_freq = 10**9
    return config


def _prepare(script: Any, config: Any, work: Work, pace: Pace) -> None:
    """Hand the script its configuration, its scheduler and its reward; stop where its loop starts an iteration."""
    script.FLAGS = SimpleNamespace(config=config)
    script.flow_grpo.rewards.multi_score = _scorer

    class Scheduler(script.DPMSolverMultistepScheduler):  # type: ignore[misc]
        @classmethod
        def from_pretrained(cls, name: str, **keywords: Any) -> Any:
            return cls(**SCHEDULER)

    class Pipeline(script.StableDiffusion3Pipeline):  # type: ignore[misc]
        @classmethod
        def from_pretrained(cls, name: str, **keywords: Any) -> Any:
            made = script_pipeline.from_pretrained(name, **keywords)
            pace.watch(made.transformer)
            return made

    script_pipeline, encode = script.StableDiffusion3Pipeline, script.encode_prompt
    script.DPMSolverMultistepScheduler, script.StableDiffusion3Pipeline = Scheduler, Pipeline
    script.encode_prompt = lambda encoders, readers, prompt, length: encode(encoders, readers, prompt, work.text_tokens)
    sampler = script.DistributedKRepeatSampler
    set_epoch = sampler.set_epoch

    def starting(self: Any, epoch: int) -> None:
        if epoch % work.groups == 0:  # the first batch of an iteration
            pace.iteration()
        set_epoch(self, epoch)

    sampler.set_epoch = starting


def _scorer(device: Any, weights: Any) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    def score(images: Any, prompts: Any, metadata: Any, only_strict: bool = True) -> Any:
        values = images[..., :4, :4].float().flatten(1).mean(1).tolist()
        return {"free": values, "avg": values}, {}

    return score
