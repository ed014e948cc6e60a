"""Media kinds (image or video), and checks that a reward supports the kind that the backbone generates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING, Literal

from dgpo_core.errors import PluginError, UserError

if TYPE_CHECKING:
    from dgpo_core.contracts import RewardBase
    from dgpo_core.plugins.registry import Registry
    from dgpo_schemas.sections.backbone import BackboneSection
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["Kind", "adapter", "check_range", "check_reward", "one_of", "plural"]

Kind = Literal["image", "video"]


def plural(kinds: Iterable[Kind]) -> str:
    """Return kinds for messages: "images", "videos" or "images and videos"."""
    return " and ".join(f"{kind}s" for kind in sorted(kinds))


def one_of(kind: Kind) -> str:
    """Return a kind for messages: "an image" or "a video"."""
    return "an image" if kind == "image" else "a video"


def adapter(registry: Registry, made: Kind, scored: Set[Kind]) -> str | None:
    """Return an installed reward that adapts media of the kind `made` to a wrapped reward for one of `scored`."""
    adapts = (
        (name, one.component.adapts) for name, one in registry.components("reward").items() if one.component.adapts
    )
    return next((name for name, (shown, inner) in adapts if shown == made and inner in scored), None)


def check_range(reward: RewardBase, use: str, where: str) -> None:
    """Raise PluginError, naming the key in the run file, unless a reward declares a valid range."""
    declared = getattr(reward, "range", None)
    try:
        low, high = (float(bound) for bound in declared or ())
        sound = low < high  # a comparison with nan is false
    except (TypeError, ValueError, OverflowError):
        sound = False
    if not sound:
        raise PluginError(
            f"{where}.use: the reward {use} declares the range {declared!r}; a range must be two numbers, the minimum "
            "and a larger maximum (infinite if there is no bound)"
        )


def check_reward(
    reward: RewardBase, block: RewardBlock, where: str, backbone: BackboneSection, registry: Registry
) -> None:
    """Raise UserError, naming the key and a fix, unless a reward supports the media that the backbone generates.

    where: the block's key in the run file, such as `rewards.0`. Reads the kind of media from the backbone's class,
    without loading weights.
    """
    _check_declarations(reward, block, where)
    made: Kind = registry.implementation(registry.find("backbone", backbone.use)).media
    if made in reward.media:
        return
    advice = f"choose a reward that scores {made}s"
    if shows := adapter(registry, made, reward.media):
        wrapped = f"{{use: {shows}, options: {{reward: {{use: {block.use}, ...}}}}}}"
        advice = f"score single frames with {wrapped}" + (", also in the file of its service" if block.service else "")
    raise UserError(
        f"{where}.use: {block.use} scores {plural(reward.media)}, but the backbone {backbone.use} generates {made}s; "
        f"{advice}"
    )


def _check_declarations(reward: RewardBase, block: RewardBlock, where: str) -> None:
    """Raise PluginError unless a reward's declared attributes have the types of the contract."""
    check_range(reward, block.use, where)
    media = reward.media
    sound = {
        f"media = {media!r}; it must be a set of 'image' and 'video'": isinstance(media, Set | Sequence)
        and bool(media)
        and all(one in ("image", "video") for one in media),
        f"concurrency = {reward.concurrency!r}; it must be an integer": isinstance(reward.concurrency, int),
        f"group_by = {reward.group_by!r}; it must be a metadata key or None": isinstance(reward.group_by, str | None),
    }
    for problem, valid in sound.items():
        if not valid:
            raise PluginError(f"{where}.use: the reward {block.use} declares {problem}")
