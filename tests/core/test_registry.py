"""Plugins are discovered from real distributions on disk; each way of being broken stays its own plugin's affair."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import textwrap
from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import Field

from dgpo_core.contracts import AdvantageWeighting
from dgpo_core.errors import PluginError, UserError
from dgpo_core.hookspecs import KINDS, Component, Kind, hookimpl
from dgpo_core.plugins.building import NoOptions
from dgpo_core.plugins.installable import installable
from dgpo_core.plugins.registry import Registry, get_registry
from dgpo_schemas.base import Int, Options, UseBlock
from dgpo_schemas.sections.backbone import BackboneSection

HEAD = "from dgpo_core.hookspecs import Component, hookimpl\n"
Install = Callable[..., Registry]


def weighting(name: str, implementation: str = "somewhere:Class", **more: Any) -> Component:
    """A declaration."""
    return Component(name, "For tests.", implementation, **more)


class Weightings:
    """A plugin in process that declares what it is given."""

    def __init__(self, *components: Any) -> None:
        self.declared = list(components)

    @hookimpl
    def dgpo_weightings(self) -> Sequence[Component]:
        return self.declared


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install distributions, given as name=source of its one module, and discover everything."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(entry_points: str | None = None, **modules: str) -> Registry:
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(HEAD + textwrap.dedent(source))
            monkeypatch.delitem(sys.modules, name, raising=False)
            info = tmp_path / f"{name}-1.5.dist-info"
            info.mkdir(exist_ok=True)
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.5\n")
            (info / "entry_points.txt").write_text(entry_points or f"[dgpo]\n{name} = {name}\n")
        return Registry()

    return make


SOUND = """
@hookimpl
def dgpo_weightings():
    return [Component("sound", "Fine.", "nowhere:Class")]
