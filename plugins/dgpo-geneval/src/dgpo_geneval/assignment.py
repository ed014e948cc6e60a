"""Which objects each clause is about, where several clauses name one class: for `geneval`, different ones.

"A red circle and a blue circle" wants two circles. The objects of a class are its best, as many as all of its clauses
require together: with a single clause they are the benchmark's, and an image gains nothing by showing circles of every
color. They are dealt out to the clauses so that the sum of `variants.components` is largest, exactly:

- Classes that no position speaks of are dealt out by themselves, in a time that is polynomial in everything (`_deal`).
- Classes that positions tie together are tried in every way (`_search`), at most `MOST_WAYS`; prompts that would want
  more are refused (`check_apart`). How many there are depends on the prompt alone.
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
"""Ways of dealing out objects that are tried: seven objects to seven clauses; a fraction of a second an image."""


def best_of_class(include: Sequence[Include], scene: Scene) -> dict[int, Places]:
    """Each clause about the best objects of its class, as many as it requires: the benchmark's rule."""
    return {i: tuple(range(min(clause.count, scene.count(clause.label)))) for i, clause in enumerate(include)}


def shared_classes(include: Sequence[Include]) -> dict[str, list[int]]:
    """Classes that several clauses name, and those clauses."""
    clauses: dict[str, list[int]] = {}
    for index, clause in enumerate(include):
        clauses.setdefault(clause.label, []).append(index)
    return {label: indices for label, indices in clauses.items() if len(indices) > 1}


def check_apart(metadata: Metadata, per_class: int) -> None:
    """Raise ValueError, beginning with the key, for a prompt that no image can satisfy with different objects for
    clauses of one class, or whose objects can be dealt out in too many ways."""
    include, shared = metadata.include, shared_classes(metadata.include)
    for label, indices in shared.items():
        asked = sum(include[i].count for i in indices)
        where = f"include[{indices[-1]}].count"
        if asked > per_class:
            raise ValueError(
                f"key '{where}': {len(indices)} clauses ask for {asked} {label!r} in all; the detector keeps at most "
                f"{per_class} of a class"
            )
        for index, bound in enumerate(metadata.exclude):
            if bound.label == label and bound.count <= asked:
                raise ValueError(
                    f"key 'exclude[{index}].count': fewer than {bound.count} {label!r} are wanted, but the include "
                    f"clauses ask for {asked} in all, each for others; it must be at least {asked + 1}"
                )
    for group in _groups(include):
        if _tied(include, group) and _too_many(include, group, shared):
            labels = ", ".join(repr(label) for label in shared if any(include[i].label == label for i in group))
            raise ValueError(
                f"key 'include': there are more than {MOST_WAYS} ways of dealing out the objects of {labels} to the "
                "clauses, too many to be tried with the positions; ask for fewer of them, or leave the positions out"
            )


def assign(include: Sequence[Include], scene: Scene) -> dict[int, Places]:
    """The objects of each clause, no object in two clauses; of equally good ways the one that gives the better objects
    to earlier clauses. Raises ValueError where `check_apart` does for too many ways."""
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
            objects |= _deal(include, group, count, scene.colors.get(label, ()))
    return objects


def _groups(include: Sequence[Include]) -> list[list[int]]:
    """Clauses that bear on one another: those of one class, and those of classes that positions tie."""
    home: dict[str, int] = {}
    for clause in include:
        mine = home.setdefault(clause.label, len(home))
        if clause.position is not None:
            other = home[include[clause.position[1]].label]
            home = {label: other if group == mine else group for label, group in home.items()}
    groups: dict[int, list[int]] = {}
    for index, clause in enumerate(include):
        groups.setdefault(home[clause.label], []).append(index)
    return list(groups.values())


def _tied(include: Sequence[Include], group: Sequence[int]) -> bool:
    return any(include[i].position is not None for i in group)


