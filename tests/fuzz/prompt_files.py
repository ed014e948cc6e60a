"""Prompt files, as people and other programs write them, given to the commands and to the rewards that read them."""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml

from dgpo_core.contracts import RewardModel
from dgpo_core.data.checks import check_prompts
from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import run_data
from dgpo_schemas.base import UseBlock
from tests.fuzz.fuzzer import LONGEST, Case, Hangs, Subject, asked, time_limit, toy_installed, workplace
from tests.fuzz.mutations import TEXT, VALUES

__all__ = ["PROMPT_FILES"]

GENEVAL: list[dict[str, Any]] = [
    {
        "prompt": "a photo of a red circle",
        "tag": "colors",
        "include": [{"class": "circle", "count": 1, "color": "red"}],
    },
    {
        "prompt": "two squares",
        "tag": "counting",
        "include": [{"class": "square", "count": 2}],
        "exclude": [{"class": "square", "count": 3}],
    },
    {
        "prompt": "a circle left of a square",
        "tag": "position",
        "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}],
    },
    {
        "prompt": "a photo of a circle",
        "tag": "single_object",
        "include": [{"class": "circle", "count": 1.0}],
        "exclude": None,
    },
]
OCR: list[dict[str, Any]] = [
    {"prompt": 'a sign that says "OPEN"'},
    {"prompt": "a poster with the words “GRAND HOTEL”", "target": "GRAND HOTEL"},
    {"prompt": "ein Schild mit „Heute zu“", "id": 7, "source": "drawn by hand"},
    {"prompt": 'a sign that says "SNOW"', "negative_prompt": "people", "size": [64, 32.0], "media": []},
]  # fmt: skip
ODD_TEXT = [
    "\ud83d", "a \udcff b", "\ufeff", "\u200b", "\x00", "a\x00b", "\u202eabc", "\x1b[31mred", "\r", "\x0c",
    "\x85", "\u2028",
    "e\u0301" * 50, "👩\u200d🎨", "「開」", "«FERMÉ»", "''", '""', '"', "„", "a " * 5000, "\U0010ffff", "ﬁ",
    "١٢٣", "#", "- x",
]  # fmt: skip
KEYS = [
    "text", "caption", "Prompt", "PROMPT", "promt", "instruction", "tag", "Tag", "include", "includes", "exclude",
    "target",
    "class", "count", "color", "color", "position", "file", "id", "meta", "", "\ud83d", "__class__", "file_name",
    "url", "media", "size", "negative_prompt", "negative", "Media", "Size", "neg_prompt", "image", "height",
]  # fmt: skip
ENDINGS = [".txt", ".jsonl", ".TXT", ".JSONL", ".json", ".csv", ".yaml", "", ".txt.gz", ".jsonl ", ".Txt", ".parquet"]
PLACE = re.compile(r"(case|p\.d)[^\s:]*(:\d+)?|prompts\.train|-p\b|--prompts?")


