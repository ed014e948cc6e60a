"""Loops for tests of taking turns: sides that make pretend passes, in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.pace import Pace
from benchmarks.peers.work import Work

__all__ = ["Network", "drive"]


class Network(torch.nn.Module):
    """Takes what a transformer of SD3 takes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, *, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor, **more: Any) -> Any:
        """Return the latents, scaled."""
        return (hidden_states * self.scale,)


def drive(path: Path | None, work: Work, checkpoint: Path, directory: Path, pace: Pace, device: torch.device) -> None:
    """Iterate as a trainer does. A path says what goes wrong: "fails" in the second iteration, "other" inputs."""
    network = Network()
    pace.watch(network)
    kind = "" if path is None else path.name
    x, text = torch.zeros(2, 4, 2, 2), torch.zeros(2, 5 if kind == "other" else 3, 8)
    done = 0
    while True:
        pace.iteration()
        done += 1
        if kind == "fails" and done == 2:
            raise ValueError("no more\nand a second line")
        with (directory / "turns").open("a") as file:
            file.write(f"{kind}\n")
        network.eval()
        with torch.no_grad():
            for _ in range(work.steps):
                network(hidden_states=x, encoder_hidden_states=text)
        network.train()
        with torch.no_grad():
            network(hidden_states=x, encoder_hidden_states=text)
        network(hidden_states=x, encoder_hidden_states=text)[0].sum().backward()
