"""What a new run may be made of here: installed models and rewards, their examples and presets, and the defaults."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from dgpo_cli.new_run.examples import Example, examples, scored
from dgpo_core.config.presets import presets_of
from dgpo_core.errors import PluginError, UserError
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.base import Options
from dgpo_schemas.problems import nearest

__all__ = ["MINIATURE", "Choices"]

MINIATURE = "miniature"
"""The model that stands for the small ones that come with plugins."""
GENERAL = "geneval"
"""Prompt source for rewards that accept any prompt, if the user has no file: objects, numbers, colors, positions."""
MEMORY = re.compile(r"([0-9]{1,5}(?:\.[0-9]+)?) *(?:g|gb|gib)?", re.IGNORECASE)


class Choices:
    """What is installed, and what fits together."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.examples: Sequence[Example] = examples(registry)

    @property
    def models(self) -> dict[str, str]:
        """Models by name, with a summary: the miniature, and all backbones."""
        tiny = any(one.is_miniature for one in self.examples)
        first = {MINIATURE: "Tiny models that come with dgpo and train on a CPU in minutes"} if tiny else {}
        return first | {name: one.component.summary for name, one in self.registry.components("backbone").items()}

    @property
    def rewards(self) -> dict[str, str]:
        """Rewards by name, with a summary."""
        return {name: one.component.summary for name, one in self.registry.components("reward").items()}

    @property
    def sources(self) -> dict[str, str]:
        """Prompt sources by name, with a summary."""
        return {name: one.component.summary for name, one in self.registry.components("prompts").items()}

    def is_miniature(self, model: str) -> bool:
        """Return whether a model's name stands for the small models."""
        return model == MINIATURE and MINIATURE not in self.registry.components("backbone")

    def check_model(self, model: str) -> None:
        """Raise UserError for a model that is not installed."""
        if model not in self.models:
            try:
                self.registry.find("backbone", model)
            except PluginError as error:
                if "it comes with" in str(error):  # what to install
                    raise UserError(f"--model: {error}") from None
            known = ", ".join(self.models)
            raise UserError(
                f"--model: unknown model {model!r}{nearest(model.casefold(), self.models)} (models: {known})"
            )

    def check_reward(self, reward: str) -> None:
        """Raise UserError for a reward that is not installed."""
        try:
            self.registry.find("reward", reward)
        except PluginError as error:
            raise UserError(f"--reward: {error}") from None

    def check_prompts(self, prompts: str, option: str = "--prompts") -> None:
        """Raise UserError unless these are a file or a prompt source."""
        if prompts not in self.sources and not Path(prompts).expanduser().is_file():
            raise UserError(
                f"{option} {prompts}: no such file, and no prompt source of this name{nearest(prompts, self.sources)} "
                f"(sources: {', '.join(self.sources) or 'none'})"
            )

    def of_model(self, model: str) -> list[Example]:
        """Return the examples of a model, the most typical one first."""
        if self.is_miniature(model):
            return [one for one in self.examples if one.is_miniature]
        return [one for one in self.examples if one.backbone == model and not one.is_miniature]

    def base(self, model: str, reward: str) -> Example | None:
        """Return the example whose settings are nearest: of this model, if possible with this reward, or with one of
        the same distribution, which measures something similar. None if the model has no example."""
        found = self.of_model(model)
        owner = self._owner(reward)
        same = [one for one in found if one.rewards(self.registry) == [reward]]
        similar = [one for one in found if owner and self._owner(one.rewards(self.registry)[0]) == owner]
        return next(iter([*same, *similar, *found]), None)

    def default_model(self) -> str | None:
        """Return the miniature if it is installed."""
        return MINIATURE if MINIATURE in self.models else None

    def default_weights(self, model: str) -> str | None:
        """Return the checkpoint of the model's examples."""
        found = self.of_model(model)
        return str(found[0].data["backbone"]["checkpoint"]) if found else None

    def default_reward(self, model: str) -> str | None:
        """Return the reward of the model's examples that most examples have; the first one's of the miniature."""
        found = [one.rewards(self.registry)[0] for one in self.of_model(model)]
        usual = Counter(one.rewards(self.registry)[0] for one in self.examples if not one.is_miniature)
        return (found[0] if self.is_miniature(model) else max(found, key=lambda one: usual[one])) if found else None

    def default_prompts(self, model: str, reward: str) -> Any:
        """Return the section `prompts` of the base or of an example with this reward, if its prompts are here, or
        general prompts; None if the user has to name a file. The section is a dict."""
        base = self.base(model, reward)
        suits = base is not None and (self.is_miniature(model) or base.rewards(self.registry) == [reward])
        if base is not None and suits and self._are_here(base.data["prompts"]):
            return deepcopy(base.data["prompts"])
        if base is not None and str(base.data["prompts"]["train"]).endswith(".jsonl"):
            return None  # a model that requires media
        for one in self._pool(model):
            section = one.data["prompts"]
            generated = isinstance(section["train"], dict) and self._are_here(section)
            if generated and one.rewards(self.registry) == [reward]:
                return deepcopy(section)
        return {"train": {"use": GENERAL}, "heldout": {"use": GENERAL}} if GENERAL in self.sources else None

    def reward_block(self, model: str, reward: str) -> dict[str, Any]:
        """Return a reward with the options that an example gives to it, or to another one with the same options."""
        blocks = [block for one in self._pool(model) for block in _blocks(one)]
        for block in blocks:
            if block.get("use") == reward:
                return deepcopy(block)
        wanted = self._options(reward)
        for block in blocks:
            if block.get("options") and wanted is not None and self._options(scored(block, self.registry)) is wanted:
                return {"use": reward, "options": deepcopy(block["options"])}
        return {"use": reward}

    def preset(self, model: str, card: str) -> tuple[float, str | None]:
        """Return the memory in GB, and the largest preset of a model for at most this memory; None if there is none.

        Raises UserError for a text that is no memory, and for less memory than the smallest preset's.
        """
        match = MEMORY.fullmatch(card.strip())
        presets = {} if self.is_miniature(model) else self.presets(model)
        if match is None or not float(match[1]):
            known = ", ".join(presets) or "24gb"
            near = nearest(card, presets)
            raise UserError(f"--card {card}: must be the memory of a GPU in GB{near} (such as {known})")
        memory = float(match[1])
        fitting = [name for name, size in presets.items() if size <= memory]
        if presets and not fitting:
            name = min(presets, key=lambda one: presets[one])
            raise UserError(
                f"--card {card}: the smallest preset of {model} is {name}; leave out --card, and see "
                f"`dgpo plan RUN.yaml --fit {memory:g}`"
            )
        return memory, max(fitting, key=lambda one: presets[one], default=None)

    def presets(self, model: str) -> dict[str, float]:
        """Return the presets of a model that are named after the memory of a GPU, with that memory in GB."""
        if model not in self.registry.components("backbone"):
            return {}
        found = {name: MEMORY.fullmatch(name) for name in presets_of(model, self.registry)}
        return {name: float(match[1]) for name, match in found.items() if match}

    def modes(self, backbone: str) -> list[str]:
        """Return what can be trained of a backbone: lora, full."""
        uses = self.registry.implementation(self.registry.find("backbone", backbone)).uses
        return [mode for mode in ("lora", "full") if f"train: {mode}" in uses]

    def _pool(self, model: str) -> list[Example]:
        """Return the examples whose rewards and prompts suit a model, those of the model first."""
        own, tiny = self.of_model(model), self.is_miniature(model)
        return [*own, *(one for one in self.examples if one.is_miniature == tiny and one not in own)]

    def _owner(self, reward: str) -> str:
        registered = self.registry.components("reward").get(reward)
        return registered.distribution if registered else ""

    def _options(self, reward: str) -> type[Any] | None:
        """Return the options model of a reward, None if it has no options or is not installed."""
        registered = self.registry.components("reward").get(reward)
        try:
            model = self.registry.options_model(registered) if registered else None
        except PluginError:
            return None
        return None if model is Options else model

    def _are_here(self, section: Mapping[str, Any]) -> bool:
        """Return whether the prompts of a section can be read here."""
        blocks = [one for split in section.values() for one in (split if isinstance(split, list) else [split])]
        return all(
            Path(block).is_file() if isinstance(block, str) else block.get("use") in self.sources for block in blocks
        )


def _blocks(example: Example) -> list[dict[str, Any]]:
    """Return the rewards of an example: those trained on, those on frames, those evaluated."""
    found = [*example.data["rewards"], *(example.data.get("evaluation", {}).get("rewards") or [])]
    inner = [block.get("options", {}).get("reward") for block in found]
    return [*found, *(block for block in inner if isinstance(block, dict))]
