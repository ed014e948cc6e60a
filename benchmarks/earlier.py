"""`python -m benchmarks.earlier CHECKOUT`: the count of `benchmarks.roofline` on an earlier commit, 67414eb.

That commit's kernels were counted independently, on torch's fake tensors; docs/roofline.md compares. CHECKOUT is a
checkout of it (`git worktree add CHECKOUT 67414eb`). The passes of its code run here, counted by the meter of today.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

__all__ = ["WANTED", "main"]

WANTED = {
    "rollout step": (4162, 394.5), "policy pass": (4391, 68.3), "backward, CPU's autocast rules": (5287, 89.0),
}  # fmt: skip
"""Kernels and ideal milliseconds of the independent count."""
TOLERANCE = 0.02
SAMPLES, STEPS = 8, 2
LAB = Path(__file__).parents[1] / "plugins" / "dgpo-lab" / "src"


def _model(registry: Any) -> tuple[Any, Any]:
    """Return the run and its meta model, of that commit's benchmark of SD3.5-M at 512 x 512."""
    gpu, torch = import_module("benchmarks.gpu"), import_module("torch")
    settings = {"groups": 1, "iterations": 1, "compile": False, "checkpointing": False, "merge": False}
    unset = dict.fromkeys(("members", "checkpoint", "resolution", "micro_batch"))
    arguments = argparse.Namespace(**settings, **unset, attention="auto")
    config = gpu.configuration(gpu.CASES["sd35-512"], arguments, tempfile.gettempdir())
    return config, registry.create("backbone", config.backbone, device=torch.device("meta"))


def _passes() -> Iterator[tuple[str, Any, int]]:
    """Yield names, laps and the number of times that each lap ran, of the earlier commit's code."""
    torch, draws, policies, rollout, types = map(
        import_module, ("torch", "dgpo_core.draws", "dgpo_core.policy", "dgpo_core.rollout", "dgpo_core.types")
    )
    registry = import_module("benchmarks.parts").registry_with_parts()
    meters, shapes = import_module("dgpo_lab.planning.meter"), import_module("dgpo_lab.planning.shapes")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    config, backbone = _model(registry)
    backbone.device = shapes.CUDA
    with meters.Meter("earlier", *backbone.parts().values()) as meter:
        sampler = registry.create("sampler", import_module("dgpo_schemas.base").UseBlock(use="flow-dpmpp"))
        roller = rollout.Roller(
            policies.Policy(backbone, config.objective.ema), sampler, policies.ConditioningCache(backbone),
            resolution=config.rollout.height_width, steps=STEPS, shift=3.0, guidance=config.rollout.guidance,
            micro_batch=None, autocast=lambda: torch.autocast("cuda", torch.bfloat16),
        )  # fmt: skip
        with meter.lap() as lap:
            next(iter(roller.roll_out([types.Prompt("a")], config.rollout.group_size, draws.Draws(0), "policy")))
        yield "rollout step", lap, STEPS
    for device, names in (
        (shapes.CUDA, ("policy pass", "backward, CUDA's autocast rules")),
        (shapes.CPU, ("policy pass, CPU's autocast rules", "backward, CPU's autocast rules")),
    ):
        _, backbone = _model(registry)
        backbone.device = device
        with meters.Meter("earlier", *backbone.parts().values(), device=device) as meter:
            x = torch.empty(SAMPLES, *backbone.latent_shape(*config.rollout.height_width), device=device)
            sigma, rows = torch.empty(SAMPLES, device=device), backbone.encode([""] * SAMPLES)
            with meter.lap() as lap, torch.autocast(device.type, torch.bfloat16):
                velocity = backbone.velocity(x, sigma, rows)
            yield names[0], lap, 1
            loss = velocity.square().flatten(1).mean(1).sum()
            with meter.lap() as lap:
                loss.backward()
            yield names[1], lap, 1


def _compare() -> int:
    """Print the counts; return 1 if one differs by more than `TOLERANCE`."""
    card = import_module("dgpo_lab.planning.cards").CARDS["h200"]
    far = False
    for name, lap, times in _passes():
        milliseconds = sum(card.seconds(kernel) * n for kernel, n in lap.kernels.items()) / times * 1e3
        found, beside = (lap.launches / times, milliseconds), ""
        if name in WANTED:
            beside = "   independent: {:,} kernels, {} ms".format(*WANTED[name])
            far |= any(abs(a / b - 1) > TOLERANCE for a, b in zip(found, WANTED[name], strict=True))
        sys.stdout.write(f"{name:<36} {found[0]:>6,.0f} kernels {found[1]:>7.1f} ms{beside}\n")
    return int(far)


def main() -> int:
    """Start the comparison with the packages of the checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkout", type=Path)
    root = parser.parse_args().checkout.resolve()
    paths = [root, root / "schemas", *sorted(root.glob("plugins/*/src")), LAB]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "-c", f"import runpy, sys; sys.exit(runpy.run_path({__file__!r})['_compare']())"]
    return subprocess.run(command, env=environment, cwd=root, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
