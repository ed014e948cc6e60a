"""The content of a new run file, from answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpo_cli.new_run.choices import Choices
from dgpo_cli.new_run.examples import Example
from dgpo_core.config.keys import keys_in
from dgpo_core.config.overrides import apply_overrides
from dgpo_core.config.presets import with_presets
from dgpo_core.errors import PluginError, UserError
from dgpo_core.media.kinds import adapter, one_of, plural
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.loading import Document
from dgpo_schemas.problems import split_key
from dgpo_schemas.run import RunConfig

__all__ = ["Answers", "Built", "build", "for_media", "missing"]

SOURCE = "dgpo init"
"""Position of mistakes in messages: of what no option has set."""
FULL_RATE = 1e-5
"""Learning rate if all weights are trained. Those of the examples are for adapters, and far too high."""
SHOWN = {
    "rollout": ("sampler", "steps", "guidance", "group_size", "groups", "resolution"),
    "objective": ("beta", "kl"),
    "timesteps": ("use", "count", "t_min"),
    "optimizer": ("learning_rate",),
}
"""Keys that a file for a model without an example shows with their defaults."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What a user wants. weights, prompts, heldout, card, train, name: None for the default."""

    model: str
    reward: str
    weights: str | None = None
    prompts: str | None = None
    heldout: str | None = None
    card: str | None = None
    train: str | None = None
    name: str | None = None
    settings: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Built:
    """The content of a run file, and where it comes from. memory: GB of the GPU."""

    document: Document
    base: Example | None
    preset: str | None = None
    memory: float | None = None


def build(answers: Answers, choices: Choices) -> Built:
    """Return the content of a run file. Raises UserError or ConfigError for answers that do not fit together."""
    base = choices.base(answers.model, answers.reward)
    data = deepcopy(base.data) if base is not None else _shown(answers.model)
    same = base is not None and base.rewards(choices.registry) == [answers.reward]
    if not same:
        _replace_reward(data, answers, choices)
    data["prompts"] = _prompts(answers, choices, base)
    if data["prompts"].get("heldout") is None:
        data.pop("evaluation", None)  # it requires held-out prompts
    data["backbone"]["checkpoint"] = _weights(answers, choices)
    if not (same and answers.train in (None, data["backbone"].get("train", "lora"))):
        data["run"]["name"] = f"{answers.model}-{answers.reward}"
    if answers.name is not None:
        data["run"]["name"] = answers.name
    _set_mode(data, answers, choices)
    document, preset, memory = Document(SOURCE, data), None, None
    if answers.card is not None:
        memory, preset = choices.preset(answers.model, answers.card)
        document = document if preset is None else with_presets(document, preset, choices.registry)
    return Built(apply_overrides(document, answers.settings), base, preset, memory)


def missing(document: Document, registry: Registry) -> list[tuple[str, str]]:
    """Return key and meaning of the options of its components that a run file must set, and does not."""
    found = []
    for name, (known, *_) in keys_in("run", document.data, registry).by_name.items():
        parent, _, last = name.rpartition(".")
        if known.owners and known.key.required and parent.endswith(".options"):
            options = _at(document.data, parent)
            if not isinstance(options, Mapping) or last not in options:
                found.append((name, known.key.description))
    return found


def _at(data: Any, key: str) -> Any:
    for component in split_key(key):
        inside = isinstance(data, Mapping) and component in data
        if not inside and not (isinstance(data, list) and component in range(len(data))):
            return None
        data = data[component]
    return data


