"""Plugins made for another version of the contract are refused with what has changed; all others are left in peace."""

from __future__ import annotations

import functools
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dgpo_core import hookspecs
from dgpo_core.contracts import VERSION, Backbone, RewardModel, Sampler
from dgpo_core.contracts.version import CHANGES, DECLARATIONS, GUIDE, HOOKS, Change, changes_in, made_for
from dgpo_core.errors import ContractError, PluginError
from dgpo_core.hookspecs import KINDS, Component, hookimpl
from dgpo_core.plugins.building import contracts_of
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Conditioning, Prompt, SampleResult, Scores
from dgpo_kit.toy import ToyBackbone, run_data

ROOT = Path(__file__).parent.parent.parent


class OldBackbone(Backbone):
    """As the template of version 1 wrote it, bodies left out."""

    @property
    def module(self) -> torch.nn.Module:
        raise NotImplementedError

    def trainable(self) -> Any:
        raise NotImplementedError

    def without_adapter(self) -> Any:
        return None

    def encode(self, texts: Sequence[str]) -> Conditioning:  # type: ignore[override]
        return Conditioning({"text": torch.tensor([[float(len(text))] for text in texts])})

    def latent_shape(self, height: int, width: int) -> tuple[int, ...]:
        raise NotImplementedError

    def velocity(self, x_sigma: Tensor, sigma: Tensor, conditioning: Conditioning) -> Tensor:
        raise NotImplementedError

    def decode(self, x0: Tensor) -> Tensor:
        raise NotImplementedError

    def save_adapter(self, directory: Path) -> None:
        raise NotImplementedError


class OldBackboneAgain(OldBackbone):
    """A subclass of one."""


class OldReward(RewardModel):
    """As the template of version 1 wrote it: nothing of its contract has changed."""

    range = (0.0, 1.0)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        values = media.float().mean(dim=(1, 2, 3))
        return Scores(values, missing=torch.zeros_like(values, dtype=torch.bool))


class Today(ABC):
    """A backbone's contract as it becomes: the rows of the table, told by themselves."""

    @abstractmethod
    def encode(self, prompts: Sequence[Prompt]) -> Conditioning: ...

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        return (), 0

    @property
    def adapter(self) -> Any:
        return None


class SamplerToday(ABC):
    """A sampler's, likewise."""

    @abstractmethod
    def sigmas(self, steps: int, schedule: Any) -> Tensor: ...

    @abstractmethod
    def sample(self, velocity: Any, noise: Tensor, *, steps: int, schedule: Any, draws: Any = ()) -> SampleResult: ...


def found(kind: str, implementation: type, contract: type) -> list[str]:
    return [change.method for change in changes_in(kind, implementation, contract)]


def of(encode: Any, **names: Any) -> list[str]:
    return found("backbone", type("Made", (Today,), {"encode": encode, **names}), Today)


def test_everything_old_of_a_backbone_is_found() -> None:
    """By the class itself, by a subclass of a subclass, and behind a decorator that takes anything."""
    names = ("unread", "without_adapter", "merged", "save_adapter", "save_adapter_as", "formats")
    old = type("Old", (Today,), {"encode": OldBackbone.encode, **dict.fromkeys(names, OldBackbone.encode)})
    expected = [change.method for change in CHANGES if change.kind == "backbone" and change.since == 2]
    assert found("backbone", old, Today) == expected
    assert found("backbone", type("Sub", (type("Middle", (old,), {}),), {}), Today) == expected
    assert of(torch.no_grad()(OldBackbone.encode)) == ["encode"]
    assert of(staticmethod(lambda texts: None)) == ["encode"]
    mixin = type("Mixin", (), {"encode": OldBackbone.encode})
    assert found("backbone", type("Mixed", (mixin, Today), {}), Today) == ["encode"]


def test_the_old_sampler_is_found() -> None:
    class Old(SamplerToday):
        def sigmas(self, steps: int, shift: float) -> Tensor:  # type: ignore[override]
            raise NotImplementedError

        def sample(
            self, velocity: Any, noise: Tensor, *, steps: int, shift: float, draws: Any = (), keep_path: bool = False
        ) -> SampleResult:
            raise NotImplementedError

    assert found("sampler", Old, SamplerToday) == ["sigmas", "sample"]


