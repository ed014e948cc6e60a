"""Flow-Factory's side: `load_trainer` and `start` of its DGPO trainer (github.com/X-GenGroup/Flow-Factory).

What is given to it: its arguments (those of its example for SD3.5, at the work's size), a checkpoint, prompts, a
reward. What is replaced in it: the data set on disk, by the same rows in memory, and the autocast to bfloat16 that its
trainer enters in any case, because this comparison is in float32.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.peers.pace import Pace
from benchmarks.peers.stand_ins import import_real, replace, stand_in
from benchmarks.peers.work import ALPHA, RANK, Work

__all__ = ["FILES", "drive"]

FILES = ("src/flow_factory/trainers/dgpo.py", "examples/dgpo/lora/sd3_5/default.yaml")
"""By which a directory is known to hold its code."""
NEEDLESS = ("datasets", "datasets.utils", "datasets.utils.logging", "imageio", "imageio.v3", "einops", "torchaudio")


def drive(path: Path, work: Work, checkpoint: Path, directory: Path, pace: Pace, device: torch.device) -> None:
    """Train until Enough."""
    import_real()
    sys.path.insert(0, str(path / "src"))
    stand_in(NEEDLESS)
    replace("dgpo_peer_reward", Free=_reward())
    _module("trainers.abc").get_dataloader = lambda **keywords: (_loader(work, **keywords), None)
    published = yaml.safe_load((path / FILES[1]).read_text(encoding="utf-8"))
    arguments = _module("hparams").Arguments.from_dict(_arguments(published, work, checkpoint, directory))
    trainer = _module("trainers.loader").load_trainer(arguments)
    trainer.autocast = nullcontext
    network = trainer.accelerator.unwrap_model(trainer.adapter.transformer)
    pace.watch(network.get_base_model() if hasattr(network, "get_base_model") else network)

    def another() -> bool:
        pace.iteration()
        return True

    trainer.should_continue_training = another
    trainer.start()


def _module(name: str) -> Any:
    return importlib.import_module(f"flow_factory.{name}")


def _arguments(published: dict[str, Any], work: Work, checkpoint: Path, directory: Path) -> dict[str, Any]:
    """Change its example to the work's size, in float32, for one process."""
    train = published["train"] | {
        "resolution": work.pixels, "num_inference_steps": work.steps, "guidance_scale": work.guidance,
        "per_device_batch_size": work.group_size, "group_size": work.group_size,
        "unique_sample_num_per_epoch": work.groups, "num_train_timesteps": work.times, "time_shift": work.shift,
        "dpo_beta": 100, "kl_beta": 0.02, "clip_range": 1e-2, "latent_storage_dtype": None,
    }  # fmt: skip
    return {
        "mixed_precision": "no",
        "num_processes": 1,
        "log": {"run_name": "peers", "logging_backend": "none", "save_dir": str(directory), "save_freq": 0}
        | {"verbose": False},
        "data": published["data"] | {"dataset_dir": str(directory), "dataloader_num_workers": 0},
        "model": published["model"]
        | {"model_name_or_path": str(checkpoint), "lora_rank": RANK, "lora_alpha": ALPHA}
        | {"master_weight_dtype": "float32"},
        "train": train,
        "scheduler": published["scheduler"],
        "eval": published["eval"] | {"eval_freq": 0},
        "rewards": [
            {"name": "free", "reward_model": "dgpo_peer_reward.Free", "weight": 1.0, "batch_size": 16}
            | {"device": "cuda" if torch.cuda.is_available() else "cpu", "dtype": "float32"}
        ],
    }


def _loader(work: Work, config: Any, accelerator: Any, preprocess_func: Any) -> Any:
    """Its loader over its own preprocessing of the prompts, kept in memory."""
    train, pipeline = config.training_args, preprocess_func.__self__.pipeline
    pipeline.encode_prompt = partial(pipeline.encode_prompt, max_sequence_length=work.text_tokens)
    settings = _module("utils.base").filter_kwargs(
        preprocess_func, **{**config.data_args, "is_train": True, **train}
        | {"guidance_scale": train.get_preprocess_guidance_scale()},
    )  # fmt: skip
    rows: Any = []  # a data set by what it does
    with torch.no_grad():
        for prompt in work.prompts:
            found = preprocess_func(prompt=[prompt], **settings)
            rows.append({"prompt": prompt} | {key: value[0].cpu() for key, value in found.items()})
    sampler = _module("data_utils.sampler_loader").get_data_sampler(
        dataset=rows, config=config, accelerator=accelerator
    )
    collate = _module("data_utils.dataset").GeneralDataset.collate_fn
    return torch.utils.data.DataLoader(rows, batch_sampler=sampler, collate_fn=collate)


def _reward() -> Any:
    rewards = _module("rewards")
    model: Any = rewards.PointwiseRewardModel

    class Free(model):  # type: ignore[misc]
        """The mean of the first 4 x 4 pixels."""

        required_fields = ("image", "prompt")
        use_tensor_inputs = True

        def __call__(self, prompt: Any, image: Any = None, **more: Any) -> Any:
            return rewards.RewardModelOutput(rewards=torch.stack([one[..., :4, :4].float().mean() for one in image]))

    return Free
