"""`dgpo plan`: what a run will cost, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dgpo_cli.options import Preset

if TYPE_CHECKING:
    from dgpo_lab.planning.cards import Card
    from dgpo_lab.planning.plan import Plan
    from dgpo_schemas.run import RunConfig

__all__ = ["plan"]

GIB = 2**30
FRACTION = 0.4


def plan(
    file: Annotated[Path, typer.Argument(help="The run file (YAML).", metavar="RUN.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: --set rollout.group_size=12.", metavar="KEY=VALUE"),
    ] = None,
    preset: Preset = None,
    card: Annotated[str, typer.Option(help="The card to plan for; `--card all` compares them.")] = "h200",
    processes: Annotated[int, typer.Option(min=1, help="Cards that share the run.")] = 1,
    price: Annotated[float | None, typer.Option(min=0, help="USD an hour of one card; by default a guess.")] = None,
    fraction: Annotated[
        float, typer.Option(min=0.01, max=1, help="Share of the card's peak that the model reaches: an assumption.")
    ] = FRACTION,
    measured: Annotated[
        Path | None, typer.Option(help="What `dgpo bench --json` wrote on the card: its shares instead of --fraction.")
    ] = None,
    fit: Annotated[
        float | None, typer.Option(min=1, help="Make it fit so many GiB: prints the settings to change.", metavar="GIB")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print numbers as JSON.")] = False,
) -> None:
    """Plan a run: peak memory, operations, seconds and money of an iteration, without loading a model.

    The model is run without values: every operation is counted, every tensor's life followed. No card is needed.

    Examples:

        dgpo plan examples/sd35-geneval.yaml --card h100 --processes 8

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
        raise UserError(f"--card: unknown card {card!r}{nearest(card, CARDS)} (known: all, {', '.join(CARDS)})")
    registry = get_registry()
    config = load_run_config(file, overrides or (), registry, preset=preset)
    if measured is not None and card == "all":
        raise UserError("--measured: that is of one card; name it with --card")
    fractions = {"rollout": fraction, "optimize": fraction}
    if measured is not None:
        fractions = _fractions(measured, CARDS[card].tflops)

    from dgpo_lab.planning.fit import at_largest_size, changed, fitting, nested
    from dgpo_lab.planning.plan import Model, make_plan, measure_model

    models: dict[str, Model] = {}

    def planned(one: RunConfig) -> Plan:
        kind = one.backbone.model_dump_json()
        if kind not in models:
            models[kind] = measure_model(one, registry, on_message)
        return make_plan(one, models[kind], registry, processes, on_message)

    def accepts(some: dict[str, Any]) -> bool:
        """Whether the run file can be changed so: a backbone need not have an option that others have."""
        settings = [f"{key}={json.dumps(value)}" for key, value in some.items()]
        try:
            load_run_config(file, [*(overrides or ()), *settings], registry, preset=preset)
        except (ConfigError, UserError):
            return False
        return True

    changes: dict[str, Any] = {}
    with _progress() as on_message, printing_aside():
        drawn, config = config, at_largest_size(config, registry)
        found = planned(config)
        made = None if fit is None else fitting(config, planned, fit * GIB, accepts)
    if fit is not None:
        if made is None:
            raise UserError(
                f"--fit: {fit:g} GiB are not enough whatever micro-batches and gradient_checkpointing are: "
                f"{sum(found.held.values()) / GIB:.1f} GiB are held all the time. backbone.dtype: bfloat16, smaller "
                "text encoders (backbone.options), or a smaller model would help"
            )
        changes, found = made
        config = changed(config, changes)
    cards = CARDS if card == "all" else {card: CARDS[card]}
    if as_json:
        size = {"size": list(config.rollout.height_width)}
        typer.echo(json.dumps(size | _as_data(found, cards, fractions, price, changes), indent=1))
        return
    if fit is not None:
        yaml = "# change these settings\n" + dump_yaml(nested(changes, {})).rstrip()
        typer.echo((yaml if changes else f"{file} fits {fit:g} GiB as it is") + "\n")
    for line in _lines(config, found, cards, fractions, price, measured is not None):
        typer.echo(line)
    if config.rollout.height_width != drawn.rollout.height_width:
        typer.echo(f"All samples are planned as {named([config.rollout.height_width])}, the prompts' largest size.")


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows what is being done, in a line on stderr that goes away: in a terminal, and nowhere else."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status("") as status:
        yield lambda text: status.update(Text(text))