def lenient(self: Any, *args: Any, **kwargs: Any) -> None: ...


def renamed(self: Any, x: Any) -> None: ...


def both(self: Any, texts: Any = None, *, prompts: Any = None) -> None: ...


def annotated(self: Any, texts: Sequence[Prompt]) -> None: ...


def converted(encode: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that lets an old method go on working."""

    @functools.wraps(encode)
    def of_prompts(self: Any, prompts: Sequence[Prompt]) -> Any:
        return encode(self, [prompt.text for prompt in prompts])

    return of_prompts


@pytest.mark.parametrize(
    "encode",
    [lenient, renamed, both, annotated, converted(OldBackbone.encode), functools.partialmethod(lenient), print, len,
     property(lambda self: lenient)],
)  # fmt: skip
def test_what_cannot_be_known_is_not_guessed(encode: Any) -> None:
    assert of(encode) == []


@pytest.mark.parametrize("change", [c for c in CHANGES if c.since == 3], ids=lambda change: change.method)
def test_names_of_version_2_are_found(change: Change) -> None:
    """Unless the new name is defined as well, in the same class or in one that is more derived."""
    contract = contracts_of(KINDS[change.kind])[0]
    old = type("Old", (contract,), {change.method: renamed})
    new = type("New", (contract,), {change.instead: renamed})
    assert list(changes_in(change.kind, old, contract)) == [change]
    assert made_for([change]) == 2
    assert found(change.kind, type("Sub", (old,), {}), contract) == [change.method]
    assert found(change.kind, type("OfNew", (new,), {change.method: renamed}), contract) == [change.method]
    assert found(change.kind, type("OfOld", (old,), {change.instead: renamed}), contract) == []
    names = dict.fromkeys((change.method, change.instead), renamed)
    assert found(change.kind, type("Both", (contract,), names), contract) == []


def test_a_class_of_version_1_is_told_from_one_of_version_2() -> None:
    changes = list(changes_in("backbone", type("Old", (OldBackbone,), {"unread": OldBackbone.encode}), Backbone))
    assert [change.method for change in changes][:2] == ["encode", "unread"]
    assert made_for(changes) == 1
    assert len({change.method for change in changes}) == len(changes)
    assert "unread(texts: Sequence[str])" in changes[1].was

    def unread(self: Any, prompts: Sequence[Prompt]) -> Any: ...

    (change,) = changes_in("backbone", type("Mine", (ToyBackbone,), {"unread": unread}), Backbone)
    assert (change.was, change.now) == ("unread(prompts)", "truncated_prompts(prompts)")


def test_names_of_old_are_free_for_helpers() -> None:
    """Who has one of them is not of old: every class of then had two."""
    old = {"without_adapter": renamed, "save_adapter": renamed}
    assert of(renamed, **old) == ["without_adapter", "save_adapter"]
    assert of(renamed, **old, adapter=property(lambda self: None)) == []
    assert of(renamed, merged=renamed, formats=("x",), save_adapter=renamed) == []


def test_the_new_name_with_the_old_type_is_old() -> None:
    def encode(self: Any, prompts: list[str]) -> None: ...

    def unannotated(self: Any, prompts: Any) -> None: ...

    assert of(unannotated) == []
    assert found("backbone", type("Typed", (Today,), {"encode": encode}), Today) == ["encode"]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: f"{change.kind}-{change.method}")
def test_a_row_says_what_the_contract_has_now(change: Change) -> None:
    contract = contracts_of(KINDS[change.kind])[0]
    method: Any = getattr(contract, change.method, None)
    new: Any = getattr(contract, change.now.partition("(")[0], None)
    if change.parameter is None:
        assert method is None
        assert change.instead in dir(contract)
    else:
        assert method in (None, new)
        assert change.parameter not in inspect.signature(new).parameters
        assert change.instead in inspect.signature(new).parameters
    assert change.method in change.was
    assert change.instead in change.now


def test_renamed_declarations_and_hooks_exist_under_their_new_names() -> None:
    for names in (DECLARATIONS, HOOKS):
        for old, new in names.items():
            assert hasattr(hookspecs, new)
            assert old not in vars(hookspecs)


# -- through the registry and the commands ---------------------------------------------------------------------------


class Plugin:
    """Parts of one distribution, of a declared version."""

    def __init__(self, contract: object = None, **components: type) -> None:
        self.components = components
        if contract is not None:
            self.dgpo_contract = contract

    def _of(self, contract: type) -> list[Component]:
        return [
            Component(name.replace("_", "-"), "For tests.", f"{__name__}:{one.__name__}")
            for name, one in self.components.items()
            if issubclass(one, contract)
        ]

    @hookimpl
    def dgpo_backbones(self) -> list[Component]:
        return self._of(Backbone)

    @hookimpl
    def dgpo_rewards(self) -> list[Component]:
        return self._of(RewardModel)

    @hookimpl
    def dgpo_samplers(self) -> list[Component]:
        return self._of(Sampler)


def registry_of(plugin: Plugin, **more: Any) -> Registry:
    registry = Registry(discover=False)
    registry.register(plugin, distribution="dgpo-acme", version="0.3", **more)
    return registry


@pytest.mark.parametrize("old", [OldBackbone, OldBackboneAgain])
def test_an_old_class_is_refused_with_its_distribution_and_what_changed(old: type) -> None:
    registry = registry_of(Plugin(acme=old))
    with pytest.raises(ContractError) as raised:
        registry.implementation(registry.find("backbone", "acme"))
    message = str(raised.value)
    assert message.startswith("backbone acme of dgpo-acme 0.3: made for version 1 of dgpo's plugin contract")
    assert "encode(texts: Sequence[str]) -> Conditioning became encode(prompts: Sequence[Prompt])" in message
    assert message.endswith(GUIDE)
    assert (ROOT / GUIDE).is_file()


class RemoteSince(OldReward):
    """Sets an attribute of version 2 when it is built, where its class does not show it."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        super().__init__(options, device=device)
        self.elsewhere = True


def test_an_old_attribute_that_is_set_when_a_component_is_built_is_found() -> None:
    registry = registry_of(Plugin(far=RemoteSince))
    with pytest.raises(ContractError, match=r"made for version 2 .*(?s:.)*elsewhere became is_remote"):
        registry.create("reward", "far", device=torch.device("cpu"))


def test_an_old_reward_goes_on_working() -> None:
    registry = registry_of(Plugin(shine=OldReward))
    reward = registry.create("reward", "shine", device=torch.device("cpu"))
    assert reward.score(torch.ones(2, 3, 4, 4), [Prompt("a"), Prompt("b")]).values.tolist() == [1.0, 1.0]
    registry.check_contract(registry.find("reward", "shine"))


@pytest.mark.parametrize(
    ("declared", "way"),
    [(1, "or a dgpo from before version 3"), (2, "or a dgpo from before version 3"), (4, "install a newer dgpo")],
)
def test_a_declared_version_is_compared(declared: int, way: str) -> None:
    registry = registry_of(Plugin(declared, shine=OldReward))
    with pytest.raises(
        ContractError, match=f"of dgpo-acme 0.3: made for version {declared} .* has version {VERSION}"
    ) as e:
        registry.find("reward", "shine")
    assert way in str(e.value)


def test_what_a_later_plugin_declares_besides_is_not_what_it_is_refused_for() -> None:
    class Later(Plugin):
        @hookimpl
        def dgpo_judges(self) -> list[Component]:
            return []

    with pytest.raises(ContractError, match=f"made for version {VERSION + 1}"):
        registry_of(Later(VERSION + 1))
    with pytest.raises(PluginError, match=r"there is no hook dgpo_judges|unknown hook 'dgpo_judges'"):
        registry_of(Later(VERSION))


def test_this_version_may_be_declared_and_nonsense_may_not() -> None:
    registry = registry_of(Plugin(VERSION, shine=OldReward, acme=OldBackbone))
    assert registry.find("reward", "shine").contract == VERSION
    registry.check_contract(registry.find("backbone", "acme"))  # believed until its class is loaded
    with pytest.raises(ContractError):
        registry.implementation(registry.find("backbone", "acme"))
    for nonsense in ("2", 2.0, True):
        with pytest.raises(PluginError, match=rf"dgpo_contract: must be .* such as {VERSION}"):
            registry_of(Plugin(nonsense, shine=OldReward))


OLD_PLUGIN = """
from dgpo_core import hookimpl
from dgpo_core.hookspecs import Part

@hookimpl
def dgpo_rewards():
    return [Part("shine", "For tests.", "acme:Shine")]
"""


def of_module(text: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry that discovers a module of that text."""
    (path / "acme_declares.py").write_text(text)
    monkeypatch.syspath_prepend(path)
    monkeypatch.delitem(sys.modules, "acme_declares", raising=False)
    entry_point = EntryPoint("acme", "acme_declares", "dgpo")
    monkeypatch.setattr("dgpo_core.plugins.registry.entry_points", lambda damaged: [("dgpo-acme", "0.3", entry_point)])
    return Registry()


def test_an_old_declaration_is_refused_with_its_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = of_module(OLD_PLUGIN, tmp_path, monkeypatch)
    with pytest.raises(PluginError) as raised:
        registry.find("reward", "shine")
    message = str(raised.value)
    assert "dgpo-acme (entry point acme): made for version 2 or older of dgpo's plugin contract" in message
    assert "dgpo_core.hookspecs.Part became dgpo_core.hookspecs.Component" in message
    assert GUIDE in message
    assert "failed with" not in message


def test_a_plugin_may_be_for_several_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (f"from dgpo_core.hookspecs import {name}" for name in ("Part\n", "Component as Part\n"))
    both = f"try:\n    {old}except ImportError:\n    {new}"
    registry = of_module(OLD_PLUGIN.replace(old, both), tmp_path, monkeypatch)
    assert registry.broken == []
    assert registry.find("reward", "shine").component.summary == "For tests."
    with pytest.raises(AttributeError, match="has no attribute 'Party'"):
        _ = hookspecs.Party
    with pytest.raises(ImportError, match="cannot import name 'Party'"):
        exec("from dgpo_core.hookspecs import Party")


def test_an_old_hook_is_refused_with_its_new_name() -> None:
    class Places(Plugin):
        @hookimpl
        def dgpo_places(self) -> dict[str, str]:
            return {"cloud": "acme:connect"}

    for declared in (None, VERSION):
        with pytest.raises(
            ContractError, match=r"version 2 or older .*\n  the hook dgpo_places became dgpo_reward_tra"
        ):
            registry_of(Places(declared))
    with pytest.raises(ContractError, match="made for version 2 of"):
        registry_of(Places(2))


@pytest.mark.parametrize("declared", [None, 1])
def test_every_command_says_the_same(
    declared: int | None, known: Registry, dgpo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    known.register(Plugin(declared, acme=OldBackbone), distribution="dgpo-acme", version="0.3")
    data = run_data("runs", backbone={"use": "acme"})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    said = "backbone acme of dgpo-acme 0.3: made for version 1 of dgpo's plugin contract"
    for command in (
        ["plugins", "show", "acme"], ["plugins", "check", "acme"], ["validate", "run.yaml"], ["train", "run.yaml"],
        ["train", "run.yaml", "--dry-run"], ["plan", "run.yaml"],
    ):  # fmt: skip
        done = dgpo(*command)
        assert (done.code, done.out) == (2, ""), command
        assert said in done.err, command
        assert "Traceback" not in done.err
        assert GUIDE in done.err
    listed = dgpo("plugins", "list")
    assert listed.code == 0
    assert f"unusable: {said}" in listed.err
    (refused,) = json.loads(dgpo("plugins", "list", "--json").out)["refused"]
    assert (refused["kind"], refused["name"], refused["distribution"]) == ("backbone", "acme", "dgpo-acme")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.yaml"]


def test_the_kits_own_backbone_is_of_today() -> None:
    assert not list(changes_in("backbone", ToyBackbone, Backbone))
