"""Communication of a plan: closed forms against rings that are simulated step by step, and the exchanges of an
iteration against those of real runs of several processes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import plugin
from dgpo_lab.planning.communication import (
    BETWEEN_LATENCY,
    HOST_BANDWIDTH,
    HOST_LATENCY,
    REACHED,
    WITHIN_LATENCY,
    Cluster,
    Exchange,
    communicate,
)
from dgpo_lab.planning.exchanges import balance_of
from dgpo_lab.planning.plan import Plan, make_plan, measure_model
from dgpo_lab.planning.traffic import check_machines, data_of, iteration_seconds, lines_of, traffic
from dgpo_sd3.testing import make_tiny_checkpoint
from tests.integration.test_processes import PATIENT, Driver, Run, assert_all_well

WITHIN, BETWEEN = 400e9, 50e9
SHAPES = [(1, 1), (2, 1), (4, 1), (4, 2), (6, 3), (8, 8), (16, 2), (64, 8), (512, 64)]


def cluster(processes: int, machines: int) -> Cluster:
    return Cluster(processes, machines, WITHIN, BETWEEN)


# -- closed forms -----------------------------------------------------------------------------------------------------


def simulated(ranks: int, machine_of: list[int], size: float, *, reduce: bool, gather: bool) -> float:
    """Seconds of a ring in which rank r sends a part to rank r + 1 in each step, all at once. Checks that in the end
    each rank has what it should: the sum of all parts (reduce), all parts (gather)."""
    sums = [[1] * ranks for _ in range(ranks)]  # how many ranks' values are in part p of rank r
    seconds = 0.0
    steps = ([("reduce", s) for s in range(ranks - 1)] if reduce else []) + (
        [("gather", s) for s in range(ranks - 1)] if gather else []
    )
    if not reduce:
        sums = [[int(r == p) * ranks for p in range(ranks)] for r in range(ranks)]
    for kind, step in steps:
        offset = 0 if kind == "reduce" or not reduce else 1
        sent = [(r, (r - step + offset) % ranks) for r in range(ranks)]
        values = [sums[r][part] for r, part in sent]
        for (r, part), value in zip(sent, values, strict=True):
            to = (r + 1) % ranks
            sums[to][part] = sums[to][part] + value if kind == "reduce" else value
        hops = [machine_of[r] != machine_of[(r + 1) % ranks] for r in range(ranks)]
        times = [
            (BETWEEN_LATENCY if any(hops) else WITHIN_LATENCY)
            + size / ranks / (REACHED * (min(WITHIN, BETWEEN) if hop else WITHIN))
            for hop in hops
        ]
        seconds += max(times)  # the next step needs what arrives in this one
    if gather:
        assert all(value == ranks for row in sums for value in row)
    elif reduce:
        assert all(sums[r][(r + 1) % ranks] == ranks for r in range(ranks))
    return seconds


@pytest.mark.parametrize(("processes", "machines"), SHAPES[:-1])
@pytest.mark.parametrize("size", [8.0, 1e6, 1e9])
def test_rings(processes: int, machines: int, size: float) -> None:
    made = cluster(processes, machines)
    machine_of = [r // made.local for r in range(processes)]
    assert made.ring(size) == pytest.approx(simulated(processes, machine_of, size, reduce=True, gather=True))
    assert made.all_gather(size) == pytest.approx(simulated(processes, machine_of, size, reduce=False, gather=True))
    assert made.all_gather(size) == pytest.approx(simulated(processes, machine_of, size, reduce=True, gather=False))
    inside = simulated(made.local, [0] * made.local, size, reduce=False, gather=True)
    assert made.all_gather(size, "machine") == pytest.approx(inside)


@pytest.mark.parametrize(("processes", "machines"), SHAPES[:-1])
@pytest.mark.parametrize("size", [8.0, 1e6, 1e9])
def test_hierarchy(processes: int, machines: int, size: float) -> None:
    """A ring within each machine, one of each GPU's part between machines, all of which share a machine's port."""
    made = cluster(processes, machines)
    one = [0] * made.local
    inside = simulated(made.local, one, size, reduce=True, gather=False)
    inside += simulated(made.local, one, size, reduce=False, gather=True)
    of_port = simulated(machines, list(range(machines)), size, reduce=True, gather=True)
    if machines > 1:
        assert made.hierarchy(size) == pytest.approx(inside + of_port)
        assert made.all_reduce(size / made.local, "between") == pytest.approx(of_port)
    assert made.all_reduce(size) == min(made.ring(size), made.hierarchy(size))


def test_limits() -> None:
    """Known ones: nothing alone, twice the message over the link for many ranks, the port of a machine for many."""
    assert cluster(1, 1).all_reduce(1e9) == cluster(1, 1).all_gather(1e9) == cluster(1, 1).host(1e9) == 0
    large = 1e13
    assert cluster(512, 1).all_reduce(large) == pytest.approx(2 * large / (WITHIN * REACHED), rel=0.01)
    assert cluster(512, 64).ring(large) == pytest.approx(2 * large / (BETWEEN * REACHED), rel=0.01)
    assert cluster(512, 64).hierarchy(large) < 1.2 * cluster(512, 64).ring(large)
    assert cluster(512, 64).hierarchy(8) < cluster(512, 64).ring(8), "fewer steps"
    assert cluster(8, 2).host(1000) == pytest.approx(14 * HOST_LATENCY + 7 / 8 * 1000 / HOST_BANDWIDTH)


def test_what_computing_hides() -> None:
    made = cluster(8, 1)
    gathers = Exchange("weights", "all_gather", 10**9, 100, phase="rollout")
    sums = Exchange("gradients", "all_reduce", 10**8, 2)
    seconds = 100 * made.all_gather(1e9)
    plain = 2 * made.all_reduce(1e8)
    for computing, exposed in ((10 * seconds, 0.1 * seconds), (0.5 * seconds, 0.5 * seconds), (0.0, seconds)):
        found = communicate(made, [gathers, sums], {"rollout": computing}, 1.0, first=0.1)
        assert found.totals == pytest.approx({"weights": seconds, "gradients": plain})
        assert found.exposed == pytest.approx({"weights": exposed, "gradients": plain})
        assert found.efficiency(2.0) == pytest.approx(2 / (2 + exposed + plain))


def test_a_rank_with_more_samples_is_waited_for() -> None:
    found = communicate(cluster(8, 1), [], {}, 0.5)
    assert found.efficiency(3.0) == 0.5
    assert iteration_seconds(found, {"rollout": 1.0, "optimize": 2.0}) == 6.0


# -- the exchanges of an iteration ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything() -> Registry:
    made = Registry()
    made.register(plugin, distribution="toy")
    return made


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("sd3") / "tiny")


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    made = Driver(
        "dgpo_core.distributed.sharding", "dgpo_sd3.backbone", "dgpo_core.lora", "diffusers:StableDiffusion3Pipeline",
        "diffusers:SD3Transformer2DModel", "diffusers:AutoencoderKL", "diffusers:FlowMatchEulerDiscreteScheduler",
        "transformers:CLIPTextModelWithProjection", "transformers:CLIPTokenizer", "peft:LoraConfig",
    )  # fmt: skip
    yield made
    made.close()


def run_of(
    directory: Path, name: str, checkpoint: Path, train: str, shard: bool | str, iterations: int, passes: int = 1
) -> Run:
    """Two micro-batches of each group. Of three groups, one is split with two or four processes; sharded runs have
    four, because ranks with fewer samples than others would run dummy passes, which a plan does not count."""
    backbone: dict[str, Any] = {"use": "sd3", "checkpoint": str(checkpoint), "train": train}
    if train == "lora":
        backbone["lora"] = {"rank": 4, "alpha": 8}
    return Run(
        directory, name, backbone=backbone,
        run={"name": name, "iterations": iterations, "process_timeout": PATIENT, "shard": shard},
        rollout={"steps": 2, "group_size": 3, "groups": 4 if shard else 3, "micro_batch": 2, "resolution": 16,
                 "guidance": 1.5},
        optimizer={"learning_rate": 1e-3, "epsilon": 1e-3, "micro_batch": 2, "passes": passes},
        checkpoints={"every": 100},
        evaluation={"every": 0, "at_start": False, "prompts": 2, "samples_per_prompt": 1, "many_step": None},
    )  # fmt: skip


def counted(driver: Driver, run: Run, count: int, machines: int) -> Counter[str]:
    """The collectives of the main process, as "KIND PLACE BYTES", and "meet" for each meeting that ranks with GPUs
    would have in addition."""
    ended = driver.train(run, count, machines=machines)
    assert_all_well(ended)
    counts, form = ended[0]["counts"], re.compile(r"\w+ (host|device|\d ranks) \d+|meet")
    return Counter({key: number for key, number in counts.items() if form.fullmatch(key)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "machines", "train", "shard", "passes"),
    [(2, 1, "lora", False, 1), (4, 1, "lora", False, 2), (2, 1, "lora", True, 1), (2, 1, "full", True, 2),
     (4, 2, "full", "machine", 2), (4, 2, "lora", "machine", 1)],
)  # fmt: skip
def test_exchanges_of_a_real_iteration(
    count: int, machines: int, train: str, shard: bool | str, passes: int, driver: Driver, everything: Registry,
    checkpoint: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """The third and fourth iteration of a run, without its start and end. In the first two the fast average is still
    the policy, which saves passes."""
    long, short = (run_of(tmp_path, f"of-{n}", checkpoint, train, shard, n, passes) for n in (4, 2))
    two, start = (counted(driver, run, count, machines) for run in (long, short))
    two.subtract(start)
    meets = two.pop("meet")
    assert all(number % 2 == 0 for key, number in two.items() if "host" not in key), two
    found = Counter({key: number // 2 for key, number in two.items() if number and "host" not in key})
    config = load_run_config(long.file, (), everything)
    plan = make_plan(config, measure_model(config, everything), everything, count, machines=machines)
    expected: Counter[str] = Counter()
    local = count // machines
    places = {"all": "device", "machine": f"{local} ranks", "between": f"{machines} ranks"}
    for exchange in plan.exchanges:
        if exchange.kind in ("meeting", "host_gather"):
            continue
        kind, place = exchange.kind, places[exchange.scope]
        if exchange.name == "thumbnails":  # on the CPU they are gathered on the host
            continue
        expected[f"{kind} {place} {exchange.size}"] += int(exchange.count)
    assert found == expected
    assert found.total() > 0
    on_host = {key: number / 2 for key, number in two.items() if "host" in key and number}
    meetings = sum(number for key, number in on_host.items() if key.startswith("all_reduce"))
    gathers = sum(number for key, number in on_host.items() if key.startswith("list"))
    planned = {kind: sum(e.count for e in plan.exchanges if e.kind == kind) for kind in ("meeting", "host_gather")}
    gpus = sum(e.count for e in plan.exchanges if e.name.startswith("before "))
    assert meets / 2 == gpus - 1, "the thumbnails are not on a GPU here"
    assert meetings == pytest.approx(planned["meeting"] - gpus, abs=2 if shard else 0)
    assert gathers == 2 * planned["host_gather"] + 1, "sizes, then JSON; and the thumbnails"


def test_a_split_group_meets(everything: Registry, checkpoint: Path, tmp_path: Path) -> None:
    config = load_run_config(run_of(tmp_path, "run", checkpoint, "lora", False, 1).file, (), everything)
    model = measure_model(config, everything)
    names = {}
    for processes in (1, 2, 3, 9, 512):
        plan = make_plan(config, model, everything, processes)
        names[processes] = [exchange.name for exchange in plan.exchanges]
        assert plan.balance == balance_of(config, processes)
    assert names[1] == []
    assert "statistics of groups" in names[2]
    assert "statistics of groups" not in names[3], "whole groups"
    assert "statistics of groups" in names[9]
    assert balance_of(config, 9) == 1.0
    assert balance_of(config, 2) == pytest.approx(4.5 / 5)
    assert balance_of(config, 512) == pytest.approx(9 / 512)


def test_gpus_meet_before_what_nccl_would_not_report(everything: Registry, checkpoint: Path, tmp_path: Path) -> None:
    """Two micro-batches of two and of one member in each of 4 groups; a pass of the reference and one with gradient,
    which has a backward pass too; guidance shares a pass."""

    def found(shard: bool) -> dict[str, tuple[float, str | None]]:
        config = load_run_config(run_of(tmp_path, f"meet-{shard}", checkpoint, "lora", shard, 1).file, (), everything)
        plan = make_plan(config, measure_model(config, everything), everything, 2)
        weights = {e.phase: e.count for e in plan.exchanges if e.name.startswith("weights")}
        made = {e.name: (e.count, e.phase) for e in plan.exchanges if e.name.startswith("before")}
        for phase, gathers in weights.items():  # two in a pass with gradient: as many as meetings
            assert made[f"before passes in {phase}"] == (gathers, phase)
        assert weights.keys() == ({"rollout", "optimize"} if shard else set())
        return made

    whole, sharded = found(False), found(True)
    assert whole == {"before reductions": (3, None)}, "gradients, statistics of the split group, thumbnails"
    assert sharded["before reductions"] == (2, None), "gradients, thumbnails"
    assert len(sharded) == 3


def test_meetings_before_passes_are_hidden_by_long_ones() -> None:
    made = Cluster(512, 64, WITHIN, BETWEEN)
    each = 2 * 511 * HOST_LATENCY
    meetings = Exchange("before passes in rollout", "meeting", 8, 100, phase="rollout")
    plan = replace(some_plan(), processes=512, machines=64, exchanges=[*some_plan().exchanges, meetings])
    for seconds, exposed in ((1000.0, 0.0), (1.0, 100 * each - 1.0)):
        found = communicate(made, [meetings], {"rollout": seconds}, 1.0)
        assert found.exposed["before passes in rollout"] == pytest.approx(exposed, abs=1e-3)
    with_them, without = (
        traffic(one, "h100", {"rollout": 1e4, "optimize": 1.0}, None, 50.0)
        for one in (plan, replace(plan, exchanges=some_plan().exchanges))
    )
    assert with_them.exposed["weights in rollout"] == without.exposed["weights in rollout"], "the same first blocks"


def test_a_run_with_thousands_of_samples(everything: Registry, checkpoint: Path, tmp_path: Path) -> None:
    """Tensors of so many numbers have no values on the device; which members are trained on must be known."""
    file = run_of(tmp_path, "run", checkpoint, "lora", False, 1).file
    few, many = (load_run_config(file, [f"rollout.groups={n}"], everything) for n in (4, 400))
    model = measure_model(few, everything)
    one, large = (make_plan(config, model, everything, count) for config, count in ((few, 4), (many, 400)))
    assert large.operations["optimize"] == pytest.approx(100 * one.operations["optimize"])
    assert large.balance == one.balance == 1.0


# -- what is shown ----------------------------------------------------------------------------------------------------


def some_plan() -> Plan:
    exchanges = [
        Exchange("gradients", "all_reduce", 150_000_000, 1), Exchange("whether to stop", "meeting", 8, 4),
        Exchange("weights in rollout", "all_gather", 10**8, 240, phase="rollout"),
    ]  # fmt: skip
    return Plan(64, {}, {"optimize": 1.0}, {"rollout": 1e18, "optimize": 1e18}, 0.0, "", "", 8, exchanges, 0.9)


def test_lines_and_data_agree_with_the_sums() -> None:
    plan, seconds = some_plan(), {"rollout": 20.0, "optimize": 30.0}
    found = traffic(plan, "h100", seconds, None, 50.0)
    assert found.cluster == Cluster(64, 8, 450e9, 50e9)
    data = data_of(found, seconds)
    assert data["exchanges"]["weights in rollout"]["bytes"] == 240 * 10**8
    assert data["exposed_seconds"] == pytest.approx(sum(e["exposed_seconds"] for e in data["exchanges"].values()))
    assert data["efficiency"] == pytest.approx(50 / (50 / 0.9 + data["exposed_seconds"]))
    json.dumps(data)
    lines = lines_of(found, seconds)
    assert max(map(len, lines)) <= 80
    assert any("8 machines, 450 GB/s within, 50 GB/s between" in line for line in lines)
    assert any(line.split()[:2] == ["gradients", "1"] for line in lines)
    assert any(f"{data['efficiency']:.1%} of an iteration" in line for line in lines)
    slower = traffic(replace(plan, machines=1), "h100", seconds, 10.0, 50.0)
    assert "10 GB/s within" in " ".join(lines_of(slower, seconds))


def test_machines_that_do_not_divide() -> None:
    check_machines(64, 8, True)
    check_machines(8, 8, True)
    with pytest.raises(UserError, match=r"--machines: 10 processes are not divisible by 4 machines.*--processes 8"):
        check_machines(10, 4, False)
    with pytest.raises(UserError, match=r"run\.shard: machine needs several processes per machine"):
        check_machines(8, 8, "machine")
