"""What dgpo-guest declares."""

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component
from dgpo_schemas.base import Options

__all__ = ["dgpo_backbones", "dgpo_prompt_sources", "dgpo_rewards"]


@hookimpl
def dgpo_backbones() -> Sequence[Component]:
    """A small network, with an adapter of its own."""
    return [Component("guest", "A small network", "dgpo_guest.backbone:GuestBackbone", Options)]


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """One for images and videos."""
    return [Component("guest-brightness", "Mean brightness", "dgpo_guest.things:Brightness", Options)]


@hookimpl
def dgpo_prompt_sources() -> Sequence[Component]:
    """Of different lengths."""
    return [Component("guest-things", "A few things", "dgpo_guest.things:Things", Options)]
