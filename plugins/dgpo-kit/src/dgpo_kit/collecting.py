"""From an installed distribution to one test a promise. Light: torch and pytest come with the first call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from dgpo_core.errors import UserError
from dgpo_kit.given import Given, NeedsInput

if TYPE_CHECKING:
    from dgpo_core.plugins.declared import RegisteredComponent
    from dgpo_core.plugins.registry import Registry
    from dgpo_kit.contracts import Check

__all__ = ["contract_tests", "distribution_named", "normal", "suite"]


def contract_tests(
    distribution: str, given: Mapping[str, Given] | None = None, *, registry: Registry | None = None
) -> Callable[..., None]:
    """A pytest test function for every promise of every part of an installed distribution, to be given a name that
    starts with `test_`.

    given: by component, what the suite cannot make up: `{"sd3": Given(section={"checkpoint": "models/tiny"})}`; where
    two kinds share the name, `"reward ocr"`. Raises UserError if nothing of that distribution is installed."""
    import pytest

    from dgpo_core.plugins.registry import get_registry

    found = suite(registry or get_registry(), distribution, given or {})
    cases = [pytest.param(what, check, id=f"{what.replace(' ', '-')}:{check.name}") for what, check in found]
    lacking: set[str] = set()

    @pytest.mark.parametrize(("what", "check"), cases)
    def test(what: str, check: Check) -> None:
        try:
            check.run()
        except NeedsInput as lack:
            if what in lacking:  # one failure says it
                pytest.skip(str(lack))
            lacking.add(what)
            raise

    return test


def suite(registry: Registry, distribution: str, given: Mapping[str, Given]) -> list[tuple[str, Check]]:
    """(distribution or "KIND NAME", check) of everything that a distribution and its components promise."""
    from dgpo_kit.contracts import component_checks, components_of, distribution_checks

    name = distribution_named(registry, distribution)
    components = components_of(registry, name)
    _check_given(components, given)
    found = [(name, check) for check in distribution_checks(registry, name)]
    for component in components:
        what = f"{component.kind} {component.component.name}"
        its_own = given.get(what, given.get(component.component.name))
        found += [
            (what, check) for check in component_checks(registry, component.kind, component.component.name, its_own)
        ]
    return found


def distribution_named(registry: Registry, distribution: str) -> str:
    """As it is registered. Raises UserError naming what is installed; `-`, `_`, `.` and case make no difference."""
    known = registry.distributions()
    for name in known:
        if normal(name) == normal(distribution):
            return name
    from dgpo_schemas.problems import nearest

    message = f"no installed distribution {distribution!r} has plugins{nearest(distribution, known)}"
    raise UserError(f"{message} (there are: {', '.join(known)}); is it installed in this environment?")


def _check_given(components: list[RegisteredComponent], given: Mapping[str, Any]) -> None:
    from dgpo_schemas.problems import nearest

    known = {
        name
        for component in components
        for name in (component.component.name, f"{component.kind} {component.component.name}")
    }
    for name in given:
        if name not in known:
            raise UserError(f"given: {name!r} is no part of the distribution{nearest(name, known)}")


def normal(name: str) -> str:
    """As package indexes compare names."""
    return "-".join(name.lower().replace("_", "-").replace(".", "-").split("-"))
