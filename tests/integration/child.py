"""`dgpo`, with the toy parts, as a process that `launch`, torchrun or accelerate starts.

Without a number as its first argument it is the command line itself; with one, a child of the process of that number.
DGPO_TEST_END="rank iteration deed" ends that rank after so many iterations: "kill", or "raise".
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from dgpo_cli import child
from dgpo_cli.main import main
from dgpo_core.plugins.registry import get_registry
from dgpo_core.training.optimizer import Optimizer
from dgpo_kit.toy import plugin

get_registry().register(plugin, distribution="toy")
rank, iteration, deed = os.environ.get("DGPO_TEST_END", "-1 0 none").split()
if os.environ.get("RANK", "0") == rank:
    step, steps = Optimizer.step, iter(range(1000))

    def ending(self: Optimizer, *arguments: Any, **options: Any) -> Any:
        if next(steps) == int(iteration):
            if deed == "raise":
                raise RuntimeError("a bug of this process alone")
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *arguments, **options)

    Optimizer.step = ending  # type: ignore[method-assign]

if sys.argv[1].isdecimal():
    child.main(sys.argv[1:])
else:
    main(sys.argv[1:])
