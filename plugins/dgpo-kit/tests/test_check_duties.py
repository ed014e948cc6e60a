"""What a backbone uses of its section: what it does not is refused, what it only says it does is found."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from dgpo_core.contracts import Backbone
from dgpo_core.contracts.backbone import SECTION_KEYS
from dgpo_core.errors import PluginError, UserError
from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.plugins.sections import asks_for_more, check_section
from dgpo_core.types import Conditioning
from dgpo_core.weights import resolve_checkpoint
from dgpo_kit.contracts import check_backbone
from dgpo_kit.toy import ToyBackbone, ToyOptions
from dgpo_schemas.sections.backbone import BackboneSection, LoraSection

CPU = torch.device("cpu")


class Dutiful(ToyBackbone):
    """A toy that uses all that can be observed."""

    uses = ToyBackbone.uses | {"dtype", "gradient_checkpointing", "checkpoint"}

    def __init__(self, section: BackboneSection, options: ToyOptions, *, device: torch.device) -> None:
        super().__init__(section, options, device=device)
        self.resolve(section.checkpoint)
        for parameter in self.module.parameters():
            if not parameter.requires_grad:
                self.put(parameter)

    def resolve(self, text: str) -> None:
        resolve_checkpoint(text)

    def put(self, parameter: torch.nn.Parameter) -> None:
        parameter.data = parameter.data.to(getattr(torch, self.section.dtype))

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        with torch.autocast("cpu", enabled=self.section.dtype == "bfloat16"):
            return self.run(super().velocity, x_sigma, sigma, conditioning)

    def run(self, velocity: Callable[..., Tensor], *arguments: Any) -> Tensor:
        if self.section.gradient_checkpointing and torch.is_grad_enabled():
            found: Tensor = checkpoint(velocity, *arguments, use_reentrant=False)
            return found
        return velocity(*arguments)


class IgnoresDtype(Dutiful):
    def put(self, parameter: torch.nn.Parameter) -> None: ...


class IgnoresCheckpointing(Dutiful):
    def run(self, velocity: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return velocity(*arguments)


class WrongGradients(Dutiful):
    def run(self, velocity: Callable[..., Tensor], *arguments: Any) -> Tensor:
        found = super().run(velocity, *arguments)
        return found * 2 if self.section.gradient_checkpointing else found


class IgnoresPackages(Dutiful):
    def resolve(self, text: str) -> None: ...


class ItsOwnWords(Dutiful):
    def resolve(self, text: str) -> None:
        if text.startswith("package:"):
            raise UserError(f"backbone.checkpoint: {text} is not there")


class Fast(Dutiful):
    supports_fast = frozenset({"norms"})
    parts: Collection[str] = ()

    def speed_up(self, parts: Collection[str]) -> Mapping[str, str]:
        self.parts = parts
        return {}


class FastAndWrong(Fast):
    def run(self, velocity: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return super().run(velocity, *arguments) * (1.2 if self.parts else 1)


class FastAndStale(Fast):
    before: Tensor | None = None

    def run(self, velocity: Callable[..., Tensor], *arguments: Any) -> Tensor:
        found = super().run(velocity, *arguments)
        self.before = found.detach() if self.before is None else self.before
        return found + self.before - found.detach() if self.parts else found


class SaysMore(Fast):
    def speed_up(self, parts: Collection[str]) -> Mapping[str, str]:
        return {"adapter": "twice as fast"}


def made(kind: type[Backbone], **settings: Any) -> Callable[[], Backbone]:
    section = section_of(**settings)
    return lambda: kind(section, ToyOptions(), device=CPU)


def section_of(**settings: Any) -> BackboneSection:
    return BackboneSection.model_validate({"use": "toy", "checkpoint": "a/b", **settings})


@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_backbone_that_does_what_it_says_passes(train: str) -> None:
    check_backbone(made(Dutiful, train=train), (8, 8))
    check_backbone(made(Dutiful, train=train, gradient_checkpointing=True), (8, 8))
    check_backbone(made(Fast, train=train), (8, 8))


@pytest.mark.parametrize(
    ("kind", "requirement"),
    [
        (IgnoresDtype, "with `dtype: bfloat16` frozen weights must be bfloat16"),
        (IgnoresCheckpointing, "the backward pass must call modules of the network again"),
        (WrongGradients, "must be the same with and without gradient_checkpointing"),
        (IgnoresPackages, "must raise UserError, or `uses` must not contain checkpoint"),
        (ItsOwnWords, "must be resolved by dgpo_core.weights"),
        (FastAndWrong, "`speed_up` must not change velocities by more than roundings: they differ by 0.2"),
        (FastAndStale, "`speed_up` must not change velocities by more than roundings"),
        (SaysMore, "`speed_up` must return texts by the parts that it was given"),
    ],
)
def test_what_it_only_says_is_found(kind: type[Backbone], requirement: str) -> None:
    with pytest.raises(AssertionError, match=requirement):
        check_backbone(made(kind), (8, 8))


def test_the_words_of_uses_are_the_sections_keys() -> None:
    lora = {f"lora.{key}" for key in LoraSection.model_fields}
    keys = set(BackboneSection.model_fields) - {"use", "options", "train", "lora", "cache"}
    assert keys | lora | {"train: lora", "train: full"} == SECTION_KEYS
    assert Backbone.uses == SECTION_KEYS


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"compile": True}, "compile"), ({"gradient_checkpointing": True}, "gradient_checkpointing"),
        ({"dtype": "bfloat16"}, "dtype"), ({"revision": "main"}, "revision"),
        ({"lora": {"targets": ["to_q"]}}, "lora.targets"), ({"lora": {"rank": 3}}, "lora.rank"),
        ({"lora": {"alpha": 3}}, "lora.alpha"), ({"train": "full"}, "train"),
        ({"checkpoint": "package:x/y"}, "checkpoint"),
    ],
)  # fmt: skip
def test_a_key_that_is_not_used_is_refused_where_it_is_set(settings: dict[str, Any], key: str) -> None:
    class Nothing(ToyBackbone):
        uses = frozenset({"train: lora"})

    class Everything(ToyBackbone):
        uses = SECTION_KEYS

    check_section(Everything, section_of(**settings))
    check_section(Nothing, section_of(dtype="float32", compile=False, lora={"rank": 64}))  # as they are by default
    with pytest.raises(UserError, match=rf"^backbone\.{key}: "):
        check_section(Nothing, section_of(**settings))
    assert asks_for_more(section_of(**settings)) == (key not in ("lora.rank", "lora.alpha", "checkpoint"))


def test_an_adapters_settings_are_none_of_a_full_training() -> None:
    class Full(ToyBackbone):
        uses = frozenset({"train: full"})

    check_section(Full, section_of(train="full"))
    with pytest.raises(UserError, match="toy does not support `train: lora`; use `train: full`"):
        check_section(Full, section_of())


@pytest.mark.parametrize("uses", [frozenset({"train: lora", "dtpye"}), "compile", frozenset({"lora"})])
def test_uses_that_are_no_keys(uses: Any) -> None:
    broken = type("Broken", (ToyBackbone,), {"uses": uses})
    with pytest.raises(PluginError, match=r"Broken\.uses contains .*; allowed: checkpoint, compile, dtype"):
        check_section(broken, section_of())


def test_it_is_refused_before_anything_is_loaded(dgpo: Any, write_toy: Any, known: Registry) -> None:
    class Plugin:
        @hookimpl
        def dgpo_backbones(self) -> list[Component]:
            return [Component("dull", "Uses nothing.", f"{__name__}:Dull")]

    known.register(Plugin(), distribution="dgpo-dull")
    for command in (["validate"], ["train"], ["train", "--dry-run"]):
        done = dgpo(command[0], write_toy(use="dull", compile=True), *command[1:])
        assert (done.code, done.out) == (2, ""), command
        assert "backbone.compile: true has no effect, because dull does not support this key; remove it" in done.err


class Dull(ToyBackbone):
    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        raise AssertionError("it is not built")


@pytest.fixture
def write_toy(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    import yaml

    from dgpo_kit.toy import run_data

    monkeypatch.chdir(tmp_path)

    def write(**backbone: Any) -> str:
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_data("runs", backbone=backbone)))
        return "run.yaml"

    return write
