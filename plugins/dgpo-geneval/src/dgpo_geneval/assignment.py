"""Assign detected objects to clauses. In `geneval`, clauses that name the same class get distinct objects.

"A red circle and a blue circle" requires two circles. The candidates of a class are its highest-scoring objects, as
many as its clauses require in total: with a single clause they are the benchmark's, and showing circles of every color
has no benefit. The assignment maximizes the sum of `variants.components` exactly:

- Classes without positions are assigned separately, in polynomial time (`_assign_by_color`).
- Classes linked by positions are assigned by exhaustive search (`_search`) over at most `MOST_WAYS` assignments;
  prompts with more are rejected (`check_apart`). Their number depends on the prompt alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations, product

from dgpo_geneval.clauses import Places, Scene, judge_include
from dgpo_geneval.metadata import Include, Metadata
from dgpo_geneval.variants import components

__all__ = ["MOST_WAYS", "assign", "best_of_class", "check_apart", "shared_classes"]

MOST_WAYS = math.factorial(7)
"""Maximum number of assignments to search: seven objects to seven clauses, a fraction of a second per image."""


def best_of_class(include: Sequence[Include], scene: Scene) -> dict[int, Places]:
    """Assign to each clause the best objects of its class, as many as it requires: the benchmark's rule."""
    return {i: tuple(range(min(clause.count, scene.count(clause.label)))) for i, clause in enumerate(include)}


def shared_classes(include: Sequence[Include]) -> dict[str, list[int]]:
    """Return the classes that several clauses name, with the indices of these clauses."""
    clauses: dict[str, list[int]] = {}
    for index, clause in enumerate(include):
        clauses.setdefault(clause.label, []).append(index)
    return {label: indices for label, indices in clauses.items() if len(indices) > 1}


def check_apart(metadata: Metadata, per_class: int) -> None:
    """Raise ValueError, beginning with the key, for a prompt that no image can satisfy with distinct objects for
    clauses of one class, or that has too many possible assignments."""
    include, shared = metadata.include, shared_classes(metadata.include)
    for label, indices in shared.items():
        required = sum(include[i].count for i in indices)
        where = f"include[{indices[-1]}].count"
        if required > per_class:
            raise ValueError(
                f"key '{where}': {len(indices)} clauses require {required} {label!r} in total; the detector keeps at "
                f"most {per_class} per class"
            )
        for index, bound in enumerate(metadata.exclude):
            if bound.label == label and bound.count <= required:
                raise ValueError(
                    f"key 'exclude[{index}].count': allows fewer than {bound.count} {label!r}, but the include clauses "
                    f"require {required} distinct ones in total; must be at least {required + 1}"
                )
    for group in _groups(include):
        if _tied(include, group) and _too_many(include, group, shared):
            labels = ", ".join(repr(label) for label in shared if any(include[i].label == label for i in group))
            raise ValueError(
                f"key 'include': there are more than {MOST_WAYS} ways to assign the objects of {labels} to the "
                "clauses, too many to search with positions; require fewer objects, or remove the positions"
            )


def assign(include: Sequence[Include], scene: Scene) -> dict[int, Places]:
    """Assign distinct objects to the clauses. Of equally good assignments, earlier clauses get the better objects.

    Raises ValueError if there are too many possible assignments, as `check_apart` does.
    """
    objects = best_of_class(include, scene)
    shared = shared_classes(include)
    for group in _groups(include) if shared else ():
        if not any(include[i].label in shared for i in group):
            continue
        if _tied(include, group):
            objects |= _search(include, group, shared, scene)
        else:
            label = include[group[0]].label
            count = min(scene.count(label), sum(include[i].count for i in group))
            objects |= _assign_by_color(include, group, count, scene.colors.get(label, ()))
    return objects


def _groups(include: Sequence[Include]) -> list[list[int]]:
    """Group clauses that depend on each other: those of one class, and those of classes linked by positions."""
    group_of: dict[str, int] = {}
    for clause in include:
        current = group_of.setdefault(clause.label, len(group_of))
        if clause.position is not None:
            target = group_of[include[clause.position[1]].label]
            group_of = {label: target if group == current else group for label, group in group_of.items()}
    groups: dict[int, list[int]] = {}
    for index, clause in enumerate(include):
        groups.setdefault(group_of[clause.label], []).append(index)
    return list(groups.values())


def _tied(include: Sequence[Include], group: Sequence[int]) -> bool:
    return any(include[i].position is not None for i in group)


def _too_many(include: Sequence[Include], group: Sequence[int], shared: Mapping[str, Sequence[int]]) -> bool:
    """Whether a group has more than `MOST_WAYS` possible assignments, given enough objects (fewer have fewer)."""
    ways = 1
    for label in {include[i].label for i in group} & shared.keys():
        left = sum(include[i].count for i in shared[label])
        for count in (include[i].count for i in shared[label]):
            fewer = min(count, left - count)
            ways *= math.comb(left, fewer) if fewer <= MOST_WAYS else MOST_WAYS + 1
            left -= count
            if ways > MOST_WAYS:
                return True
    return False