"""


def test_a_distribution_is_discovered(install: Install) -> None:
    registry = install(sound_plugin=SOUND)
    found = registry.components("weighting")["sound"]
    assert (found.kind, found.distribution, found.version) == ("weighting", "sound_plugin", "1.5")
    assert registry.distributions()["sound_plugin"] == "1.5"
    assert [b for b in registry.broken if b.distribution == "sound_plugin"] == []


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import no_such_module_at_all", "importing broken_plugin failed with ModuleNotFoundError: No module named"),
        ("raise RuntimeError('bad day')", "importing broken_plugin failed with RuntimeError: bad day"),
        ("raise SystemExit(3)", "importing broken_plugin failed with SystemExit: 3"),
        ("def (", "importing broken_plugin failed with SyntaxError"),
        (
            "@hookimpl\ndef dgpo_weighting():\n    return []",
            r"unknown hook 'dgpo_weighting'; did you mean dgpo_weightings",
        ),
        ("def dgpo_weightings():\n    return []", r"dgpo_weightings lacks the @hookimpl marker"),
        ("@hookimpl(wrapper=True)\ndef dgpo_weightings():\n    yield", r"dgpo_weightings is a wrapper"),
        ("def dgpo_wieghtings():\n    return []", r"unknown hook 'dgpo_wieghtings'; did you mean dgpo_weightings\?"),
        ("@hookimpl\ndef rewards():\n    return []", r"unknown hook 'rewards'"),
        ("@hookimpl\ndef dgpo_weightings(color):\n    return []", r"dgpo_weightings[\s\S]*color"),
        ("@hookimpl\ndef dgpo_weightings():\n    return None", "dgpo_weightings failed with TypeError"),
        ("@hookimpl\ndef dgpo_weightings():\n    return 1 / 0", "dgpo_weightings failed with ZeroDivisionError"),
        ("@hookimpl\ndef dgpo_weightings():\n    raise SystemExit", "dgpo_weightings failed with SystemExit"),
        ("@hookimpl\ndef dgpo_weightings():\n    return ['x']", r"must return dgpo_core.hookspecs.Component, not str"),
        (
            "@hookimpl\ndef dgpo_weightings():\n    return [Component('My Component', 's', 'a:B')]",
            "dgpo_weightings: 'My Component' is not a valid name: use lower-case letters",
        ),
        ("@hookimpl\ndef dgpo_weightings():\n    return [Component(3, 's', 'a:B')]", "3 is not a valid name"),
        ("@hookimpl\ndef dgpo_weightings():\n    return [Component('x\\n', 's', 'a:B')]", "is not a valid name"),
        (
            "@hookimpl\ndef dgpo_weightings():\n    return [Component('x', 's', 'a.B')]",
            "x: implementation must be 'package.module:Class'",
        ),
        ("@hookimpl\ndef dgpo_weightings():\n    return [Component('x', 's', None)]", "implementation must be"),
        (
            "@hookimpl\ndef dgpo_weightings():\n    return [Component('x', 's', 'a:B', 'Opts')]",
            "options must be a model",
        ),
        ("@hookimpl\ndef dgpo_weightings():\n    return [Component('x', ' ', 'a:B')]", "x has no summary"),
        (
            "@hookimpl\ndef dgpo_rewards():\n    return [Component('x', 's', 'a:B', adapts='video')]",
            "x: adapts must be",
        ),
        (
            "@hookimpl\ndef dgpo_weightings():\n    return [Component('x', 's', 'a:B'), Component('x', 't', 'a:C')]",
            "x is declared twice",
        ),
    ],
)
def test_a_broken_plugin_is_set_aside_and_disturbs_nobody(install: Install, source: str, reason: str) -> None:
    registry = install(broken_plugin=source, sound_plugin=SOUND)
    (broken,) = [b for b in registry.broken if b.distribution == "broken_plugin"]
    assert broken.entry_point == "broken_plugin"
    assert re.search(reason, broken.reason), broken.reason
    assert "sound" in registry.components("weighting")
    assert not any(
        component.distribution == "broken_plugin" for kind in KINDS for component in registry.components(kind).values()
    )
    with pytest.raises(PluginError, match=r"may provide it: broken_plugin \(entry point broken_plugin\): "):
        registry.find("weighting", "mystery")


def test_an_entry_point_that_leads_nowhere(install: Install) -> None:
    registry = install("[dgpo]\nlost = sound_plugin:missing.attribute\n", sound_plugin=SOUND)
    (broken,) = [b for b in registry.broken if b.distribution == "sound_plugin"]
    assert broken.entry_point == "lost"
    assert "AttributeError" in broken.reason


def test_one_module_under_two_entry_points(install: Install) -> None:
    registry = install("[dgpo]\none = sound_plugin\ntwo = sound_plugin\n", sound_plugin=SOUND)
    assert "sound" in registry.components("weighting")
    (broken,) = [b for b in registry.broken if b.distribution == "sound_plugin"]
    assert "is already registered; declare it under one entry point only" in broken.reason


def test_metadata_without_a_name(install: Install, tmp_path: Path) -> None:
    install(sound_plugin=SOUND)
    (tmp_path / "sound_plugin-1.5.dist-info/METADATA").write_text("")
    found = Registry().components("weighting")["sound"]
    assert (found.distribution, found.version) == ("sound_plugin", "unknown")


def test_a_name_that_two_distributions_claim(install: Install) -> None:
    registry = install(sound_plugin=SOUND, sounder_plugin=SOUND + "\n", fine_plugin=SOUND.replace('"sound"', '"fine"'))
    assert "sound" not in registry.components("weighting")
    assert "fine" in registry.components("weighting")
    assert registry.conflicts() == {("weighting", "sound"): ["sound_plugin", "sounder_plugin"]}
    with pytest.raises(PluginError, match=r"'sound' is claimed by sound_plugin and sounder_plugin: uninstall one"):
        registry.find("weighting", "sound")


def test_a_third_claim_is_named_too() -> None:
    registry = Registry(discover=False)
    for distribution in ("a", "b", "c"):
        registry.register(Weightings(weighting("w")), distribution=distribution)
    with pytest.raises(PluginError, match="claimed by a and b and c"):
        registry.find("weighting", "w")


def test_the_same_name_in_two_kinds_is_fine() -> None:
    class Both(Weightings):
        @hookimpl
        def dgpo_timestep_policies(self) -> Sequence[Component]:
            return self.declared

    registry = Registry(discover=False)
    registry.register(Both(weighting("uniform")), distribution="both")
    assert registry.find("weighting", "uniform").kind == "weighting"
    assert registry.find("timesteps", "uniform").kind == "timesteps"


def test_hooks_may_have_another_function_name() -> None:
    class Renamed:
        @hookimpl(specname="dgpo_weightings")
        def mine(self) -> list[Component]:
            return [weighting("renamed")]

    registry = Registry(discover=False)
    registry.register(Renamed(), distribution="d")
    assert "renamed" in registry.components("weighting")


def test_hooks_of_later_versions_may_be_optional() -> None:
    class Later(Weightings):
        @hookimpl(optionalhook=True)
        def dgpo_of_the_future(self) -> None: ...

    registry = Registry(discover=False)
    registry.register(Later(weighting("w")), distribution="d")
    assert "w" in registry.components("weighting")


def test_a_refused_plugin_leaves_nothing_behind() -> None:
    registry = Registry(discover=False)
    bad = Weightings(weighting("w"), "not a component")
    with pytest.raises(PluginError):
        registry.register(bad, distribution="d")
    assert registry.distributions() == {}
    bad.declared.pop()
    registry.register(bad, distribution="d")
    assert list(registry.components("weighting")) == ["w"]


# -- finding and building -----------------------------------------------------------------------------------------


def test_an_unknown_name_says_what_is_near_and_what_there_is() -> None:
    registry = Registry(discover=False)
    registry.register(Weightings(weighting("linear"), weighting("squared")), distribution="d")
    with pytest.raises(PluginError) as caught:
        registry.find("weighting", "linaer")
    assert str(caught.value) == "unknown weighting 'linaer'; did you mean linear? (installed: linear, squared)"
    with pytest.raises(PluginError, match=r"^unknown prompt source 'x' \(installed: none\)$"):
        registry.find("prompts", "x")


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind, names in installable().items() for name in names if kind not in ("hook", "kind")],
)
def test_known_components_that_are_not_installed_say_what_to_install(kind: str, name: str) -> None:
    owner = installable()[kind][name]
    registry = Registry(discover=False)
    with pytest.raises(
        PluginError, match=f"it comes with {owner}; in a checkout of dgpo: pip install -e plugins/{owner}$"
    ):
        registry.find_command(name) if kind == "command" else registry.find(kind, name)


class Powered(Options):
    """Options of a weighting."""

    power: Int = Field(default=1, ge=1, description="Power.")
    shift: Int = Field(default=0, description="Shift.")


class Power(AdvantageWeighting):
    """|A| to some power."""

    def weights(self, advantages: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        power: int = self.options.power
        return advantages.abs() ** power


class Unfinished(AdvantageWeighting):
    """Lacks its method."""

    @abstractmethod
    def more(self) -> None:
        """To be done."""


class Clumsy(AdvantageWeighting):
    """Refuses what it is given."""

    def __init__(self, options: Any) -> None:
        raise UserError("options.power: is odd")

    def weights(self, advantages: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
        raise AssertionError("never built")


@pytest.fixture
def powers() -> Registry:
    """Weightings of every sort."""
    registry = Registry(discover=False)
    here = __name__
    registry.register(
        Weightings(
            weighting("power", f"{here}:Power", options=Powered),
            weighting("by-path", f"{here}:Power", options=f"{here}:Powered"),
            weighting("plain", f"{here}:Power"),
            weighting("unfinished", f"{here}:Unfinished"),
            weighting("clumsy", f"{here}:Clumsy", options=Powered),
            weighting("not-one", f"{here}:Powered"),
            weighting("no-class", f"{here}:weighting"),
            weighting("no-module", "no_such_module_at_all:X"),
            weighting("no-attribute", f"{here}:Nobody"),
            weighting("odd-options", f"{here}:Power", options=f"{here}:weighting"),
            weighting("lost-options", f"{here}:Power", options="no_such_module_at_all:X"),
        ),
        distribution="powers",
        version="2",
    )
    return registry


@pytest.mark.parametrize("name", ["power", "by-path"])
def test_a_component_is_built_with_its_options(powers: Registry, name: str) -> None:
    made = powers.create("weighting", UseBlock(use=name, options={"power": "2"}))
    assert isinstance(made, Power)
    assert made.options == Powered(power=2)
    assert made.weights(torch.tensor([-3.0]), torch.zeros(1)).item() == 9


def test_a_component_without_options(powers: Registry) -> None:
    assert powers.create("weighting", "plain").options == NoOptions()
    with pytest.raises(UserError, match=r"weighting plain: options.x: unknown key; allowed: none"):
        powers.create("weighting", UseBlock(use="plain", options={"x": 1}))


def test_every_wrong_option_is_reported(powers: Registry) -> None:
    with pytest.raises(UserError) as caught:
        powers.create("weighting", UseBlock(use="power", options={"power": 0, "shfit": 1}))
    assert str(caught.value).splitlines() == [
        "weighting power: options.power: must be at least 1, not 0",
        "weighting power: options.shfit: unknown key; did you mean shift?",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("unfinished", "weighting unfinished of powers 2: .*:Unfinished does not implement more, weights"),
        ("not-one", "weighting not-one of powers 2: .*:Powered is not a subclass of AdvantageWeighting"),
        ("no-class", "is not a subclass of AdvantageWeighting"),
        ("no-module", "cannot import no_such_module_at_all:X: ModuleNotFoundError"),
        ("no-attribute", "cannot import .*:Nobody: AttributeError"),
        ("odd-options", "its options must be a pydantic model"),
        ("lost-options", "cannot import no_such_module_at_all:X"),
        ("clumsy", "^options.power: is odd$"),
    ],
)
def test_components_that_cannot_be_built(powers: Registry, name: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        powers.create("weighting", name)


def test_a_backbone_is_given_its_whole_section(registry: Registry) -> None:
    section = BackboneSection(use="toy", checkpoint="somewhere")
    made = registry.create("backbone", section, device=torch.device("cpu"))
    assert made.section is section
    assert made.device == torch.device("cpu")


class Eye:
    """What the kind below wants."""

    def __init__(self, options: Powered, *, device: str) -> None:
        self.seen = (options.power, device)


class KindOfEyes:
    """A plugin that brings a kind and a part of it."""

    kind = Kind("eye", "dgpo_eyes", (f"{__name__}:Eye",), noun="pair of eyes")

    @hookimpl
    def dgpo_kinds(self) -> list[Kind]:
        return [self.kind]

    @hookimpl
    def dgpo_eyes(self) -> list[Component]:
        return [
            Component("sharp", "Sees.", f"{__name__}:Eye", Powered),
            Component("glass", "Sees not.", f"{__name__}:Power"),
        ]


def test_a_plugin_may_bring_a_kind_of_its_own() -> None:
    class Others:
        @hookimpl
        def dgpo_eyes(self) -> list[Component]:
            return [Component("keen", "Sees.", f"{__name__}:Eye", Powered)]

    registry = Registry(discover=False)
    with pytest.raises(PluginError, match=r"^unknown hook 'dgpo_eyes'"):
        registry.register(Others(), distribution="others")
    registry.register(KindOfEyes(), distribution="d")
    registry.register(Others(), distribution="others")
    assert list(registry.kinds) == [*KINDS, "eye"]
    assert list(registry.components("eye")) == ["glass", "keen", "sharp"]
    assert registry.create("eye", UseBlock(use="keen", options={"power": 4}), device="here").seen == (4, "here")
    with pytest.raises(PluginError, match=r"^pair of eyes glass of d 0: .*:Power is not a subclass of Eye$"):
        registry.create("eye", "glass", device="here")
    with pytest.raises(PluginError, match=r"^unknown pair of eyes 'shrap'; did you mean sharp\?"):
        registry.find("eye", "shrap")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Kind("reward", "dgpo_prizes", ("a:B",)), "kind reward or hook dgpo_prizes already exists"),
        (Kind("prize", "dgpo_rewards", ("a:B",)), "kind prize or hook dgpo_rewards already exists"),
        (Kind("prize", "dgpo_run_started", ("a:B",)), "hook dgpo_run_started already exists"),
        (Kind("command", "dgpo_prizes", ("a:B",)), "kind command"),
        (Kind("Prize", "dgpo_prizes", ("a:B",)), "'Prize' is not a valid name"),
        (Kind("prize", "prizes", ("a:B",)), "hook must be a name that starts with dgpo_, not 'prizes'"),
        (Kind("prize", "dgpo_prizes", ()), "contracts, checks and template must be"),
        (Kind("prize", "dgpo_prizes", ("a:B",), checks="a.b"), "contracts, checks and template must be"),
    ],
)
def test_what_is_no_kind_of_ones_own(kind: Kind, why: str) -> None:
    plugin, registry = KindOfEyes(), Registry(discover=False)
    plugin.kind = kind
    with pytest.raises(PluginError, match=f"^dgpo_kinds: .*{why}"):
        registry.register(plugin, distribution="d")
    assert list(registry.kinds) == list(KINDS)


def test_options_models_of_everything(powers: Registry) -> None:
    for name in ("odd-options", "lost-options"):
        del powers._components["weighting"][name]
    models = powers.options_models()
    assert models["weighting"]["power"] is Powered
    assert models["weighting"]["plain"] is NoOptions
    assert models["reward"] == {}


# -- observers ----------------------------------------------------------------------------------------------------


def test_observers_are_isolated(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[tuple[str, Any]] = []

    class Good:
        @hookimpl
        def dgpo_run_finished(self, run: Any, outcome: str) -> None:
            heard.append((outcome, run))

    class Bad:
        calls = 0

        @hookimpl
        def dgpo_run_finished(self) -> None:
            type(self).calls += 1
            raise RuntimeError("bad day")

    registry = Registry(discover=False)
    registry.register(Good(), distribution="good")
    registry.register(Bad(), distribution="bad")
    with caplog.at_level(logging.WARNING):
        registry.notify("dgpo_run_finished", run="r", outcome="finished")
        registry.notify("dgpo_run_finished", run="r", outcome="failed")
    assert heard == [("finished", "r"), ("failed", "r")]
    assert Bad.calls == 1
    (record,) = caplog.records
    assert "bad:Bad failed in dgpo_run_finished and is disabled: RuntimeError: bad day" in record.getMessage()


def test_the_registry_is_made_once() -> None:
    assert get_registry() is get_registry()


def test_discovery_imports_nothing_heavy() -> None:
    code = (
        "import sys; from dgpo_core.plugins.registry import get_registry; "
        "import dgpo_core.config.pipeline, dgpo_core.contracts; "
        "get_registry().options_models(); "
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_observers_are_called_in_pluggys_order() -> None:
    """As pluggy's own call would: tryfirst, then the later registered first, then trylast."""
    called: list[str] = []

    class Watcher:
        def __init__(self, name: str) -> None:
            self.name = name

        def note(self) -> None:
            called.append(self.name)

    class Plain(Watcher):
        @hookimpl
        def dgpo_run_finished(self) -> None:
            self.note()

    class First(Watcher):
        @hookimpl(tryfirst=True)
        def dgpo_run_finished(self) -> None:
            self.note()

    class Last(Watcher):
        @hookimpl(trylast=True)
        def dgpo_run_finished(self) -> None:
            self.note()

    registry = Registry(discover=False)
    for i, watcher in enumerate([First("first"), Plain("a"), Last("last"), Plain("b")]):
        registry.register(watcher, distribution=f"d{i}")
    registry.notify("dgpo_run_finished", run="r", outcome="finished")
    mine = called.copy()
    called.clear()
    registry._manager.hook.dgpo_run_finished(run="r", outcome="finished")
    assert mine == called == ["first", "b", "a", "last"]
