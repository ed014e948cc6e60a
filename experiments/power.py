"""How many seeds and prompts an experiment needs, from the variances in its record."""

from __future__ import annotations

import math
import statistics as plain
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dgpo_core.errors import UserError
from dgpo_lab.ablation.results import Results, by_prompt
from dgpo_lab.scoring.table import Row, table
from experiments.statistics.sizes import (
    Variances,
    half_width,
    pooled_sd,
    sd_interval,
    seeds_for,
    seeds_for_sd,
    variances,
)
from experiments.statistics.summaries import last_scores, summaries

__all__ = ["report"]

ASSURANCE = 0.8
WIDTH = 120
PARTS = ("seed", "prompt", "both")
Values = Mapping[str, Mapping[int, float]]


def report(results: Results, width: float, prompts: Sequence[int]) -> Iterator[str]:
    """Yield lines: seeds for a 95 % half-width of `width` of the differences to the baseline, by variant and pooled,
    and how they depend on the number of held-out prompts.

    prompts: numbers of prompts to list; empty: that of the record, twice and four times as many. Raises UserError if no
    variant has two seeds in common with the baseline.
    """
    found = {"last score": last_scores(results), "area": summaries(results, "samples", "area")}
    differences = {title: _differences(values, results.baseline) for title, values in found.items()}
    if not any(len(sample) > 1 for sample in differences["last score"].values()):
        raise UserError(f"a variance takes a variant with two seeds in common with the baseline {results.baseline}")
    yield f"Differences to {results.baseline}, paired by seed. Seeds for a 95 % interval of ±{width:g}:"
    yield ""
    yield from _by_variant(differences, width)
    yield ""
    for title, samples in differences.items():
        yield from _pooled(title, samples, found[title], results.baseline, width)
    if any(trace.ended_by == "target" for trace in results.traces):
        yield "Some cells ended at their target: differences of their last scores say little."
    yield ""
    yield from _by_prompts(results, width, prompts)


def _differences(values: Values, baseline: str) -> dict[str, list[float]]:
    """Return the differences of each other variant to the baseline over common seeds."""
    base = values[baseline]
    return {
        name: [own[seed] - base[seed] for seed in sorted(own.keys() & base.keys())]
        for name, own in values.items()
        if name != baseline
    }


def _by_variant(differences: Mapping[str, Mapping[str, Sequence[float]]], width: float) -> Iterator[str]:
    header: Row = (
        "variant",
        ["seeds", *(cell for title in differences for cell in (f"sd, {title}", "±now", "needed"))],
        [],
    )
    rows: list[Row] = []
    for name, sample in next(iter(differences.values())).items():
        cells = [str(len(sample))]
        for samples in differences.values():
            cells += _cells(samples[name], width)
        rows.append((name, cells, []))
    yield from table(header, rows, WIDTH)


def _cells(sample: Sequence[float], width: float) -> list[str]:
    if len(sample) < 2:
        return ["–"] * 3
    sd = plain.stdev(sample)
    now = half_width(Variances(sd**2, 0.0, 0.0), len(sample), 1, fixed=True)
    return [f"{sd:.4f}", f"{now:.4f}", _count(seeds_for_sd(sd, width))]


def _pooled(
    title: str, samples: Mapping[str, Sequence[float]], values: Values, baseline: str, width: float
) -> Iterator[str]:
    """Yield what all contrasts together say: they are more certain than each, although they share the baseline."""
    sd, freedom = pooled_sd(list(samples.values()))
    low, high = sd_interval(sd, freedom)
    yield (
        f"{title}: pooled sd {sd:.4f} [{low:.4f}, {high:.4f}] ({freedom} degrees of freedom): "
        f"{_count(seeds_for_sd(sd, width))} seeds; {_count(seeds_for_sd(sd, width, assurance=ASSURANCE))} for a chance "
        f"of {ASSURANCE:.0%}; {_count(seeds_for_sd(high, width, assurance=ASSURANCE))} if the sd is at its upper end."
    )
    of_variants, _ = pooled_sd([list(own.values()) for name, own in values.items() if name != baseline])
    of_baseline, _ = pooled_sd([list(values[baseline].values())])
    unpaired = math.sqrt(of_variants**2 + of_baseline**2)
    yield (
        f"  Without common random numbers the sd would be {unpaired:.4f}: "
        f"{_count(seeds_for_sd(unpaired, width))} seeds for each variant."
    )


def _by_prompts(results: Results, width: float, prompts: Sequence[int]) -> Iterator[str]:
    found = _variances(results)
    if found is None:
        yield "Scores of single prompts were not kept for the same prompts: how many are needed is not known."
        return
    parts, seeds, now = found
    counts = list(prompts) or [now, 2 * now, 4 * now]
    yield (
        f"Sources of the last score's differences, as standard deviations: of a seed {math.sqrt(parts.seed):.3f}, of a "
        f"prompt {math.sqrt(parts.prompt):.3f}, of a prompt within a seed {math.sqrt(parts.both):.3f}. For ±{width:g} "
        "over seeds with these prompts, and over seeds and prompts:"
    )
    yield ""
    header: Row = ("prompts", [f"±{seeds} seeds", "needed", f"±{seeds} seeds, any prompts", "needed"], [])
    rows: list[Row] = []
    for count in counts:
        cells = []
        for fixed in (True, False):
            cells += [f"{half_width(parts, seeds, count, fixed=fixed):.4f}"]
            cells += [_count(seeds_for(parts, count, width, fixed=fixed))]
        rows.append((str(count), cells, []))
    yield from table(header, rows, WIDTH)


def _variances(results: Results) -> tuple[Variances, int, int] | None:
    """Return the components of the differences to the baseline, means over the variants, the number of seeds of the
    smallest and the number of prompts; None if prompts were not kept."""
    base = next(variant for variant in results.variants if variant.name == results.baseline)
    baselines = {trace.seed: trace for trace in base.finished}
    found, seeds, count = [], [], 0
    for variant in results.variants:
        pairs = [(t, baselines[t.seed]) for t in variant.finished if t.seed in baselines]
        if variant is base or len(pairs) < 2:
            continue
        own, other = (by_prompt([pair[side] for pair in pairs], results.reward) for side in (0, 1))
        if own is None or other is None or own[1] != other[1]:
            return None
        matrix = own[0] - other[0]
        whole = np.flatnonzero(np.isfinite(matrix).all(axis=0)).tolist()
        count = matrix.shape[1]
        try:
            found.append(variances(matrix[:, whole], [own[1][place] for place in whole]))
        except ValueError:
            return None
        seeds.append(len(pairs))
    if not found:
        return None
    return Variances(*(plain.fmean(getattr(one, part) for one in found) for part in PARTS)), min(seeds), count


def _count(found: int | None) -> str:
    return "never" if found is None else str(found)
