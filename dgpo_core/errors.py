"""Exceptions of the project. Their messages state the location, the problem and the allowed values."""

from __future__ import annotations

__all__ = [
    "ContractError",
    "DgpoError",
    "PluginError",
    "ProcessLostError",
    "RenamedError",
    "RewardUnusable",
    "RunStopped",
    "UserError",
]


class DgpoError(Exception):
    """Base class of all exceptions of the project."""


class UserError(DgpoError, ValueError):
    """Invalid user input. The command line prints the message without a traceback and exits with code 2."""


class PluginError(UserError):
    """A plugin is unknown, cannot be loaded, or violates its contract."""


class ContractError(PluginError):
    """A plugin targets another version of the plugin contract (`contracts.version`)."""


class RenamedError(ContractError, ImportError):
    """A plugin imports a name that the contract no longer has. An ImportError too, so that a plugin for several
    versions may catch it."""


class RewardUnusable(UserError):
    """Raised by a reward's `score` or `score_group` to end the command instead of marking the samples as missing: it is
    certain that no sample can ever be scored, for example because a server rejects the key."""


class RunStopped(DgpoError):
    """The run stopped after saving its state; the message gives the reason. Exit code 1."""


class ProcessLostError(RunStopped):
    """Another process of the run exited or timed out. Exit code 3."""
