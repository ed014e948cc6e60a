"""`check_backbone` passes the toy backbone and finds each broken promise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgpo_core.testing.contracts import check_backbone
from dgpo_core.testing.toy import ToyBackbone, ToyOptions
from dgpo_core.types import Conditioning, Prompt
from dgpo_schemas.run import BackboneSection

Check = Callable[[], None]
Found = Callable[[str, Check], None]
CPU = torch.device("cpu")


def backbone(kind: type[ToyBackbone] = ToyBackbone, train: str = "lora") -> Callable[[], ToyBackbone]:
    section = BackboneSection.model_validate(
        {"use": "toy", "checkpoint": "toy", "train": train, "lora": {"rank": 2, "alpha": 2}}
    )
    return lambda: kind(section, ToyOptions(), device=CPU)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_the_toy_backbone_passes(train: str) -> None:
    check_backbone(backbone(train=train), (8, 8), impossible=(8, 16))


def test_a_backbone_of_videos_passes() -> None:
    class Film(ToyBackbone):
        media = "video"

        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0)[:, None].repeat(1, 5, 1, 1, 1)

    check_backbone(backbone(Film), (8, 8))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_backbone_of_several_formats_passes(train: str) -> None:
    class Formats(ToyBackbone):
        formats = ("toy", "bare")

        def save_adapter_as(self, format: str, directory: Path) -> None:
            assert train == "lora" or format == "toy", "with every weight trained only the first is asked for"
            super().save_adapter(directory)

    check_backbone(backbone(Formats, train), (8, 8))


def backbones() -> list[tuple[str, Check]]:
    class Random(ToyBackbone):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            with torch.no_grad():
                for parameter in self.trainable().values():
                    parameter.normal_(generator=torch.Generator().manual_seed(next(self.seeds)))

        seeds = iter(range(1000))

    class Global(ToyBackbone):
        def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            return super().velocity(x_sigma, sigma, conditioning) + 0 * torch.rand(())

    class Half(ToyBackbone):
        def trainable(self) -> Mapping[str, nn.Parameter]:
            self.module.to(torch.bfloat16)
            return super().trainable()

    class Unfrozen(ToyBackbone):
        def trainable(self) -> Mapping[str, nn.Parameter]:
            return {name: p for name, p in super().trainable().items() if "up" in name}

    class Nothing(ToyBackbone):
        def trainable(self) -> Mapping[str, nn.Parameter]:
            return {}

    class AnySize(ToyBackbone):
        def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
            return super().latent_shape(8, 8)

    class Ragged(ToyBackbone):
        def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
            encoded = super().encode(prompts).tensors["c"]
            return Conditioning({"c": encoded - encoded.mean(0)})

    class Together(ToyBackbone):
        def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            out = super().velocity(x_sigma, sigma, conditioning)
            return out - out.mean(0)

    class Double(ToyBackbone):
        def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            return super().velocity(x_sigma, sigma, conditioning).double()

    class AtZero(ToyBackbone):
        def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            return super().velocity(x_sigma, sigma, conditioning) / sigma.view(-1, 1, 1, 1)

    class Detached(ToyBackbone):
        def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            return super().velocity(x_sigma, sigma, conditioning).detach().requires_grad_()

    class Cached(ToyBackbone):
        """Keeps a copy of its weights, which the engine cannot exchange."""

        def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
            if not hasattr(self, "kept"):
                self.kept = {name: p.data.clone() for name, p in self.trainable().items()}
            theirs = {name: p.data for name, p in self.trainable().items()}
            for name, parameter in self.trainable().items():
                parameter.data = self.kept[name]
            try:
                return super().velocity(x_sigma, sigma, conditioning)
            finally:
                for name, parameter in self.trainable().items():
                    parameter.data = theirs[name]

    class StaysOn(ToyBackbone):
        def without_adapter(self) -> Any:
            return torch.no_grad()

    class StaysOff(ToyBackbone):
        def without_adapter(self) -> Any:
            for layer in self._layers:
                layer.adapted = False
            return torch.no_grad()

    class Rounds(ToyBackbone):
        """Subtracts again what it has added."""

        @contextmanager
        def _merged(self) -> Iterator[None]:
            deltas = [layer.scale * layer.up.weight.data @ layer.down.weight.data for layer in self._layers]
            for layer, delta in zip(self._layers, deltas, strict=True):
                layer.base.weight.data = layer.base.weight.data + delta
            with self._off():
                yield
            for layer, delta in zip(self._layers, deltas, strict=True):
                layer.base.weight.data = layer.base.weight.data - delta

    class Unscaled(ToyBackbone):
        @contextmanager
        def _merged(self) -> Iterator[None]:
            with self._off():
                yield

    class Bright(ToyBackbone):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0) * 2

    class Grey(ToyBackbone):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0)[:, :1]

    class SaysVideo(ToyBackbone):
        media = "video"

    class Moves(ToyBackbone):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0)[:, None].repeat(1, 5, 1, 1, 1)

    class Sings(ToyBackbone):
        media = "audio"  # type: ignore[assignment]

    class SavesNothing(ToyBackbone):
        def save_adapter(self, directory: Path) -> None:
            directory.mkdir()

    class Formats(ToyBackbone):
        formats = ("toy", "bare")

        def save_adapter_as(self, format: str, directory: Path) -> None:
            super().save_adapter(directory)

    class Twice(Formats):
        formats = ("toy", "toy")

    class Shouts(Formats):
        formats = ("Toy",)

    class Forgets(Formats):
        def save_adapter_as(self, format: str, directory: Path) -> None:
            if format == "toy":
                super().save_adapter_as(format, directory)

    class Another(Formats):
        def save_adapter(self, directory: Path) -> None:
            super().save_adapter(directory)
            (directory / "more").touch()

    class FoldsInPlace(Formats):
        def save_adapter_as(self, format: str, directory: Path) -> None:
            super().save_adapter_as(format, directory)
            for layer in self._layers:
                layer.up.weight.data = layer.up.weight.data + 1

    expected: list[tuple[type[ToyBackbone], str]] = [
        (Random, "starts the same every time"),
        (Global, "leaves the global random state of torch alone"),
        (Half, "is float32"),
        (Unfrozen, "is frozen or in `trainable`"),
        (Nothing, "something is trained"),
        (AnySize, r"a size of \(8, 16\) is a UserError"),
        (Ragged, "c of a prompt does not depend on others"),
        (Together, "velocity of a sample does not depend on the others"),
        (Double, r"velocity is float32, not torch\.float64"),
        (AtZero, r"velocity is finite for sigma in \[0, 1\]"),
        (Detached, "the trained parameters get a gradient"),
        (Cached, "velocity follows the trained weights"),
        (StaysOn, "without its adapter the model"),
        (StaysOff, "velocity follows the trained weights|the adapter is back"),
        (Rounds, "weights are bit for bit as before `merged`"),
        (Unscaled, "velocity with the adapter merged is velocity with the adapter"),
        (Bright, r"media lie in \[0, 1\]"),
        (Grey, "media have three channels"),
        (SaysVideo, "`media` says what `decode` gives: it gives image and says video"),
        (Moves, "`media` says what `decode` gives: it gives video and says image"),
        (Sings, "`media` is image or video, not 'audio'"),
        (SavesNothing, "save_adapter writes something"),
        (Twice, "formats are named once: toy, toy"),
        (Shouts, "a format's name is of a-z, 0-9 and dashes, not 'Toy'"),
        (Forgets, "save_adapter_as writes something as bare"),
        (Another, "save_adapter writes the first of `formats`, toy"),
        (FoldsInPlace, "save_adapter_as changes nothing"),
    ]

    def run(kind: type[ToyBackbone]) -> Check:
        return lambda: check_backbone(backbone(kind), (8, 8), impossible=(8, 16))

    return [(promise, run(kind)) for kind, promise in expected]


@pytest.mark.parametrize(("promise", "check"), backbones())
def test_backbones(assert_found: Found, promise: str, check: Check) -> None:
    assert_found(promise, check)