def _spoil_data(rng: random.Random, record: Any) -> None:
    """One change of a record, at any depth."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, inner in list(items):
            places.append((value, key))
            walk(inner)

    walk(record)
    if not places:
        return
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            holder[key] = deepcopy(rng.choice(VALUES))
        case 1:
            holder[key] = rng.choice(ODD_TEXT)
        case 2 if isinstance(holder, dict):
            holder[rng.choice(KEYS)] = holder.pop(key)
        case 3 if isinstance(holder, dict):
            holder[rng.choice(KEYS)] = deepcopy(rng.choice([*VALUES, *ODD_TEXT]))
        case 4:
            del holder[key]
        case _:
            holder[key] = rng.choice([json.dumps(holder[key], default=str), [holder[key]], float("nan"), None])


def _line(rng: random.Random, records: list[dict[str, Any]]) -> str:
    record = json.loads(json.dumps(rng.choice(records)))
    for _ in range(rng.choice([0, 0, 0, 0, 1, 1, 2, 4])):
        _spoil_data(rng, record)
    return json.dumps(record, ensure_ascii=rng.random() < 0.5, default=str)


def _text(rng: random.Random, records: list[dict[str, Any]]) -> str:
    words = [str(rng.choice(records)["prompt"])]
    if rng.random() < 0.4:
        words.insert(rng.randrange(2), rng.choice(ODD_TEXT))
    return rng.choice(["", " ", ""]).join(words) if rng.random() < 0.9 else rng.choice(ODD_TEXT)


def document(rng: random.Random, records: list[dict[str, Any]], lines: float) -> tuple[bytes, str, str]:
    """(bytes, ending, what was done); lines: the share of files with a JSON object a line."""
    as_json = rng.random() < lines
    made = [(_line if as_json else _text)(rng, records) for _ in range(rng.choice([0, 1, 1, 2, 3, 8]))]
    if as_json and rng.random() < 0.05:
        made = [f"[{', '.join(made)}]"]
    end = rng.choice(["\n"] * 6 + ["\r\n", "\r", "\n\n", "\n\ufeff"])
    raw = end.join(made).encode("utf-8", errors=rng.choice(["replace", "surrogatepass"]))
    done = ["lines" if as_json else "text"]
    if raw and rng.random() < 0.4:
        spoil = rng.choice(TEXT)
        raw = spoil(rng, raw)
        done.append(spoil.__name__)
    ending = rng.choice(ENDINGS) if rng.random() < 0.12 else (".jsonl" if as_json else ".txt")
    return raw, ending, ", ".join([*done, ending])


@contextmanager
def _opened() -> Iterator[Callable[[random.Random], Case]]:
    with workplace() as place, toy_installed() as registry:
        (place / "run.yaml").write_text(yaml.safe_dump(run_data("out", evaluation={"every": 0, "images": 0})))
        rewards = {"geneval": _reward(registry, "geneval", detector="shapes"), "ocr": _reward(registry, "ocr")}
        commands = {
            "validate": ["validate", "run.yaml", "--set", "prompts.train={file: FILE}"],
            "sample": ["sample", "run.yaml", "--prompts", "FILE", "-n", "1", "-o", "drawn", "--force"],
        }

        def make(rng: random.Random) -> Case:
            kind = rng.choice([*rewards, *rewards, "validate", "validate", "sample"])
            records = {"geneval": GENEVAL, "ocr": OCR}.get(kind, [*GENEVAL, *OCR])
            raw, ending, done = document(rng, records, lines=0.95 if kind == "geneval" else 0.6)
            file = Path(f"case{ending}")
            file.write_bytes(raw)
            if kind in rewards:
                outcome, said = _checked(rewards[kind], file)
            else:
                outcome, said = asked([word.replace("FILE", str(file)) for word in commands[kind]], PLACE)
            file.unlink()
            shutil.rmtree("drawn", ignore_errors=True)
            if left := set(os.listdir()) - {"run.yaml", "examples", "experiments", "plugins"}:
                outcome = f"it left {left} behind"
            return Case(f"prompts for {kind}", done, outcome, said, raw.decode("utf-8", errors="backslashreplace"))

        try:
            yield make
        finally:
            for reward in rewards.values():
                reward.close()


def _reward(registry: Registry, name: str, **options: Any) -> RewardModel:
    made: RewardModel = registry.create("reward", UseBlock(use=name, options=options), device=torch.device("cpu"))
    return made


def _checked(reward: RewardModel, file: Path) -> tuple[str, str]:
    """As a run does it before it begins: read the file, and have the reward check its prompts."""
    out = io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(out), time_limit():
            check_prompts(reward, load_file(file))
    except UserError as error:
        said = str(error)
        if len(said) > 20_000:
            return f"a message of {len(said)} characters", said[:5000]
        return ("refused", said) if PLACE.search(said) else ("the message does not say where", said)
    except Hangs:
        return f"hangs for more than {LONGEST} s", out.getvalue()
    except BaseException:
        return "a traceback", traceback.format_exc()
    return "accepted", out.getvalue()


PROMPT_FILES = Subject("prompt-files", _opened)