def _shown(model: str) -> dict[str, Any]:
    """Return the sections for a model without an example, with defaults of the schema."""
    defaults = RunConfig.model_validate(
        {
            "run": {"name": "new", "iterations": 200},
            "backbone": {"use": model, "checkpoint": "unknown"},
            "prompts": {"train": "unknown"},
            "rewards": [{"use": "unknown"}],
        }
    ).model_dump(mode="json", exclude_none=True)
    data: dict[str, Any] = {"run": {"name": "new", "iterations": 200, "seed": 0}, "backbone": {"use": model}}
    data |= {section: {key: defaults[section][key] for key in keys} for section, keys in SHOWN.items()}
    data["rollout"]["sampler"] = defaults["rollout"]["sampler"]["use"]
    order = ("run", "backbone", "prompts", "rollout", "rewards", "objective", "timesteps", "optimizer", "evaluation")
    data |= {"prompts": {}, "rewards": [], "evaluation": {"every": 20, "prompts": 100}}
    return {section: data[section] for section in order}


def _replace_reward(data: dict[str, Any], answers: Answers, choices: Choices) -> None:
    """Train on another reward than the example does, and evaluate with it."""
    backbone = data["backbone"]["use"]
    data["rewards"] = [for_media(choices.reward_block(answers.model, answers.reward), backbone, choices.registry)]
    evaluation = data.setdefault("evaluation", {})
    evaluation.pop("rewards", None)
    monitors = [block.get("use") for block in evaluation.get("monitors", {}).get("rewards", [])]
    if answers.reward in monitors or not set(monitors) <= choices.rewards.keys():
        del evaluation["monitors"]


def for_media(block: dict[str, Any], backbone: str, registry: Registry) -> dict[str, Any]:
    """Return a reward, or one that passes it the frames of videos, if the backbone makes what it cannot score."""
    try:
        made = registry.implementation(registry.find("backbone", backbone)).media
        accepted = registry.implementation(registry.find("reward", block["use"])).media
    except PluginError:  # it may run elsewhere, with packages that are not installed here
        return block
    if made in accepted:
        return block
    wrapper = adapter(registry, made, accepted)
    if wrapper is None or wrapper == block["use"]:
        raise UserError(
            f"--reward: {block['use']} scores {plural(accepted)}, but {backbone} generates {made}s; choose a reward "
            f"that scores {one_of(made)}"
        )
    return {"use": wrapper, "options": {"reward": block}}


def _prompts(answers: Answers, choices: Choices, base: Example | None) -> dict[str, Any]:
    if answers.prompts is None:
        found = choices.default_prompts(answers.model, answers.reward)
        if found is None:
            file = "" if base is None else f"; {base.place} names {base.data['prompts']['train']}, which is not here"
            raise UserError(f"--prompts: name a prompt file or a prompt source{file}")
        section = dict(found)
    else:
        choices.check_prompts(answers.prompts)
        section = {"train": _block(answers.prompts, choices)}
        if answers.heldout is None and answers.prompts in choices.sources and not Path(answers.prompts).is_file():
            section["heldout"] = _block(answers.prompts, choices)  # a source has held-out prompts of its own
    if answers.heldout is not None:
        choices.check_prompts(answers.heldout, "--heldout")
        section["heldout"] = _block(answers.heldout, choices)
    return section


def _block(prompts: str, choices: Choices) -> Any:
    return prompts if Path(prompts).expanduser().is_file() else {"use": prompts}


def _weights(answers: Answers, choices: Choices) -> str:
    if answers.weights is not None:
        return answers.weights
    base = choices.base(answers.model, answers.reward)
    if base is None:
        raise UserError(
            f"--weights: name the weights of {answers.model}: a directory, or a repository of the Hugging Face Hub"
        )
    return str(base.data["backbone"]["checkpoint"])


def _set_mode(data: dict[str, Any], answers: Answers, choices: Choices) -> None:
    """Train an adapter or all weights."""
    backbone = data["backbone"]
    if answers.train is None or answers.train == backbone.get("train", "lora"):
        return
    modes = choices.modes(backbone["use"])
    if answers.train not in modes:
        raise UserError(
            f"--train {answers.train}: {backbone['use']} does not support it; supported: {', '.join(modes) or 'none'}"
        )
    backbone["train"] = answers.train
    backbone.pop("lora", None)
    if answers.train == "full":
        data.setdefault("optimizer", {})["learning_rate"] = FULL_RATE
