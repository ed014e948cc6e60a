"""`check_backbone` passes the toy backbone and reports each violated requirement."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgpo_core.types import Conditioning, Prompt, Schedule
from dgpo_kit.contracts import check_backbone
from dgpo_kit.contracts._backbone import backbone_checks
from dgpo_kit.toy import ToyAdapter, ToyBackbone, ToyOptions
from dgpo_schemas.sections.backbone import BackboneSection

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
    check_backbone(backbone(train=train), (8, 8), impossible=(8, 12))


def test_a_backbone_of_videos_passes() -> None:
    class Film(ToyBackbone):
        media = "video"

        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0)[:, None].repeat(1, 5, 1, 1, 1)

    check_backbone(backbone(Film), (8, 8))


def adapted(kind: type[ToyAdapter]) -> type[ToyBackbone]:
    """The toy with another adapter."""
    return type(kind.__name__, (ToyBackbone,), {"kind": kind})


class Formats(ToyAdapter):
    formats = ("toy", "bare")


def test_a_backbone_of_several_formats_passes() -> None:
    check_backbone(backbone(adapted(Formats)), (8, 8))


def test_an_adapter_is_saved_into_a_directory_that_is_there() -> None:
    class Once(ToyAdapter):
        def save(self, directory: Path, format: str) -> None:
            directory.mkdir()
            super().save(directory, format)

    with pytest.raises(FileExistsError):
        check_backbone(backbone(adapted(Once)), (8, 8))


@pytest.mark.parametrize("train", ["lora", "full"])
def test_what_has_to_do_with_adapters_is_asked_of_those_that_have_one(train: str) -> None:
    skipped = set()
    for check in backbone_checks(backbone(train=train), (8, 8)):
        try:
            check.run()
        except unittest.SkipTest:
            skipped.add(check.name)
    without = {"adapter", "merged", "save-adapter", "formats"}
    unused = {"dtype", "fast", "gradient-checkpointing", "package"}  # keys that the toy does not use, forms it lacks
    assert skipped == unused | ({"save-weights"} if train == "lora" else without)


def backbones() -> list[tuple[str, Check]]:
    class Random(ToyBackbone):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            with torch.no_grad():
                for parameter in list(self.trainable().values())[::2]:
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

    class Alone(ToyBackbone):
        """Trains its base too."""

        def trainable(self) -> Mapping[str, nn.Parameter]:
            self.module.requires_grad_(True)
            return dict(self.module.named_parameters())

    class StaysOn(ToyAdapter):
        def off(self) -> Any:
            return torch.no_grad()

    class StaysOff(ToyAdapter):
        def off(self) -> Any:
            for layer in self.layers:
                layer.adapted = False
            return torch.no_grad()

    class BackTooSoon(ToyAdapter):
        """Switches the adapter on where an inner context ends."""

        @contextmanager
        def off(self) -> Iterator[None]:
            with super().off():
                yield
            for layer in self.layers:
                layer.adapted = True

    class StartsElsewhere(ToyAdapter):
        def __init__(self, network: nn.Module) -> None:
            super().__init__(network)
            for layer in self.layers:
                nn.init.ones_(layer.up.weight)

    class Rounds(ToyAdapter):
        """Subtracts again what it has added."""

        @contextmanager
        def merged(self) -> Iterator[None]:
            deltas = [layer.scale * layer.up.weight.data @ layer.down.weight.data for layer in self.layers]
            for layer, delta in zip(self.layers, deltas, strict=True):
                layer.base.weight.data = layer.base.weight.data + delta
            with self.off():
                yield
            for layer, delta in zip(self.layers, deltas, strict=True):
                layer.base.weight.data = layer.base.weight.data - delta

    class Unscaled(ToyAdapter):
        @contextmanager
        def merged(self) -> Iterator[None]:
            with self.off():
                yield

    class Bright(ToyBackbone):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0) * 2

    class Gray(ToyBackbone):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0)[:, :1]

    class SaysVideo(ToyBackbone):
        media = "video"

    class Moves(ToyBackbone):
        def decode(self, x0: Tensor) -> Tensor:
            return super().decode(x0)[:, None].repeat(1, 5, 1, 1, 1)

    class Sings(ToyBackbone):
        media = "audio"  # type: ignore[assignment]

    class Flickers(ToyBackbone):
        fps = 16.0

    class StandsStill(Moves):
        media = "video"
        fps = 0.0

    class SavesNothing(ToyAdapter):
        def save(self, directory: Path, format: str) -> None:
            directory.mkdir(exist_ok=True)

    class NoFormat(ToyAdapter):
        formats = ()

    class Twice(ToyAdapter):
        formats = ("toy", "toy")

    class Shouts(ToyAdapter):
        formats = ("Toy",)

    class Forgets(Formats):
        def save(self, directory: Path, format: str) -> None:
            if format == "toy":
                super().save(directory, format)

    class FoldsInPlace(ToyAdapter):
        def save(self, directory: Path, format: str) -> None:
            super().save(directory, format)
            for layer in self.layers:
                layer.up.weight.data = layer.up.weight.data + 1

    class NoRange(ToyBackbone):
        @property
        def sigma_range(self) -> tuple[float, float]:
            return 0.9, 0.1

    class Beyond(ToyBackbone):
        @property
        def sigma_range(self) -> tuple[float, float]:
            return 0.0, 0.95

    class Uneven(ToyBackbone):
        def schedule(self, height: int, width: int, steps: int) -> Schedule:
            return Schedule(grid=(1.0, 0.5))

    class Silent(ToyBackbone):
        def start(self, sigma: float) -> float:
            return 1 - sigma

    class OneWeight(ToyBackbone):
        def loss_weight(self, sigma: Tensor) -> Tensor:
            return sigma.mean()

    class NegativeWeight(ToyBackbone):
        def loss_weight(self, sigma: Tensor) -> Tensor:
            return sigma - 1.5

    expected: list[tuple[type[ToyBackbone | ToyAdapter], str]] = [
        (NoRange, "`sigma_range` must be ascending within"),
        (Beyond, "except for the final 0, must lie in `sigma_range`"),
        (Uneven, "a schedule for 1 steps has 2 times"),
        (Silent, "`start` must be greater than 0"),
        (OneWeight, r"`loss_weight` must have shape \[B\]"),
        (NegativeWeight, "`loss_weight` must be finite and >= 0"),
        (Random, "must have the same initial value in every instance"),
        (Global, "must not change the global random state of torch"),
        (Half, "must be float32"),
        (Unfrozen, "must be frozen or in `trainable`"),
        (Nothing, "`trainable` must not be empty"),
        (AnySize, r"an unsupported size \(8, 12\) must raise UserError"),
        (Ragged, "c of a prompt must not depend on the other prompts"),
        (Together, "velocity of a sample must not depend on the other samples"),
        (Double, r"velocity must be float32, got torch\.float64"),
        (AtZero, "velocity must be finite for all sigma"),
        (Detached, "the trained parameters must get a gradient"),
        (Cached, "velocity must use the trained weights"),
        (Alone, "`trainable` must return the adapter's parameters"),
        (BackTooSoon, "the adapter must stay disabled after a nested `off`"),
        (StartsElsewhere, "a new adapter must not change the velocity"),
        (StaysOn, "without its adapter the model"),
        (StaysOff, "velocity must use the trained weights|must be enabled again"),
        (Rounds, "weights must be restored bit for bit after `merged`"),
        (Unscaled, "velocity must be the same with the adapter merged"),
        (Bright, r"media must lie in \[0, 1\]"),
        (Gray, "media must have 3 channels"),
        (SaysVideo, "`media` must be image, which `decode` returns, got video"),
        (Moves, "`media` must be video, which `decode` returns, got image"),
        (Flickers, "`fps` must be None for images"),
        (StandsStill, "`fps` must be > 0, got 0.0"),
        (Sings, "`media` must be image or video, got 'audio'"),
        (SavesNothing, "the adapter's `save` must write"),
        (NoFormat, "`formats` must not be empty"),
        (Twice, "`formats` must be unique, got toy, toy"),
        (Shouts, "must consist of a-z, 0-9 and single hyphens, got 'Toy'"),
        (Forgets, "the adapter's `save` as bare must write"),
        (FoldsInPlace, "the adapter's `save` must not change the velocity"),
    ]

    def run(kind: type[ToyBackbone | ToyAdapter]) -> Check:
        made = adapted(kind) if issubclass(kind, ToyAdapter) else kind
        return lambda: check_backbone(backbone(made), (8, 8), impossible=(8, 12))

    return [(requirement, run(kind)) for kind, requirement in expected]


@pytest.mark.parametrize(("requirement", "check"), backbones())
def test_backbones(assert_found: Found, requirement: str, check: Check) -> None:
    assert_found(requirement, check)


@pytest.mark.parametrize(
    ("identity", "requirement"),
    [
        (lambda self: "", "must return None or a text"),
        (lambda self: str(id(self)), "must be the same in every instance"),
    ],
)
def test_an_encoder_identity_that_identifies_nothing(identity: Callable[[Any], str], requirement: str) -> None:
    kind = type("Identified", (ToyBackbone,), {"encoder_identity": identity})
    with pytest.raises(AssertionError, match=f"`encoder_identity` {requirement}"):
        check_backbone(backbone(kind), (8, 8))
    check_backbone(backbone(type("Same", (ToyBackbone,), {"encoder_identity": lambda self: "toy"})), (8, 8))


class Other(ToyBackbone):
    """Its embeddings are those of another seed."""

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        return Conditioning({name: 1 - tensor for name, tensor in super().encode(prompts).tensors.items()})


class Renamed(ToyBackbone):
    def encoder_identity(self) -> str:
        return "renamed"


@pytest.mark.parametrize(
    ("made", "requirement"),
    [
        (Other, "c of `encode` of `encoder_model`"),
        (Renamed, "the `encoder_identity` of `encoder_model` must be that of the whole model"),
    ],
)
def test_an_encoder_model_of_other_rows(made: type[ToyBackbone], requirement: str) -> None:
    def encoder_model(kind: Any, section: Any, options: Any, *, device: Any) -> ToyBackbone:
        return made(section, options, device=device)

    kind = type("Alone", (ToyBackbone,), {"encoder_model": classmethod(encoder_model)})
    with pytest.raises(AssertionError, match=requirement):
        check_backbone(backbone(kind), (8, 8))
