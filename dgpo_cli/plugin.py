"""Declaration of the built-in commands. Nothing heavy may be imported here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core.hookspecs import Command, hookimpl

__all__ = ["dgpo_commands"]


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """Return the commands; `order` sorts the help page."""
    return [
        Command("init", "Write a commented run file after a few questions.", "dgpo_cli.init:init", 5),
        Command("train", "Train a model with Direct Group Preference Optimization.", "dgpo_cli.train:app", 10),
        Command("sample", "Draw images or videos from a run or from a base model.", "dgpo_cli.sample:sample", 20),
        Command("evaluate", "Score a run or a base model on prompts.", "dgpo_cli.evaluate:evaluate", 30),
        Command("export", "Write a run's adapter for use without dgpo.", "dgpo_cli.export:export", 80),
        Command("validate", "Check a run file without loading models.", "dgpo_cli.validate:validate", 100),
        Command(
            "migrate", "Rewrite files of dgpo 0.1 with the names of this version.", "dgpo_cli.migrate:migrate", 105
        ),
        Command("plugins", "Show, check and write plugins.", order=130),
        Command(
            "plugins list", "List every component that a run file may use.", "dgpo_cli.plugins:list_components", 10
        ),
        Command("plugins show", "Show what a component is, and its options.", "dgpo_cli.plugins:show", 20),
        Command("cache", "Prepare, show and delete prompt embeddings on disk.", order=135),
        Command("cache fill", "Encode all prompts of a run file ahead.", "dgpo_cli.cache:fill", 5),
        Command("cache list", "List the text encoders with embeddings on disk.", "dgpo_cli.cache:list_encoders", 10),
        Command("cache clear", "Delete prompt embeddings on disk.", "dgpo_cli.cache:clear", 20),
        Command("schema", "Write JSON Schemas for editors.", "dgpo_cli.schema:schema", 140),
    ]