def _too_many(include: Sequence[Include], group: Sequence[int], shared: Mapping[str, Sequence[int]]) -> bool:
    """Whether the objects of a group, where there are enough, can be dealt out in more ways than are tried; where there
    are fewer, so are the ways."""
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
    """Every way, judged."""
    if _too_many(include, group, shared):
        raise ValueError(f"objects can be dealt out to the include clauses in more than {MOST_WAYS} ways")
    fixed = {i: tuple(range(min(include[i].count, scene.count(include[i].label)))) for i in group}
    contested = [shared[label] for label in dict.fromkeys(include[i].label for i in group) if label in shared]
    best, chosen = -1.0, fixed
    for way in product(*(list(_partitions(include, indices, scene)) for indices in contested)):
        objects = dict(fixed)
        for indices, dealt in zip(contested, way, strict=True):
            objects.update(zip(indices, dealt, strict=True))
        results = judge_include(include, group, objects, scene, exact=False)
        parts = [part for result in results.values() for part in components(result)]
        value = sum(parts)
        if value > best + 1e-9:  # equal ways may differ by rounding
            best, chosen = value, objects
        if value == len(parts):
            break
    return chosen


def _partitions(include: Sequence[Include], indices: Sequence[int], scene: Scene) -> Iterator[tuple[Places, ...]]:
    """Every way of dealing out the objects of a class to its clauses, all of them and to none more than it requires."""
    counts = [include[i].count for i in indices]
    yield from _dealings(tuple(range(min(sum(counts), scene.count(include[indices[0]].label)))), counts)


def _dealings(free: Places, counts: Sequence[int]) -> Iterator[tuple[Places, ...]]:
    if not counts:
        yield ()
        return
    fewest = max(0, len(free) - sum(counts[1:]))
    for size in range(min(counts[0], len(free)), fewest - 1, -1):
        for mine in combinations(free, size):
            for others in _dealings(tuple(place for place in free if place not in mine), counts[1:]):
                yield (mine, *others)


_State = tuple[int, int, bool]
"""Objects not dealt out yet, those of them that have the color in hand, whether a clause was filled in part."""
_Worth = tuple[int, tuple[int, ...]]
"""Value so far, and how many objects each clause so far gets."""


def _deal(include: Sequence[Include], group: Sequence[int], count: int, colors: Sequence[str]) -> dict[int, Places]:
    """Deal out `count` objects of one class, no more than its clauses require, of which no position speaks.

    A clause that is filled is worth 1 for its count and the share of right colors; one filled in part is worth that
    part. At most one is filled in part: of two, moving an object to the one that requires fewer never lowers the sum.
    Of the filled clauses of one color those that require fewest get the right objects first: each is worth more
    there. What is left is which clauses to fill: a knapsack, solved by dynamic programming in whole numbers, so that
    equal ways are equal.
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
    return _hand_over(include, group, dict(zip(order, sizes, strict=True)), count, colors)


def _best(reached: Iterable[tuple[_State, _Worth]]) -> dict[_State, _Worth]:
    """The best way to each state, the first of equals."""
    best: dict[_State, _Worth] = {}
    for state, worth in reached:
        if state not in best or worth[0] > best[state][0]:
            best[state] = worth
    return best


def _fill(clause: Include, unit: int, states: Mapping[_State, _Worth]) -> Iterator[tuple[_State, _Worth]]:
    """What can be done about a clause: fill it, fill it in part, leave it."""
    share = unit // clause.count
    for (left, right, part), (value, sizes) in states.items():
        if clause.count <= left:
            hits = min(right, clause.count) if clause.color is not None else 0
            yield (left - clause.count, right - hits, part), (value + unit + hits * share, (*sizes, clause.count))
        for size in range(1, 1 if part else min(clause.count - 1, left) + 1):
            yield (left - size, right, True), (value + size * share, (*sizes, size))
        yield (left, right, part), (value, (*sizes, 0))


def _hand_over(
    include: Sequence[Include], group: Sequence[int], sizes: Mapping[int, int], count: int, colors: Sequence[str]
) -> dict[int, Places]:
    """Objects for clauses that get so many: of the right color to those that are filled, then the others."""
    free = dict.fromkeys(range(count))
    mine: dict[int, list[int]] = {i: [] for i in group}
    for index in sizes:
        clause = include[index]
        if clause.color is not None and sizes[index] == clause.count:
            mine[index] = [place for place in free if colors[place] == clause.color][: clause.count]
            for place in mine[index]:
                del free[place]
    for index in group:
        for place in list(free)[: sizes[index] - len(mine[index])]:
            mine[index].append(place)
            del free[place]
    return {index: tuple(sorted(places)) for index, places in mine.items()}
