"""What dgpo-guest declares."""

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Part
from dgpo_schemas.base import Options

__all__ = ["dgpo_backbones", "dgpo_prompt_sources", "dgpo_rewards"]


@hookimpl
def dgpo_backbones() -> Sequence[Part]:
    """A small network, with an adapter of its own."""
    return [Part("guest", "A small network", "dgpo_guest.backbone:GuestBackbone", Options)]


@hookimpl
def dgpo_rewards() -> Sequence[Part]:
    """One for pictures and videos."""
    return [Part("guest-brightness", "Mean brightness", "dgpo_guest.parts:Brightness", Options)]


@hookimpl
def dgpo_prompt_sources() -> Sequence[Part]:
    """Of different lengths."""
    return [Part("guest-things", "A few things", "dgpo_guest.parts:Things", Options)]
