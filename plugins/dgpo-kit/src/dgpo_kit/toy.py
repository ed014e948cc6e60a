"""Toy components for tests: a two-layer velocity network on 4x4 tiles of latents, a brightness reward and prompts.

`plugin` is a module-like object for `Registry.register`, so that a complete run works without other packages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from dgpo_core.contracts import Adapter, Backbone, GroupReward, PromptSource, RewardModel
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.types import Conditioning, Example, Prompt, SampleKey, Scores
from dgpo_schemas.base import Float, Int, Options
from dgpo_schemas.sections.backbone import BackboneSection

__all__ = [
    "BrightnessReward",
    "ToyAdapter",
    "ToyBackbone",
    "ToyPlugin",
    "ToyPrompts",
    "WinRate",
    "plugin",
    "run_data",
    "sizes_plugin",
]

SHAPE = (2, 4, 4)
TILE = 8
WIDTH = 48
CONDITION = 4


class ToyOptions(Options):
    """Options of the toy backbone."""

    double: bool = Field(default=False, description="Compute in float64, for proofs.")


class _Layer(nn.Module):
    """A linear layer with a LoRA adapter that can be disabled."""

    def __init__(self, inputs: int, outputs: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.base = nn.Linear(inputs, outputs)
        self.down = nn.Linear(inputs, rank, bias=False)
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)
        self.scale = alpha / rank
        self.adapted = True

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out + self.scale * self.up(self.down(x)) if self.adapted else out


def _layers(network: nn.Module) -> list[_Layer]:
    return [module for module in network.children() if isinstance(module, _Layer)]


class ToyAdapter(Adapter):
    """The LoRA matrices of the toy's layers."""

    formats = ("toy",)

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.layers = _layers(network)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Return two matrices per layer by their names in the network."""
        return {name: p for name, p in self.network.named_parameters() if "base" not in name}

    @contextmanager
    def off(self) -> Iterator[None]:
        """Disable the adapter within the block."""
        before = [layer.adapted for layer in self.layers]
        try:
            for layer in self.layers:
                layer.adapted = False
            yield
        finally:
            for layer, adapted in zip(self.layers, before, strict=True):
                layer.adapted = adapted

    @contextmanager
    def merged(self) -> Iterator[None]:
        """Add the products of the matrices to the base weights within the block."""
        before = [layer.base.weight.data for layer in self.layers]
        try:
            for layer in self.layers:
                adapter = layer.scale * layer.up.weight.data @ layer.down.weight.data
                layer.base.weight.data = layer.base.weight.data + adapter
            with self.off():
                yield
        finally:
            for layer, data in zip(self.layers, before, strict=True):
                layer.base.weight.data = data

    def save(self, directory: Path, format: str) -> None:
        """Write one safetensors file."""
        directory.mkdir(parents=True, exist_ok=True)
        tensors = {name: p.detach().contiguous() for name, p in self.parameters().items()}
        safetensors.torch.save_file(tensors, directory / "toy.safetensors")


class ToyBackbone(Backbone):
    """v = MLP([x, sigma, c]), with weights from a fixed seed for any checkpoint name."""

    kind: ClassVar[type[ToyAdapter]] = ToyAdapter
    uses = frozenset({"train: lora", "train: full", "lora.rank", "lora.alpha"})

    def __init__(self, section: BackboneSection, options: ToyOptions, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        if section.checkpoint == "missing":
            raise UserError("backbone.checkpoint: missing: no such directory")
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            lora = section.lora
            self._network = nn.Sequential(
                _Layer(size + 1 + CONDITION, WIDTH, lora.rank, lora.alpha),
                nn.Tanh(),
                _Layer(WIDTH, size, lora.rank, lora.alpha),
            )
        self.dtype = torch.float64 if options.double else torch.float32
        self._network.to(device, self.dtype)
        for name, parameter in self._network.named_parameters():
            parameter.requires_grad_(section.train == "full" if "base" in name else section.train == "lora")
        if section.train == "lora":
            self.adapter = self.kind(self._network)
        for layer in _layers(self._network):
            layer.adapted = section.train == "lora"

    def base_directory(self) -> None:
        """Return None: the weights are generated, not loaded."""

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._network

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        """Encode each text as a few numbers in [-1, 1], from its hash."""
        rows = [[b / 127.5 - 1 for b in hashlib.sha256(p.text.encode()).digest()[:CONDITION]] for p in prompts]
        return Conditioning({"c": torch.tensor(rows, device=self.device, dtype=self.dtype)})

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        """Return the latent shape of images made of 8x8 tiles."""
        if height % TILE or width % TILE:
            nearest = "x".join(str(max(1, round(side / TILE)) * TILE) for side in (height, width))
            raise UserError(f"rollout.resolution: {height}x{width} is not possible; the nearest is {nearest}")
        return SHAPE[0], height // 2, width // 2

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        """Apply the network to each tile."""
        batch, channels, height, width = x_sigma.shape
        rows, columns = height // SHAPE[1], width // SHAPE[2]
        tiles = x_sigma.reshape(batch, channels, rows, SHAPE[1], columns, SHAPE[2]).permute(0, 2, 4, 1, 3, 5)
        beside = torch.cat([sigma[:, None], conditioning.tensors["c"]], 1)
        flat = torch.cat([tiles.flatten(3).flatten(0, 2), beside.repeat_interleave(rows * columns, 0)], 1)
        out: Tensor = self._network(flat.to(self.dtype)).view(tiles.shape).permute(0, 3, 1, 4, 2, 5).reshape_as(x_sigma)
        return out if self.dtype == torch.float64 else out.float()

    def decode(self, x0: Tensor) -> Tensor:
        """Return the first channel as red, the second as green and their mean as blue, upscaled by 2."""
        x = torch.sigmoid(x0.float().detach())
        rgb = torch.stack([x[:, 0], x[:, 1], x.mean(1)], 1)
        return rgb.repeat_interleave(2, 2).repeat_interleave(2, 3)


class BrightnessOptions(Options):
    """Options of the brightness reward."""

    scale: Float = Field(default=1.0, description="Factor of the brightness.")
    fail: Literal["never", "raise", "dark"] = Field(
        default="never", description="Raise an error, or mark images darker than 0.5 missing, for tests."
    )


class BrightnessReward(RewardModel):
    """The mean pixel value times `scale`."""

    range = (0.0, 1.0)
    group_by = "tag"

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Return the mean of each image."""
        if self.options.fail == "raise":
            raise RuntimeError("the lamp is broken")
        values = media.float().mean((1, 2, 3)) * self.options.scale
        missing = values < 0.5 if self.options.fail == "dark" else torch.zeros(len(values), dtype=torch.bool)
        return Scores(values, missing, tuple({"brightness": float(v)} for v in values))


