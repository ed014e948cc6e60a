"""Every number of a run, reward or ablation file has bounds beyond which nothing works: what lies there is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from dgpo_core.plugins.registry import Registry
from dgpo_schemas.ablation import AblationConfig
from dgpo_schemas.base import Float
from dgpo_schemas.run import RunConfig
from dgpo_schemas.serve import ServeConfig

WHOLE = 2**63
"""What may be as large as a machine's whole numbers: keys of random draws."""
ABSURD = (1e300, -1e300, 1e30, -1e30, 5e-324, -5e-324, 1e-40, math.inf, -math.inf, math.nan)

RULES = (("RolloutSection", "group_size"), ("RolloutSection", "resolution"))
"""Bounded by rules between fields: `test_rules.py`."""


def models(found: set[type[BaseModel]], *annotations: Any) -> set[type[BaseModel]]:
    for one in annotations:
        if isinstance(one, type) and issubclass(one, BaseModel) and one not in found:
            found.add(one)
            models(found, *(field.annotation for field in one.model_fields.values()))
        models(found, *(inner for inner in get_args(one) if not isinstance(inner, str)))
    return found


def numbers() -> Iterator[tuple[str, type, Any]]:
    """(name, int or float, adapter) of each numeric field, and of each field of a list or mapping of numbers."""
    options = (model for kind in Registry().options_models().values() for model in kind.values())
    everything = models(set(), RunConfig, ServeConfig, AblationConfig, *options)
    for model in sorted(everything, key=lambda one: (one.__module__, one.__name__)):
        for name, field in model.model_fields.items():
            if str in alternatives(field.annotation) or (model.__name__, name) in RULES:
                continue  # a sigma in [0, 1]: test_sigma.py
            for kind, wrap in kinds(field):
                adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])
                yield f"{model.__module__}.{model.__name__}.{name}", kind, (adapter, wrap, field)


def alternatives(annotation: Any) -> Iterator[Any]:
    for one in get_args(annotation):
        yield one
        if get_origin(one) is Annotated:
            yield from get_args(get_args(one)[0])


def kinds(field: FieldInfo) -> Iterator[tuple[type, str]]:
    def within(annotation: Any, how: str) -> Iterator[tuple[type, str]]:
        if annotation in (int, float):
            yield annotation, how
        origin = getattr(annotation, "__origin__", None)
        inside = "list" if origin is list else "mapping" if origin is dict else how
        for inner in get_args(annotation):
            if not isinstance(inner, str | int | float):
                yield from within(inner, inside)

    yield from dict.fromkeys(within(field.annotation, "itself"))


FIELDS = list(numbers())


def accepts(adapter: TypeAdapter[Any], wrap: str, field: FieldInfo, value: float) -> bool:
    """A list is tried with the value in each place of two, and alone; a mapping with each of its keys."""
    tried: list[Any] = [value]
    if wrap == "list":
        tried = [[value], [value, value]]
    if wrap == "mapping":
        tried = [{"colors": value}, {"x": value}]
    for one in tried:
        try:
            adapter.validate_python(one)
        except ValidationError:
            continue
        return True
    return False


def test_all_of_them_are_looked_at() -> None:
    assert len(FIELDS) > 100
    assert {"RolloutSection.groups", "SoftmaxOptions.temperature"} <= {".".join(n.split(".")[-2:]) for n, *_ in FIELDS}


@pytest.mark.parametrize(("name", "kind", "how"), FIELDS, ids=[f"{n}-{k.__name__}" for n, k, _ in FIELDS])
def test_absurd_numbers_are_refused(name: str, kind: type, how: Any) -> None:
    adapter, wrap, field = how
    seed = name.endswith((".seed", ".seeds"))
    absurd: tuple[float, ...] = ABSURD if kind is float else (10**16, -(10**16), 10**400)
    if seed:
        absurd = (WHOLE, -WHOLE - 1, 10**400)
    assert [value for value in absurd if accepts(adapter, wrap, field, value)] == []
    if not field.is_required() and wrap == "itself" and isinstance(field.default, int | float):
        assert accepts(adapter, wrap, field, field.default)


@pytest.mark.parametrize("value", [0.0, 1e-30, -1e-30, 1e15, -1e15, 3e-4, "3e-4"])
def test_numbers_that_somebody_may_mean(value: Any) -> None:
    assert TypeAdapter(Float).validate_python(value) == float(value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e16, "at most 1e+15"),
        (-1e16, "at most 1e+15 in magnitude"),
        (1e-31, "0 or at least 1e-30"),
        (-1e-31, "in magnitude"),
    ],
)
def test_a_message_names_the_bound(value: float, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(Float).validate_python(value)
    assert said in str(caught.value)
