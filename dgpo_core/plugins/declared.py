"""What plugins have declared, with the distribution that each comes from."""

from __future__ import annotations

from dataclasses import dataclass

from dgpo_core.contracts import version as contract_version
from dgpo_core.errors import ContractError
from dgpo_core.hookspecs import Command, Part

__all__ = ["BrokenPlugin", "RegisteredCommand", "RegisteredPart", "check_declared", "noun_of"]

NOUNS = {"timesteps": "timestep policy", "prompts": "prompt source"}
"""What messages call a kind, where its key in a run file reads badly."""


def noun_of(kind: str) -> str:
    """What messages call a part of a kind."""
    return NOUNS.get(kind, kind)


@dataclass(frozen=True, slots=True)
class RegisteredPart:
    """A declared part and where it came from. contract: the version of the contract that its plugin declares."""

    part: Part
    kind: str
    distribution: str
    version: str
    contract: int | None = None

    def __str__(self) -> str:
        return f"{noun_of(self.kind)} {self.part.name} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class RegisteredCommand:
    """A declared command and where it came from."""

    command: Command
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"command {self.command.name} of {self.distribution} {self.version}"


@dataclass(frozen=True, slots=True)
class BrokenPlugin:
    """A plugin that was set aside, and why."""

    distribution: str
    entry_point: str
    reason: str

    def __str__(self) -> str:
        return f"{self.distribution} (entry point {self.entry_point}): {self.reason}"


def check_declared(registered: RegisteredPart) -> None:
    """Raise ContractError for a part whose plugin says that it was made for another version of the contract."""
    if registered.contract not in (None, contract_version.VERSION):
        raise ContractError(f"{registered}: {contract_version.why_not(registered.contract)}")
