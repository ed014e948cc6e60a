"""Collect the contract tests of an installed distribution. torch and pytest are imported on the first call."""

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
    """Create a pytest function with one test per requirement of every component of an installed distribution.

    Assign it to a name that starts with `test_`. given: input by component that the suite cannot generate, such as
    `{"sd3": Given(section={"checkpoint": "models/tiny"})}`; if two kinds share a name, use `"reward ocr"`. Raises
    UserError if the distribution is not installed.
    """
    import pytest

    from dgpo_core.plugins.registry import get_registry

    checks = suite(registry or get_registry(), distribution, given or {})
    cases = [pytest.param(target, check, id=f"{target.replace(' ', '-')}:{check.name}") for target, check in checks]
    incomplete: set[str] = set()

    @pytest.mark.parametrize(("target", "check"), cases)
    def test(target: str, check: Check) -> None:
        try:
            check.run()
        except NeedsInput as needed:
            if target in incomplete:  # reported by the first failure
                pytest.skip(str(needed))
            incomplete.add(target)
            raise

    return test


def suite(registry: Registry, distribution: str, given: Mapping[str, Given]) -> list[tuple[str, Check]]:
    """Return the checks of a distribution and its components as (distribution or "KIND NAME", check)."""
    from dgpo_kit.contracts import component_checks, components_of, distribution_checks

    name = distribution_named(registry, distribution)
    components = components_of(registry, name)
    _check_given(components, given)
    checks = [(name, check) for check in distribution_checks(registry, name)]
    for component in components:
        kind, short = component.kind, component.component.name
        target = f"{kind} {short}"
        component_given = given.get(target, given.get(short))
        checks += [(target, check) for check in component_checks(registry, kind, short, component_given)]
    return checks


def distribution_named(registry: Registry, distribution: str) -> str:
    """Return the registered name of a distribution, ignoring case and `-`, `_`, `.`. Raises UserError if unknown."""
    known = registry.distributions()
    for name in known:
        if normal(name) == normal(distribution):
            return name
    from dgpo_schemas.problems import nearest

    message = f"no installed distribution {distribution!r} has plugins{nearest(distribution, known)}"
    raise UserError(f"{message} (installed: {', '.join(known)}); is it installed in this environment?")


def _check_given(components: list[RegisteredComponent], given: Mapping[str, Any]) -> None:
    from dgpo_schemas.problems import nearest

    known = {
        name
        for component in components
        for name in (component.component.name, f"{component.kind} {component.component.name}")
    }
    for name in given:
        if name not in known:
            raise UserError(f"given: {name!r} is not a component of the distribution{nearest(name, known)}")


def normal(name: str) -> str:
    """Normalize a distribution name as package indexes do."""
    return "-".join(name.lower().replace("_", "-").replace(".", "-").split("-"))
