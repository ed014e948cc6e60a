"""python -m tests.fuzz --cases 5000 --seed 0"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.fuzzer import Findings, run

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Give spoilt files to dgpo.")
parser.add_argument("--cases", type=int, default=5000)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--stop-after", type=int, default=20, help="failures after which to stop")
arguments = parser.parse_args()
findings = Findings()
for number, findings in enumerate(run(arguments.cases, arguments.seed), 1):
    if number % 500 == 0 or number == arguments.cases:
        sys.stdout.write(f"{number} of {arguments.cases} cases, {len(findings.failures)} failures\n")
        sys.stdout.flush()
    if len(findings.failures) >= arguments.stop_after:
        break
for (kind, outcome), count in sorted(findings.counts.items()):
    sys.stdout.write(f"{kind}: {count} {outcome}\n")
for failure in findings.failures:
    sys.stdout.write("\n" + failure + "\n")
sys.exit(1 if findings.failures else 0)
