"""The files of a run, of samples and of an export have the modes of the umask, those of libraries too."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_modes_follow_the_umask(dgpo: Run, write_run: Callable[..., Path], umask: int) -> None:
    """Checkpoints, whose files safetensors creates for their owner alone, logs, images, an adapter."""
    assert dgpo("train", write_run(logging={"trackers": ["tensorboard"]}), "--quiet").code == 0
    assert dgpo("sample", "runs/toy", "-p", "a", "-n", "1", "-o", "drawn").code == 0
    assert dgpo("export", "runs/toy", "-o", "adapter").code == 0
    made = [path for name in ("runs", "drawn", "adapter") for path in (Path(name), *Path(name).rglob("*"))]
    wrong = {
        str(path): oct(mode)
        for path in made
        if (mode := stat.S_IMODE(path.stat().st_mode)) != (0o777 if path.is_dir() else 0o666) & ~umask
    }
    assert wrong == {}
    assert {path.suffix for path in made} >= {".safetensors", ".jsonl", ".png", ".yaml"}
