"""python -m tests.faults --kills 300 --seed 0 --processes 1"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.faults.attacks import ATTACKS, attack_service
from tests.faults.damage import cut, damage_at_random, flip
from tests.faults.kills import Findings, kill_at_random
from tests.faults.memory import growth

parser = argparse.ArgumentParser(prog="python -m tests.faults", description="Do to runs what fate may do to them.")
parser.add_argument("--kills", type=int, default=300, help="kills at random moments")
parser.add_argument("--processes", type=int, default=1, help="processes of each run, one of which is killed")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--damage", type=int, metavar="BITS", help="instead: flipped bits, and a fifth as many lost ends")
parser.add_argument("--memory", type=int, metavar="ITERATIONS", help="instead: how memory grows over a run")
parser.add_argument(
    "--service", type=float, metavar="SECONDS", help="instead: attack a reward service in every way, each for so long"
)
parser.add_argument("--attack", choices=ATTACKS, action="append", help="only this one; may be repeated")
arguments = parser.parse_args()
if arguments.service:
    sys.exit(attack_service(arguments.service, arguments.attack or ATTACKS, arguments.seed, sys.stdout.write))

with tempfile.TemporaryDirectory() as directory:
    if arguments.memory:
        first, last = growth(Path(directory), arguments.memory)
        sys.stdout.write(
            f"resident memory after {arguments.memory // 5} iterations: {first / 2**20:.1f} MiB, after "
            f"{arguments.memory}: {last / 2**20:.1f} MiB, {last / first - 1:+.2%}\n"
        )
        sys.exit(last > 1.01 * first)
    if arguments.damage:
        hows = [flip] * arguments.damage + [cut] * (arguments.damage // 5)
        *_, damaged = damage_at_random(hows, arguments.seed, Path(directory))
        sys.stdout.write(f"{damaged.table()}\n{len(damaged.failures)} taken silently, or refused without a place\n")
        sys.stdout.write("".join(f"{failure}\n" for failure in damaged.failures))
        sys.exit(bool(damaged.failures))
    found = Findings()
    for found in kill_at_random(arguments.kills, arguments.seed, Path(directory), arguments.processes):
        if found.runs % 10 == 0:
            sys.stdout.write(f"{found.kills.total()} kills, {found.runs} runs, {len(found.failures)} failures\n")
            sys.stdout.flush()
sys.stdout.write(f"{found.kills.total()} kills in {found.runs} runs, {len(found.failures)} failures\n")
for moment, count in found.kills.most_common():
    sys.stdout.write(f"  {count:4} at {moment}\n")
for failure in found.failures:
    sys.stdout.write(failure + "\n")
sys.exit(bool(found.failures))
