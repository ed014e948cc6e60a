"""Errors that carry what a person needs: where, what was wrong, what is allowed."""

from __future__ import annotations

__all__ = ["ContractError", "DgpoError", "PluginError", "ProcessLostError", "RenamedError", "RunStopped", "UserError"]


class DgpoError(Exception):
    """Base of the project's own errors."""


class UserError(DgpoError, ValueError):
    """A mistake in what a person gave us. The command line prints the message alone and exits with 2."""


class PluginError(UserError):
    """A plugin that cannot be loaded, is not known, or breaks its contract."""


class ContractError(PluginError):
    """A plugin that was made for another version of the contract (`contracts.version`)."""


class RenamedError(ContractError, ImportError):
    """A plugin imports a name that the contract no longer has. An ImportError too, so that a plugin for several
    versions may catch it."""


class RunStopped(DgpoError):
    """The run stopped itself, with its state saved; the message says why. Exit code 1."""


class ProcessLostError(RunStopped):
    """Another process of the run ended, or did not answer in time. Exit code 3."""
