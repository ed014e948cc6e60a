"""Ask for the answers of which a run file is made, unless options gave them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from dgpo_cli.new_run.building import Answers, for_media
from dgpo_cli.new_run.choices import Choices
from dgpo_cli.new_run.questions import choose, text
from dgpo_core.errors import UserError
from dgpo_schemas.problems import INDEX, nearest
from dgpo_schemas.prompts import read_prompts

__all__ = ["asked", "status"]


def asked(given: dict[str, str | None], processes: int, choices: Choices) -> tuple[Answers, int]:
    """Ask for what no option has answered. Returns the answers and the number of GPUs."""
    found: dict[str, Any] = dict(given)
    if found["model"] is None:
        found["model"] = choose("model", "What to train:", choices.models, choices.default_model(), choices.check_model)
    choices.check_model(model := found["model"])
    own = not choices.is_miniature(model)
    if own and found["weights"] is None:
        about = "Its weights: a directory, or a repository of the Hugging Face Hub, fetched when the run starts."
        found["weights"] = text("weights", about, choices.default_weights(model))
    if found["reward"] is None:
        default = choices.default_reward(model)

        def check(answer: str) -> None:
            choices.check_reward(answer)
            base = choices.base(model, answer)
            with status(f"loading {answer}"):
                for_media({"use": answer}, model if base is None else base.backbone, choices.registry)

        found["reward"] = choose("reward", "What to reward:", choices.rewards, default, check)
    choices.check_reward(reward := found["reward"])
    if found["prompts"] is None and (own or choices.default_prompts(model, reward) is None):
        found |= _asked_prompts(model, reward, found["heldout"], choices)
    if own and found["card"] is None and choices.presets(model):
        about = f"Memory of one GPU in GB, to apply a preset ({', '.join(choices.presets(model))}); empty for none."
        found["card"] = text("card", about, "", lambda answer: _discard(choices.preset(model, answer))) or None
    if own and processes == 1:
        processes = int(text("processes", "Number of GPUs:", "1", _check_count))
    if own and found["train"] is None:
        with status(f"loading {model}"):
            modes = choices.modes(model)
        if len(modes) > 1:
            words = {"lora": "A LoRA adapter: little memory, small files", "full": "All weights"}
            found["train"] = choose("train", "What of the model to train:", words, "lora", _one_of(words))
    return Answers(**found), processes


def _asked_prompts(model: str, reward: str, heldout: str | None, choices: Choices) -> dict[str, str | None]:
    default = choices.default_prompts(model, reward)
    block = None if default is None else default["train"]
    shown = block if isinstance(block, str) else block.get("use", block.get("file")) if block else None
    about = "Prompts to train on: a .txt or .jsonl file, or one of these sources:"
    prompts = choose("prompts", about, choices.sources, shown, lambda answer: _check_prompts(answer, choices))
    if prompts == shown:
        return {"prompts": None}
    if heldout is None and prompts not in choices.sources:
        about = "Prompts to evaluate on, which are not trained on: a file; empty for no evaluation."
        heldout = text("heldout", about, "", lambda answer: _check_prompts(answer, choices, "--heldout")) or None
    return {"prompts": prompts, "heldout": heldout}


def _check_prompts(answer: str, choices: Choices, option: str = "--prompts") -> None:
    """Raise UserError unless these are a prompt source, or a file that can be read: the answers would be lost later."""
    choices.check_prompts(answer, option)
    file = Path(answer).expanduser()
    if file.is_file():
        try:
            read_prompts(file)
        except ValueError as error:
            raise UserError(str(error)) from None


@contextmanager
def status(text: str) -> Iterator[None]:
    """Show on a terminal what takes seconds."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def _check_count(answer: str) -> None:
    if not INDEX.fullmatch(answer) or int(answer) < 1:
        raise UserError(f"{answer!r} is not a number of GPUs; it must be an integer of at least 1")


def _one_of(choices: dict[str, str]) -> Any:
    def check(answer: str) -> None:
        if answer not in choices:
            raise UserError(f"must be {' or '.join(choices)}{nearest(answer, choices)}")

    return check


def _discard(_: object) -> None:
    """Return nothing, for a function that is called to raise an error."""
