"""`dgpo plan`: estimate memory, time and cost of a run without loading a model."""

from __future__ import annotations

import math
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.options import Preset, number_option
from dgpo_cli.working import working

if TYPE_CHECKING:
    from dgpo_lab.planning.cards import Card
    from dgpo_lab.planning.plan import Plan
    from dgpo_schemas.run import RunConfig

__all__ = ["plan"]

GIB = 2**30
FRACTION = 0.4
NETWORK = 50.0
"""GB/s: one port of 400 Gbit/s."""


def plan(
    file: Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set rollout.group_size=12.", metavar="KEY=VALUE"),
    ] = None,
    preset: Preset = None,
    card: Annotated[str, typer.Option(help="GPU to plan for; `--card all` compares all known GPUs.")] = "h200",
    processes: Annotated[int, typer.Option(min=1, max=65536, help="Number of GPUs.")] = 1,
    machines: Annotated[int, typer.Option(min=1, help="Number of machines that these GPUs are in.")] = 1,
    nvlink: Annotated[
        float | None,
        number_option(min=0.01, help="GB/s that a GPU sends within its machine; default: NVLink or PCIe of the GPU."),
    ] = None,
    network: Annotated[
        float, number_option(min=0.01, help="GB/s that a machine sends to others, over all its ports.")
    ] = NETWORK,
    price: Annotated[
        float | None,
        number_option(min=0, help="Price of one GPU in USD per hour; default: an approximate cloud price."),
    ] = None,
    fraction: Annotated[
        float, number_option(min=0.01, max=1, help="Assumed fraction of the GPU's peak FLOP/s that the model reaches.")
    ] = FRACTION,
    measured: Annotated[
        Path | None, typer.Option(help="Output of `dgpo bench --json` on the GPU, used instead of --fraction.")
    ] = None,
    fit: Annotated[
        float | None, number_option(min=1, help="Find settings with which the run fits this memory.", metavar="GIB")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate the peak memory, FLOPs, time and cost of a run without loading a model.

    Runs an iteration on a meta model (tensors without values) and counts every operation and allocation. No GPU is
    needed.

    Examples:

        dgpo plan examples/sd35-geneval.yaml --card h100 --processes 8

        dgpo plan examples/sd35-geneval.yaml --processes 64 --machines 8 --network 400

        dgpo plan examples/sd35-geneval.yaml --fit 24

        dgpo plan run.yaml --card all
    """
    import json

    from dgpo_core.config.pipeline import load_run_config
    from dgpo_core.errors import UserError
    from dgpo_core.flow.sizes import named
    from dgpo_core.plugins.isolation import printing_aside
    from dgpo_core.plugins.registry import get_registry
    from dgpo_lab.planning.cards import CARDS
    from dgpo_schemas.problems import ConfigError, nearest
    from dgpo_schemas.yaml_text import dump_yaml

    if card != "all" and card not in CARDS:
        raise UserError(f"--card: unknown GPU {card!r}{nearest(card, CARDS)} (known: all, {', '.join(CARDS)})")
    registry = get_registry()
    config = load_run_config(file, overrides or (), registry, preset=preset)
    if measured is not None and card == "all":
        raise UserError("--measured: a measurement is of one GPU; name it with --card")
    fractions = {"rollout": fraction, "optimize": fraction}
    if measured is not None:
        fractions = _fractions(measured, CARDS[card].tflops)

    with working("loading torch"):
        from dgpo_lab.planning.embeddings import embeddings_of
        from dgpo_lab.planning.fit import all_prompts, at_largest_size, changed, fitting, nested
        from dgpo_lab.planning.plan import Model, make_plan, measure_model
        from dgpo_lab.planning.traffic import check_machines

    check_machines(processes, machines, config.run.shard)
    models: dict[str, Model] = {}

    def planned(candidate: RunConfig) -> Plan:
        kind = candidate.backbone.model_dump_json()
        if kind not in models:
            models[kind] = measure_model(candidate, registry, work.say)
        return make_plan(candidate, models[kind], registry, processes, work.say, machines)

    def accepts(settings_by_key: dict[str, Any]) -> bool:
        """Return whether the run file accepts the settings; not every backbone has every option."""
        settings = [f"{key}={json.dumps(value)}" for key, value in settings_by_key.items()]
        try:
            load_run_config(file, [*(overrides or ()), *settings], registry, preset=preset)
        except (ConfigError, UserError):
            return False
        return True

    changes: dict[str, Any] = {}
    with working("reading the prompts") as work, printing_aside():
        original, config = config, at_largest_size(config, registry)
        kept = None if config.backbone.cache is None else all_prompts(original, registry)
        result = planned(config)
        solution = None if fit is None else fitting(config, planned, fit * GIB, accepts)
    if fit is not None:
        if solution is None:
            raise UserError(
                f"--fit: the run does not fit {fit:g} GiB, even with the smallest micro-batches and gradient "
                f"checkpointing: {sum(result.held.values()) / GIB:.1f} GiB are held permanently; use "
                "backbone.dtype: bfloat16, smaller text encoders (backbone.options), or a smaller model"
            )
        changes, result = solution
        config = changed(config, changes)
    cards = CARDS if card == "all" else {card: CARDS[card]}
    embeddings = None if kept is None else embeddings_of(config, models[config.backbone.model_dump_json()], kept)
    if as_json:
        more: dict[str, Any] = {"size": list(config.rollout.height_width)}
        more |= {} if embeddings is None else {"embeddings": asdict(embeddings)}
        rows = {name: _row(result, name, one, fractions, price, (nvlink, network)) for name, one in cards.items()}
        typer.echo(json.dumps(more | _as_data(result, rows, fractions, changes), indent=1))
        return
    if fit is not None:
        yaml = "# change these settings\n" + dump_yaml(nested(changes, {})).rstrip()
        typer.echo((yaml if changes else f"{file} fits {fit:g} GiB without changes") + "\n")
    for line in _lines(config, result, cards, fractions, price, measured is not None, (nvlink, network)):
        typer.echo(line)
    for line in () if embeddings is None else embeddings.lines():
        typer.echo(line)
    if config.run.device == "mps":
        typer.echo("run.device is mps: the memory is a lower bound there, and the times are those of an NVIDIA GPU.")
    if config.rollout.height_width != original.rollout.height_width:
        size_text = named([config.rollout.height_width])
        typer.echo(f"The plan assumes {size_text}, the largest size of the prompts, for all samples.")


def _fractions(path: Path, tflops: float) -> dict[str, float]:
    """Return the measured fraction of the GPU's peak by phase."""
    import json

    from dgpo_core.errors import UserError

    try:
        phases = json.loads(path.read_text(encoding="utf-8"))["phases"]
        reached = {phase: float(phases[phase]["tflops"]) for phase in ("rollout", "optimize")}
        for phase, value in reached.items():
            if not 0 < value < math.inf:
                raise ValueError(f"{value} TFLOP/s in {phase}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--measured: {path} is not an output of `dgpo bench --json`: {error}") from error
    return {phase: value / tflops for phase, value in reached.items()}


def _row(
    plan: Plan, name: str, card: Card, fractions: dict[str, float], price: float | None,
    links: tuple[float | None, float],
) -> dict[str, Any]:  # fmt: skip
    """Return whether the run fits a GPU, the seconds by phase, the communication and the cost.

    links: GB/s within a machine, None for that of the GPU, and between machines.
    """
    from dgpo_lab.planning.traffic import data_of, iteration_seconds, traffic

    seconds = plan.seconds(card.tflops, fractions)
    hour = (card.price if price is None else price) * plan.processes
    found = traffic(plan, name, seconds, *links)
    each = iteration_seconds(found, seconds)
    return {
        "fits": plan.peak <= card.memory * GIB,
        "seconds": seconds,
        "iteration_seconds": each,
        "usd_per_1000_iterations": each / 3.6 * hour,
    } | ({"communication": data_of(found, seconds)} if plan.exchanges else {})


def _as_data(
    plan: Plan, rows: dict[str, dict[str, Any]], fractions: dict[str, float], changes: dict[str, Any]
) -> dict[str, Any]:
    """Convert a plan to JSON data: bytes, FLOPs, seconds, USD."""
    return {
        "processes": plan.processes,
        "machines": plan.machines,
        "shift": plan.shift,
        "precision": plan.precision,
        "held_bytes": dict(plan.held),
        "peak_bytes": dict(plan.peaks),
        "operations": dict(plan.operations),
        "evaluation_operations_per_iteration": plan.evaluation,
        "fractions": fractions,
        "changes": changes,
        "cards": rows,
    }


def _lines(
    config: RunConfig, plan: Plan, cards: dict[str, Card], fractions: dict[str, float], price: float | None,
    measured: bool, links: tuple[float | None, float],
) -> list[str]:  # fmt: skip
    """Format a plan as text. links: see `_row`."""
    from dgpo_lab.planning.traffic import lines_of, traffic

    total = config.rollout.groups * config.rollout.group_size
    explore = config.rollout.explore
    explored = "" if explore is None else f" of {config.rollout.groups * explore.candidates} candidates"
    several = f", on {plan.processes} GPUs" if plan.processes > 1 else ""
    lines = [
        f"{config.run.name}: {total} samples per iteration{explored}{several}",
        f"shift of the noise schedule: {plan.shift}",
        *textwrap.wrap(f"precision: {plan.precision}", 80, subsequent_indent="  "),
        "",
        "permanent memory per GPU, GiB",
    ]
    lines += [f"  {name:<24} {size / GIB:7.2f}" for name, size in plan.held.items() if size]
    lines += ["peak memory per GPU, GiB"]
    lines += [f"  {phase:<24} {size / GIB:7.1f}" for phase, size in plan.peaks.items()]
    lines += ["PFLOP per iteration"]
    lines += [f"  {phase:<24} {count / 1e15:7.2f}" for phase, count in plan.operations.items()]
    if plan.evaluation:
        lines.append(f"  {'evaluation':<24} {plan.evaluation / 1e15:7.2f}   (averaged over iterations)")
    lines += ["", f"{'GPU':<9} {'fits':>5} {'rollout':>9} {'optimize':>9} {'iteration':>10} {'1000 iterations':>16}"]
    for name, card in cards.items():
        row = _row(plan, name, card, fractions, price, links)
        seconds, each = row["seconds"], row["iteration_seconds"]
        lines.append(
            f"{name:<9} {'yes' if row['fits'] else 'no':>5} {seconds['rollout']:>8.1f}s {seconds['optimize']:>8.1f}s "
            f"{each:>9.1f}s {each / 3.6:>8.1f} h {row['usd_per_1000_iterations']:>7,.0f} $"
        )
    if plan.exchanges and len(cards) == 1:
        (name,) = cards
        lines += lines_of(traffic(plan, name, seconds, *links), seconds)
    shares = " and ".join(f"{value:.0%} in {phase}" for phase, value in fractions.items())
    origin = "measured" if measured else "assumed (--fraction, --measured)"
    lines += [
        "",
        f"Time: at {shares} of the GPU's bf16 peak,",
        f"{origin}; without rewards, evaluation and waiting.",
        "Memory: tensors only, without rewards that run on the GPU and without allocator",
        "fragmentation.",
        "On the CPU, the estimate is within 2 % of the miniature's measured peak; it has",
        "not been compared with a measurement on a GPU.",
    ]
    return lines
