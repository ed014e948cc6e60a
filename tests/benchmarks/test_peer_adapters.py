"""The adapters of other loops, against miniatures that have the same interface: what they are given, and when."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch

from benchmarks.peers import authors, flow_factory
from benchmarks.peers.pace import Enough, Pace
from benchmarks.peers.stand_ins import StandIn
from benchmarks.peers.work import ALPHA, RANK, Work
from tests.benchmarks.test_peers import Line

WORK = Work("small", layers=2, width=16, pixels=32, groups=2, group_size=3, text_tokens=4, steps=5, times=2)

AUTHORS = {
    "config/dgpo.py": """
        import imp
        import os
        import ml_collections

        base = imp.load_source("base", os.path.join(os.path.dirname(__file__), "base.py"))

        def geneval_sd3_4gpu():
            config = base.get_config()
            config.sample = ml_collections.ConfigDict()
            config.train = ml_collections.ConfigDict()
            config.pretrained = ml_collections.ConfigDict()
            config.clip_range = 1e-2
            config.train.beta = 0.02
            return config
    """,
    "config/base.py": """
        import ml_collections

        def get_config():
            return ml_collections.ConfigDict()
    """,
    "flow_grpo/ema.py": "",
    "flow_grpo/__init__.py": "",
    "flow_grpo/rewards.py": "",
    "scripts/train_sd3_dgpo.py": """
        import json
        import os
        from absl import app, flags
        from ml_collections import config_flags
        import matplotlib.pyplot as plt
        import torch
        import torch.distributed as dist
        import wandb
        import flow_grpo.rewards

        FLAGS = flags.FLAGS
        config_flags.DEFINE_config_file("config", "config/base.py", "Configuration.")


        class Transformer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(()))

            def forward(self, hidden_states, encoder_hidden_states):
                return hidden_states * self.scale


        class StableDiffusion3Pipeline:
            @classmethod
            def from_pretrained(cls, path):
                made = cls()
                made.path, made.transformer = path, Transformer()
                return made


        class DPMSolverMultistepScheduler:
            def __init__(self, **config):
                self.config = config

            @classmethod
            def from_config(cls, config):
                return cls(**config)


        class PeftModel(torch.nn.Module):
            pass


        class DistributedKRepeatSampler:
            def set_epoch(self, epoch):
                self.epoch = epoch


        def encode_prompt(encoders, tokenizers, prompt, length):
            return torch.zeros(len(prompt), length, 8)


        def main(_):
            config = FLAGS.config
            wandb.init(project="x", mode="offline")
            plt.figure(figsize=(1, 1))
            plt.savefig("no.jpg")
            pipeline = StableDiffusion3Pipeline.from_pretrained(config.pretrained.model)
            scheduler = DPMSolverMultistepScheduler.from_pretrained("hub", subfolder="scheduler")
            scheduler.config["flow_shift"] = 3
            scheduler = DPMSolverMultistepScheduler.from_config(scheduler.config)
            model = PeftModel()
            assert model.module is model
            with open(os.path.join(config.dataset, "train_metadata.jsonl")) as file:
                prompts = [json.loads(line)["prompt"] for line in file]
            score = flow_grpo.rewards.multi_score("cpu", {"geneval": 1.0})
            sampler = DistributedKRepeatSampler()
            epoch = 0
            while True:
                pipeline.transformer.eval()
                for i in range(config.sample.num_batches_per_epoch):
                    sampler.set_epoch(epoch * config.sample.num_batches_per_epoch + i)
                    chosen = prompts[:1] * config.sample.train_batch_size
                    text = encode_prompt([], [], chosen, 128)
                    x = torch.zeros(len(chosen), 4, 8, 8)
                    with torch.no_grad():
                        for _ in range(config.sample.num_steps):
                            pipeline.transformer(hidden_states=x, encoder_hidden_states=text)
                    rewards, _ = score(x[:, :3] + 0.25, chosen, [{}], only_strict=True)
                pipeline.transformer.train()
                for _ in range(config.num_train_timesteps):
                    pipeline.transformer(hidden_states=x, encoder_hidden_states=text).sum().backward()
                    total = torch.ones(1)
                    dist.all_reduce(total)
                with open(os.path.join(config.logdir, "seen.json"), "w") as file:
                    json.dump({"config": config, "prompts": prompts, "rewards": rewards, "world": float(total),
                               "model": pipeline.path, "scheduler": scheduler.config}, file)
                epoch += 1
    """,
}

FLOW_FACTORY = {
    "examples/dgpo/lora/sd3_5/default.yaml": """
        data: {dataset_dir: dataset/pickscore, dataloader_num_workers: 16, sampler_type: group_distributed}
        model: {finetune_type: lora, lora_rank: 8, model_type: sd3-5, model_name_or_path: hub}
        train: {trainer_type: dgpo, dpo_beta: 10, clip_dsm: true, group_size: 24, num_train_timesteps: 4}
        scheduler: {dynamics_type: ODE}
        eval: {eval_freq: 60, num_inference_steps: 14}
        rewards: [{name: pickscore, reward_model: PickScore}]
    """,
    "src/flow_factory/__init__.py": "import imageio.v3 as iio\nfrom datasets import load_dataset",
    "src/flow_factory/hparams.py": """
        class Arguments(dict):
            @classmethod
            def from_dict(cls, found):
                made = cls(found)
                made.data_args = found["data"]
                made.training_args = Training(found["train"])
                return made


        class Training(dict):
            def get_preprocess_guidance_scale(self):
                return self["guidance_scale"]
    """,
    "src/flow_factory/utils/__init__.py": "",
    "src/flow_factory/utils/base.py": """
        def filter_kwargs(function, **found):
            return {key: value for key, value in found.items() if key == "guidance_scale"}
    """,
    "src/flow_factory/data_utils/__init__.py": "",
    "src/flow_factory/data_utils/dataset.py": """
        import torch

        class GeneralDataset:
            @staticmethod
            def collate_fn(rows):
                return {"prompt": [row["prompt"] for row in rows], "text": torch.stack([row["text"] for row in rows])}
    """,
    "src/flow_factory/data_utils/sampler_loader.py": """
        def get_data_sampler(dataset, config, accelerator):
            train = config.training_args
            return [[i] * train["group_size"] for i in range(train["unique_sample_num_per_epoch"])]
    """,
    "src/flow_factory/rewards.py": """
        class PointwiseRewardModel:
            pass


        class RewardModelOutput:
            def __init__(self, rewards):
                self.rewards = rewards
    """,
    "src/flow_factory/trainers/__init__.py": "",
    "src/flow_factory/trainers/dgpo.py": "",
    "src/flow_factory/trainers/abc.py": "get_dataloader = None",
    "src/flow_factory/trainers/loader.py": """
        import importlib
        import json
        from pathlib import Path

        import torch

        from . import abc


        class Transformer(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.scale = torch.nn.Parameter(torch.ones(()))

            def forward(self, hidden_states, encoder_hidden_states):
                return hidden_states * self.scale


        class Pipeline:
            def encode_prompt(self, prompt, max_sequence_length=256):
                return torch.zeros(len(prompt), max_sequence_length, 8)


        class Adapter:
            def __init__(self):
                self.pipeline, self.transformer = Pipeline(), Transformer()

            def preprocess_func(self, prompt, guidance_scale):
                assert guidance_scale == 4.5
                return {"text": self.pipeline.encode_prompt(prompt)}


        class Accelerator:
            def unwrap_model(self, model):
                return model


        class Trainer:
            def __init__(self, config):
                self.config, self.adapter, self.accelerator = config, Adapter(), Accelerator()
                self.loader, _ = abc.get_dataloader(
                    config=config, accelerator=self.accelerator, preprocess_func=self.adapter.preprocess_func
                )
                path, name = config["rewards"][0]["reward_model"].rsplit(".", 1)
                self.reward = getattr(importlib.import_module(path), name)()
                self.autocast = None

            def should_continue_training(self):
                return False

            def start(self):
                while self.should_continue_training():
                    self.adapter.transformer.eval()
                    with torch.no_grad(), self.autocast():
                        for batch in self.loader:
                            x = torch.zeros(len(batch["prompt"]), 4, 8, 8)
                            for _ in range(self.config.training_args["num_inference_steps"]):
                                self.adapter.transformer(hidden_states=x, encoder_hidden_states=batch["text"])
                    rewards = self.reward(prompt=batch["prompt"], image=list(x + 0.25)).rewards
                    self.adapter.transformer.train()
                    for _ in range(self.config.training_args["num_train_timesteps"]):
                        self.adapter.transformer(hidden_states=x, encoder_hidden_states=batch["text"]).sum().backward()
                    seen = {"config": self.config, "prompts": batch["prompt"], "rewards": rewards.tolist()}
                    Path(self.config["log"]["save_dir"], "seen.json").write_text(json.dumps(seen))


        def load_trainer(config):
            return Trainer(config)
    """,
}


@pytest.fixture(autouse=True)
def _modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The modules of a miniature and what stands in for libraries are gone after the test."""
    for adapter in (authors, flow_factory):  # miniatures do without the libraries of models
        monkeypatch.setattr(adapter, "import_real", lambda: None)
    before, path = dict(sys.modules), list(sys.path)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name, module in list(sys.modules.items()):
        if isinstance(module, StandIn) or str(tmp_path) in str(getattr(module, "__file__", None)):
            del sys.modules[name]
            if name in before:
                sys.modules[name] = before[name]
    sys.path[:] = path


def driven(adapter: Any, files: dict[str, str], tmp_path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Let the adapter do two iterations of a miniature; returns what the loop reported and what it was given."""
    for name, text in files.items():
        path = tmp_path / "peer" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text), encoding="utf-8")
    (tmp_path / "run").mkdir()
    line = Line(2)
    with pytest.raises(Enough):
        adapter.drive(
            tmp_path / "peer", WORK, tmp_path / "model", tmp_path / "run", Pace(line), torch.device("cpu")  # type: ignore[arg-type]
        )  # fmt: skip
    return line.told[1:], json.loads((tmp_path / "run" / "seen.json").read_text())


def test_the_authors_script_is_driven(tmp_path: Path) -> None:
    told, seen = driven(authors, AUTHORS, tmp_path)
    for one in told:
        assert one["passes"] == {"rollout": WORK.groups * WORK.steps, "gradient": WORK.times}
        assert one["rows"]["rollout"] == WORK.groups * WORK.steps * WORK.group_size
        assert one["inputs"] == ["float32 4x8x8, 4 text tokens"]
    config = seen["config"]
    assert (config["clip_range"], config["train"]["beta"]) == (1e-2, 0.02), "what they publish stays"
    assert (config["mixed_precision"], config["resolution"], config["sample"]["guidance_scale"]) == ("no", 32, 4.5)
    assert config["train"]["gradient_accumulation_steps"] == WORK.groups, "one update an iteration"
    assert config["sample"]["num_image_per_prompt"] == config["train"]["batch_size"] == WORK.group_size
    assert seen["prompts"] == list(WORK.prompts)
    assert seen["rewards"] == {"free": [0.25] * 3, "avg": [0.25] * 3}
    assert (seen["model"], seen["world"]) == (str(tmp_path / "model"), 1.0)
    assert seen["scheduler"]["flow_shift"] == 3
    assert seen["scheduler"]["prediction_type"] == "flow_prediction"
    assert not Path("no.jpg").exists()


def test_flow_factory_is_driven(tmp_path: Path) -> None:
    told, seen = driven(flow_factory, FLOW_FACTORY, tmp_path)
    for one in told:
        assert one["passes"] == {"rollout": WORK.groups * WORK.steps, "gradient": WORK.times}
        assert one["inputs"] == ["float32 4x8x8, 4 text tokens"]
    config, train = seen["config"], seen["config"]["train"]
    assert (config["mixed_precision"], config["scheduler"], train["clip_dsm"]) == ("no", {"dynamics_type": "ODE"}, True)
    assert (train["group_size"], train["per_device_batch_size"], train["unique_sample_num_per_epoch"]) == (3, 3, 2)
    assert (train["num_inference_steps"], train["num_train_timesteps"], train["latent_storage_dtype"]) == (5, 2, None)
    assert (config["model"]["lora_rank"], config["model"]["lora_alpha"]) == (RANK, ALPHA)
    assert config["model"]["master_weight_dtype"] == "float32"
    assert (config["eval"]["eval_freq"], config["log"]["save_freq"]) == (0, 0)
    assert seen["prompts"] == [WORK.prompts[1]] * 3
    assert seen["rewards"] == [0.25] * 3