def _fractions(path: Path, tflops: float) -> dict[str, float]:
    """Verb to the share of a card's peak that was measured."""
    import json

    from dgpo_core.errors import UserError

    try:
        said = json.loads(path.read_text(encoding="utf-8"))["phases"]
        return {phase: float(said[phase]["tflops"]) / tflops for phase in ("rollout", "optimize")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--measured: {path} is not what `dgpo bench --json` writes: {error}") from error


def _row(found: Plan, card: Card, fractions: dict[str, float], price: float | None) -> dict[str, Any]:
    """Of one card: whether it fits, seconds by phase, USD."""
    seconds = found.seconds(card.tflops, fractions)
    hour = (card.price if price is None else price) * found.processes
    return {
        "fits": found.peak <= card.memory * GIB,
        "seconds": seconds,
        "usd_per_1000_iterations": sum(seconds.values()) / 3.6 * hour,
    }


def _as_data(
    found: Plan, cards: dict[str, Card], fractions: dict[str, float], price: float | None, changes: dict[str, Any]
) -> dict[str, Any]:
    """For programs: bytes, operations, seconds, USD."""
    return {
        "processes": found.processes,
        "shift": found.shift,
        "held_bytes": dict(found.held),
        "peak_bytes": dict(found.peaks),
        "operations": dict(found.operations),
        "evaluation_operations_per_iteration": found.evaluation,
        "fractions": fractions,
        "changes": changes,
        "cards": {name: _row(found, card, fractions, price) for name, card in cards.items()},
    }


def _lines(
    config: RunConfig, found: Plan, cards: dict[str, Card], fractions: dict[str, float], price: float | None,
    measured: bool,
) -> list[str]:  # fmt: skip
    """For people."""
    total = config.rollout.groups * config.rollout.group_size
    several = f", on {found.processes} cards" if found.processes > 1 else ""
    lines = [
        f"{config.run.name}: {total} samples an iteration{several}",
        f"shift of their times: {found.shift}",
        "",
        "held by each card, GiB",
    ]
    lines += [f"  {name:<24} {size / GIB:7.2f}" for name, size in found.held.items() if size]
    lines += ["peak of each card, GiB"]
    lines += [f"  {phase:<24} {size / GIB:7.1f}" for phase, size in found.peaks.items()]
    lines += ["operations of an iteration, 10^15"]
    lines += [f"  {phase:<24} {count / 1e15:7.2f}" for phase, count in found.operations.items()]
    if found.evaluation:
        lines.append(f"  {'evaluation':<24} {found.evaluation / 1e15:7.2f}   (its share of an iteration)")
    lines += ["", f"{'card':<9} {'fits':>5} {'rollout':>9} {'optimize':>9} {'iteration':>10} {'1000 iterations':>16}"]
    for name, card in cards.items():
        row = _row(found, card, fractions, price)
        seconds, each = row["seconds"], sum(row["seconds"].values())
        lines.append(
            f"{name:<9} {'yes' if row['fits'] else 'no':>5} {seconds['rollout']:>8.1f}s {seconds['optimize']:>8.1f}s "
            f"{each:>9.1f}s {each / 3.6:>8.1f} h {row['usd_per_1000_iterations']:>7,.0f} $"
        )
    split_samples = " and ".join(f"{value:.0%} in {phase}" for phase, value in fractions.items())
    known = "measured" if measured else "assumed (--fraction, --measured)"
    lines += [
        "",
        f"Seconds: {split_samples} of the card's bf16 peak,",
        f"{known}; without rewards, evaluation and waiting.",
        "Memory: what tensors take. Rewards on the card come on top, and what an",
        "allocator loses to fragments. On the CPU the miniature's training peaks within",
        "2 % of it; no card has been measured.",
    ]
    return lines