def _search(
    include: Sequence[Include], group: Sequence[int], shared: Mapping[str, Sequence[int]], scene: Scene
) -> dict[int, Places]:
    """Return the best assignment by exhaustive search."""
    if _too_many(include, group, shared):
        raise ValueError(f"there are more than {MOST_WAYS} ways to assign objects to the include clauses")
    fixed = {i: tuple(range(min(include[i].count, scene.count(include[i].label)))) for i in group}
    contested = [shared[label] for label in dict.fromkeys(include[i].label for i in group) if label in shared]
    best, chosen = -1.0, fixed
    for partitions in product(*(list(_partitions(include, indices, scene)) for indices in contested)):
        objects = dict(fixed)
        for indices, partition in zip(contested, partitions, strict=True):
            objects.update(zip(indices, partition, strict=True))
        results = judge_include(include, group, objects, scene, exact=False)
        parts = [part for result in results.values() for part in components(result)]
        value = sum(parts)
        if value > best + 1e-9:  # equally good assignments may differ by rounding
            best, chosen = value, objects
        if value == len(parts):
            break
    return chosen


def _partitions(include: Sequence[Include], indices: Sequence[int], scene: Scene) -> Iterator[tuple[Places, ...]]:
    """Yield every partition of the objects of a class among its clauses, none of which gets more than it requires."""
    counts = [include[i].count for i in indices]
    yield from _splits(tuple(range(min(sum(counts), scene.count(include[indices[0]].label)))), counts)


def _splits(free: Places, counts: Sequence[int]) -> Iterator[tuple[Places, ...]]:
    if not counts:
        yield ()
        return
    fewest = max(0, len(free) - sum(counts[1:]))
    for size in range(min(counts[0], len(free)), fewest - 1, -1):
        for chosen in combinations(free, size):
            for others in _splits(tuple(place for place in free if place not in chosen), counts[1:]):
                yield (chosen, *others)


_State = tuple[int, int, bool]
"""Number of unassigned objects, how many of them have the current color, and whether a clause was partly filled."""
_Worth = tuple[int, tuple[int, ...]]
"""Value so far, and the number of objects of each clause so far."""


def _assign_by_color(
    include: Sequence[Include], group: Sequence[int], count: int, colors: Sequence[str]
) -> dict[int, Places]:
    """Assign `count` objects of one class without positions; `count` is at most what its clauses require.

    A filled clause is worth 1 for its count plus the fraction of right colors; a partly filled one is worth its
    fraction. At most one clause is partly filled: of two, moving an object to the one that requires fewer never lowers
    the sum. Among filled clauses of one color, those that require the fewest objects get the right ones first, because
    each is worth more there. Which clauses to fill is a knapsack problem, solved by dynamic programming in integers, so
    that equally good assignments compare equal.
    """
    first = {include[i].color: i for i in reversed(group)}
    order = sorted(group, key=lambda i: (first[include[i].color], include[i].count, i))
    unit = math.lcm(*(include[i].count for i in group))
    states: dict[_State, _Worth] = {(count, 0, False): (0, ())}
    color: str | None = None
    for index in order:
        clause = include[index]
        if clause.color != color:
            color = clause.color
            right = sum(name == color for name in colors)
            states = _best(((left, right, part), worth) for (left, _, part), worth in states.items())
        states = _best(_fill(clause, unit, states))
    _, sizes = max(states.values(), key=lambda worth: worth[0])
    return _distribute(include, group, dict(zip(order, sizes, strict=True)), count, colors)


def _best(reached: Iterable[tuple[_State, _Worth]]) -> dict[_State, _Worth]:
    """Return the best value for each state, the first of equal ones."""
    best: dict[_State, _Worth] = {}
    for state, worth in reached:
        if state not in best or worth[0] > best[state][0]:
            best[state] = worth
    return best


def _fill(clause: Include, unit: int, states: Mapping[_State, _Worth]) -> Iterator[tuple[_State, _Worth]]:
    """Yield the states after a clause: filled, partly filled, or empty."""
    share = unit // clause.count
    for (left, right, part), (value, sizes) in states.items():
        if clause.count <= left:
            hits = min(right, clause.count) if clause.color is not None else 0
            yield (left - clause.count, right - hits, part), (value + unit + hits * share, (*sizes, clause.count))
        for size in range(1, 1 if part else min(clause.count - 1, left) + 1):
            yield (left - size, right, True), (value + size * share, (*sizes, size))
        yield (left, right, part), (value, (*sizes, 0))


def _distribute(
    include: Sequence[Include], group: Sequence[int], sizes: Mapping[int, int], count: int, colors: Sequence[str]
) -> dict[int, Places]:
    """Choose the objects of each clause, given their number: those of the right color for filled clauses first."""
    free = dict.fromkeys(range(count))
    chosen: dict[int, list[int]] = {i: [] for i in group}
    for index in sizes:
        clause = include[index]
        if clause.color is not None and sizes[index] == clause.count:
            chosen[index] = [place for place in free if colors[place] == clause.color][: clause.count]
            for place in chosen[index]:
                del free[place]
    for index in group:
        for place in list(free)[: sizes[index] - len(chosen[index])]:
            chosen[index].append(place)
            del free[place]
    return {index: tuple(sorted(places)) for index, places in chosen.items()}
