"""python -m tests.fuzz --cases 10000 --seed 0 [--subject prompt-files]"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.fuzzer import Findings, run
from tests.fuzz.subjects import SUBJECTS

parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Give corrupted things to dgpo.")
parser.add_argument(
    "--subject", choices=list(SUBJECTS), action="append", help="what is corrupted; by default everything"
)
parser.add_argument("--cases", type=int, default=5000, help="cases of each subject")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--stop-after", type=int, default=20, help="failures of a subject after which to stop")
arguments = parser.parse_args()
failed = False
for name in arguments.subject or SUBJECTS:
    findings = Findings()
    for number, findings in enumerate(run(SUBJECTS[name], arguments.cases, arguments.seed), 1):
        if number % 500 == 0 or number == arguments.cases:
            sys.stdout.write(f"{name}: {number} of {arguments.cases} cases, {len(findings.failures)} failures\n")
            sys.stdout.flush()
        if len(findings.failures) >= arguments.stop_after:
            break
    for (kind, outcome), count in sorted(findings.counts.items()):
        sys.stdout.write(f"{kind}: {count} {outcome}\n")
    for failure in findings.failures:
        sys.stdout.write("\n" + failure + "\n")
    failed |= bool(findings.failures)
sys.exit(failed)
