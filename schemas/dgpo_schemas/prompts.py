"""Prompt files: .txt, one prompt a line, or .jsonl, one object with `prompt` and metadata a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from dgpo_schemas.base import StrictModel
from dgpo_schemas.problems import show

__all__ = ["PromptRecord", "read_prompts"]


class PromptRecord(StrictModel):
    """One prompt. In a .jsonl line every key besides `prompt` is metadata."""

    prompt: str = Field(description="The text.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="What rewards need to know of it.")


def read_prompts(path: Path) -> dict[int, PromptRecord]:
    """Prompts of a file by the number of their line, from 1; empty lines are passed over.

    Raises ValueError naming the file and the line: missing, unreadable, not UTF-8, another ending, a malformed line,
    no prompts at all.
    """
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path}: a prompt file ends in .txt (one prompt a line) or .jsonl (one object a line)")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such prompt file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a directory, not a prompt file") from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from None
    records = {}
    for number, line in enumerate(raw.split(b"\n"), 1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8 (byte {error.start + 1} of the line)") from None
        if text:
            as_json = path.suffix == ".jsonl"
            records[number] = _record(text, f"{path}:{number}") if as_json else PromptRecord(prompt=text)
    if not records:
        raise ValueError(f"{path}: has no prompts")
    return records


def _record(text: str, where: str) -> PromptRecord:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {error.msg} (column {error.colno})") from None
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, thousands of brackets
        raise ValueError(f"{where}: not JSON that can be read: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{where}: must be an object with a `prompt`, not {show(data)}")
    prompt = data.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: `prompt` must be a text that is not empty")
    return PromptRecord(prompt=prompt, metadata={key: value for key, value in data.items() if key != "prompt"})