class WinRateOptions(Options):
    """Options of the win rate."""

    opponents: Int | None = Field(default=None, ge=1, description="Opponents of each member; all others if null.")
    fail: bool = Field(default=False, description="Raise an error, for tests.")


class WinRate(GroupReward):
    """The fraction of the other members of its group that an image is brighter than; a tie counts half."""

    range = (0.0, 1.0)
    options: WinRateOptions

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Compare members with each other; with `opponents`, with those that follow in a ring ordered by keys."""
        if self.options.fail:
            raise RuntimeError("the judge is asleep")
        count = len(media)
        if count < 2:
            return Scores(torch.zeros(count), torch.ones(count, dtype=torch.bool))
        bright = [float(one.double().mean()) for one in media]
        ring = sorted(range(count), key=lambda i: hashlib.sha256(repr(keys[i]).encode()).digest())
        opponents = min(self.options.opponents or count - 1, count - 1)
        values = torch.zeros(count)
        for place, i in enumerate(ring):
            others = [ring[(place + step) % count] for step in range(1, opponents + 1)]
            values[i] = sum(0.5 * ((bright[i] > bright[j]) + (bright[i] >= bright[j])) for j in others) / opponents
        return Scores(
            values, torch.zeros(count, dtype=torch.bool), tuple({"subscores": {"brightness": b}} for b in bright)
        )

    def examples(self) -> Sequence[Example]:
        """Return a bright image and a dark one."""
        images = {"light": torch.full((3, 8, 8), 0.9), "dark": torch.full((3, 8, 8), 0.1)}
        return [Example(name, Prompt("a lamp"), media, name == "light") for name, media in images.items()]


class ToyPrompts(PromptSource):
    """`count` numbered prompts per split, with alternating tags."""

    def prompts(self, split: Literal["train", "heldout"]) -> Sequence[Prompt]:
        """Return the prompts of a split."""
        return [Prompt(f"{split} picture {i}", {"tag": ("even", "odd")[i % 2]}) for i in range(self.options.count)]


class SizedPrompts(ToyPrompts):
    """Toy prompts with sizes."""

    def prompts(self, split: Literal["train", "heldout"]) -> Sequence[Prompt]:
        """Return the prompts of a split, with the sizes in turn."""
        sizes = self.options.sizes
        return [replace(prompt, size=sizes[i % len(sizes)]) for i, prompt in enumerate(super().prompts(split))]


class ToyPromptsOptions(Options):
    """Options of the toy prompts."""

    count: int = Field(default=6, ge=0, description="Number of prompts per split.")


class SizedPromptsOptions(ToyPromptsOptions):
    """Options of the toy prompts with sizes."""

    sizes: list[tuple[int, int]] = Field(
        default=[(8, 8), (16, 8)], min_length=1, description="Sizes (height, width), used in turn."
    )


WIN_RATE = Component("win-rate", "Share of its group that is darker", "dgpo_kit.toy:WinRate", WinRateOptions)


class ToyPlugin:
    """The toy components as a plugin. reward: the name of its reward, to avoid conflicts with other plugins."""

    def __init__(self, reward: str = "brightness") -> None:
        self.reward = reward

    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        """Return the toy model."""
        return [Component("toy", "Toy velocity network", "dgpo_kit.toy:ToyBackbone", ToyOptions)]

    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        """Return the toy rewards."""
        return [
            Component(self.reward, "Mean pixel value", "dgpo_kit.toy:BrightnessReward", BrightnessOptions),
            *([] if self.reward != "brightness" else [WIN_RATE]),
        ]

    @hookimpl
    def dgpo_prompt_sources(self) -> list[Component]:
        """Return the toy prompts."""
        return [Component("toy", "Numbered prompts", "dgpo_kit.toy:ToyPrompts", ToyPromptsOptions)]


class SizesPlugin:
    """Prompts of several sizes for the toy model."""

    @hookimpl
    def dgpo_prompt_sources(self) -> list[Component]:
        """Return the toy prompts with sizes."""
        return [Component("toy-sizes", "With sizes", "dgpo_kit.toy:SizedPrompts", SizedPromptsOptions)]


plugin = ToyPlugin()
sizes_plugin = SizesPlugin()


def run_data(output: str | Path, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a run file for a small toy run; `changes` are merged section by section."""
    data: dict[str, Any] = {
        "run": {"name": "toy", "output": str(output), "iterations": 4, "seed": 3, "device": "cpu", "threads": 1},
        "backbone": {"use": "toy", "checkpoint": "toy", "lora": {"rank": 4, "alpha": 4}},
        "prompts": {"train": {"use": "toy"}, "heldout": {"use": "toy"}},
        "rollout": {"steps": 3, "shift": 1.0, "group_size": 4, "groups": 4, "resolution": 8, "sampler": "flow-euler"},
        "rewards": [{"use": "brightness"}],
        "timesteps": {"count": 2, "t_min": 0.3},
        "optimizer": {"learning_rate": 0.01},
        "evaluation": {"every": 2, "prompts": 4, "images": 2},
        "checkpoints": {"every": 1},
    }
    for section, values in changes.items():
        data[section] = data[section] | values if isinstance(data.get(section), dict) else values
    return data
