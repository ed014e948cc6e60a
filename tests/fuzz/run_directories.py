"""Run directories with files that are damaged, gone, of another kind, or edited and sealed again."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from dgpo_core.plugins.registry import Registry
from dgpo_core.training.trainer import Trainer
from dgpo_kit.toy import run_data
from dgpo_schemas.run import RunConfig
from dgpo_schemas.sealing import SEAL, sealed, sealed_text
from tests.fuzz.fuzzer import Case, Subject, asked, toy_installed, workplace
from tests.fuzz.mutations import DATA, VALUES
from tests.fuzz.mutations import TEXT as SPOILING

__all__ = ["RUN_DIRECTORIES"]

STOPPED, END = 2, 3
PLACE = re.compile(r"toy\b|work\b|run\.output|backbone\.|prompts\.|--\w+|^[a-z_]+(\.[\w.-]+)+: ", re.MULTILINE)
COMMANDS = {
    "resume": ["train", "run.yaml", "--resume"],
    "report": ["report", "work/toy"],
    "doctor": ["doctor", "work/toy"],
    "sample": ["sample", "work/toy", "-p", "an image", "-n", "1", "-o", "drawn", "--force"],
    "evaluate": ["evaluate", "work/toy"],
    "export": ["export", "work/toy", "-o", "adapter", "--force"],
}
Random = random.Random


def _a_directory(rng: Random, path: Path) -> None:
    path.unlink()
    path.mkdir()
    if rng.random() < 0.5:
        (path / "x").write_text("x")


def _empty(rng: Random, path: Path) -> None:
    path.write_bytes(b"")


def _gone(rng: Random, path: Path) -> None:
    path.unlink()


def _a_fifo(rng: Random, path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _a_socket(rng: Random, path: Path) -> None:
    path.unlink()
    before = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def _a_link(rng: Random, path: Path) -> None:
    """To nowhere, to itself, to a directory, or to what it was."""
    aside = path.with_name(f"once {path.name}")
    path.rename(aside)
    path.symlink_to(rng.choice(["nowhere", path.name, ".", "..", aside.name]))
    if rng.random() < 0.5:
        aside.unlink()


def _deep(rng: Random, path: Path) -> None:
    depth = rng.choice([50, 1000, 100_000])
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}")])
    path.write_text(f"{opening * depth}1{closing * depth}\n")


def _corrupted(rng: Random, path: Path) -> None:
    raw = path.read_bytes()
    if raw:
        path.write_bytes(rng.choice(SPOILING)(rng, raw))


def _huge_number(rng: Random, path: Path) -> None:
    raw = path.read_text(errors="replace")
    path.write_text(
        re.sub(r"\d+", rng.choice(["9" * 5000, "1e999", "-1", "NaN", "1.5"]), raw, count=rng.randrange(1, 9))
    )


def _edited(rng: Random, path: Path) -> None:
    """A program or a person has changed values, and the digests with them."""
    raw = path.read_text(errors="replace")
    try:
        if path.suffix == ".yaml":
            data = yaml.safe_load(raw)
            _change(rng, data)
            path.write_text(sealed_text(yaml.safe_dump(data, sort_keys=False)))
        elif path.suffix == ".jsonl":
            lines = [json.loads(line) for line in raw.splitlines()]
            _change(rng, rng.choice(lines))
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            data = json.loads(raw)
            _change(rng, data)
            path.write_text(json.dumps(sealed(data) if SEAL in data else data))
    except (TypeError, ValueError, IndexError, OverflowError):  # no such change of this file
        _corrupted(rng, path)


def _change(rng: Random, data: Any) -> None:
    for _ in range(rng.choice([1, 1, 2, 4])):
        if rng.random() < 0.3:
            data[rng.choice([*list(data), "more"])] = deepcopy(rng.choice(VALUES))
        else:
            with contextlib.suppress(IndexError, OverflowError):  # nothing is left to change, or no number can hold it
                rng.choice(DATA)(rng, data)


def _odd_names(rng: Random, path: Path) -> None:
    """More in the directory than a run puts there."""
    name = rng.choice(
        [".DS_Store", f"._{path.name}", f"{path.name} copy", "latest", "000010 copy", "9" * 200, "00001O", ".lock",
         f".{path.name}.writing", f".{path.name}.old", "000002.tmp", "-1", "+3", "١٢", "0"]
    )  # fmt: skip
    made = path.parent / name
    if made.exists():
        return
    match rng.randrange(4):
        case 0:
            made.mkdir()
        case 1:
            made.symlink_to("/nowhere/at/all")
        case 2:
            made.write_bytes(b"\x00\xff")
        case _ if path.parent.name.isdigit():
            made.mkdir()
        case _:
            shutil.copytree(path, made) if path.is_dir() else shutil.copy(path, made)


DAMAGES: list[Callable[[Random, Path], None]] = [
    _a_directory, _empty, _gone, _a_fifo, _a_socket, _a_link, _deep, _corrupted, _corrupted,
    _huge_number, _edited, _edited,
    _edited, _odd_names, _odd_names,
]  # fmt: skip


def _directory_damage(rng: Random, path: Path) -> str:
    match rng.randrange(4):
        case 0:
            shutil.rmtree(path)
            return "is gone"
        case 1:
            shutil.rmtree(path)
            path.write_text("x")
            return "is a file"
        case 2:
            aside = path.rename(path.with_name(f"once {path.name}"))
            path.symlink_to(rng.choice([aside.name, "nowhere", path.name]))
            return "is a link"
        case _:
            for inner in path.iterdir():
                shutil.rmtree(inner) if inner.is_dir() else inner.unlink()
            return "is empty"


@contextmanager
def _opened() -> Iterator[Callable[[Random], Case]]:
    with workplace() as place, toy_installed() as registry:
        _make_run(place, registry)
        files = [path.relative_to(place / "whole") for path in sorted((place / "whole").rglob("*"))]
        kept = set(os.listdir(place)) | {"work", "drawn", "adapter"}

        def make(rng: Random) -> Case:
            shutil.rmtree("work", ignore_errors=True)
            shutil.copytree("whole", "work/toy")
            done = []
            for _ in range(rng.choice([1, 1, 1, 2])):
                file = Path("work/toy") / rng.choice(files)
                if file.is_symlink() or not (file.is_file() or file.is_dir()):
                    continue
                if file.is_dir():
                    done.append(f"{file} {_directory_damage(rng, file)}")
                else:
                    damage = rng.choice(DAMAGES)
                    done.append(f"{damage.__name__} {file}")
                    damage(rng, file)
            # A report draws figures, which takes as long as ten of the others; doctor reads what it reads.
            name = rng.choices(list(COMMANDS), [1 if one == "report" else 10 for one in COMMANDS])[0]
            allowed = {0: "accepted", 2: "refused"} | ({1: "accepted"} if name == "doctor" else {})
            outcome, said = asked(COMMANDS[name], PLACE, allowed)
            for made in ("drawn", "adapter"):
                shutil.rmtree(made, ignore_errors=True)
            if left := set(os.listdir()) - kept:
                outcome = f"it left {left} behind"
            return Case(f"directory for {name}", "; ".join(done), outcome, said, "")

        yield make


def _make_run(place: Path, registry: Registry) -> None:
    """A run half way, under `whole`, and its file."""
    data = run_data(
        place / "work",
        run={"iterations": END},
        rollout={"steps": 2, "group_size": 3, "groups": 2},
        evaluation={"every": 1, "prompts": 2, "images": 1, "model": "policy"},
        checkpoints={"every": 1, "keep": 2},
    )
    (place / "run.yaml").write_text(yaml.safe_dump(data))
    Trainer(RunConfig.model_validate(data), registry).train(max_iterations=STOPPED)
    (place / "work" / "toy").rename(place / "whole")


RUN_DIRECTORIES = Subject("run-directories", _opened)
