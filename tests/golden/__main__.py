"""python -m tests.golden --against COMMIT"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

from tests.golden.comparison import compare_runs
from tests.golden.runs import RUNS

parser = argparse.ArgumentParser(
    prog="python -m tests.golden",
    description="Make short runs with the sources of a commit and with the working tree, and compare all that they "
    "write byte for byte.",
)
parser.add_argument("--against", required=True, metavar="COMMIT", help="what the working tree is compared with")
parser.add_argument(
    "--only",
    nargs="+",
    choices=[run.name for run in RUNS],
    metavar="NAME",
    help="these runs; by default all: %(choices)s",
)
parser.add_argument("--keep", type=Path, metavar="DIR", help="a new directory in which everything is left")
arguments = parser.parse_args()
with contextlib.ExitStack() as stack:
    directory = arguments.keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
    chosen = [run for run in RUNS if arguments.only is None or run.name in arguments.only]
    try:
        same = compare_runs(arguments.against, chosen, directory.absolute(), sys.stdout)
    except ValueError as error:
        parser.error(str(error))
sys.exit(not same)
