"""`dgpo cache fill`: all prompts of a run file in the cache, encoded once, within its limit."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dgpo_core.hookspecs import Component, hookimpl
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Conditioning, Prompt
from dgpo_kit.toy import ToyBackbone, ToyOptions, run_data

Run = Callable[..., Any]
BLOCK = 4096


class Reader(ToyBackbone):
    """Encodes each character of a prompt; `encoded` holds the texts that instances have encoded, `loads` the loads."""

    encoded: list[str] = []
    loads: list[str] = []
    broken_at: int | None = None

    @classmethod
    def encoder_model(cls, section: Any, options: Any, *, device: torch.device) -> Reader:
        cls.loads.append("encoders")
        return cls(section, options, device=device)

    def encoder_identity(self) -> str:
        return "reader"

    @contextmanager
    def encoding(self) -> Iterator[None]:
        self.loads.append("encoding")
        yield

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        if len(self.encoded) == self.broken_at:
            raise KeyboardInterrupt
        self.encoded.extend(prompt.text for prompt in prompts)
        row = super().encode(prompts).tensors["c"]
        length = max(1, len(prompts[0].text))
        return Conditioning({"c": row, "long": torch.ones(len(prompts), length, 1000)}, {"long": (length,)})


@pytest.fixture
def file(known: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run file with three training, two held-out and two negative prompts; one text is in both splits."""

    class Plugin:
        @hookimpl
        def dgpo_backbones(self) -> list[Component]:
            return [Component("reader", "Reads.", f"{__name__}:Reader", ToyOptions)]

    known.register(Plugin(), distribution="reader")
    monkeypatch.chdir(tmp_path)
    for name, records in {
        "train": [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c", "negative_prompt": "no"}],
        "heldout": [{"prompt": "a"}, {"prompt": "ddd"}],
    }.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    data = run_data(tmp_path / "runs", prompts={"train": "train.jsonl", "heldout": "heldout.jsonl"})
    data["backbone"] = {"use": "reader", "checkpoint": "toy", "cache": {"directory": "cache"}}
    Path("run.yaml").write_text(yaml.safe_dump(data))
    for name in ("encoded", "loads"):
        monkeypatch.setattr(Reader, name, [])
    return Path("run.yaml")


def kept() -> int:
    return len(list(Path("cache").glob("*/*.safetensors")))


def test_all_prompts_are_encoded_once(dgpo: Run, file: Path) -> None:
    found = dgpo("cache", "fill", file)
    assert (found.code, found.err) == (0, "")
    assert sorted(Reader.encoded) == ["", "a", "b", "c", "ddd", "no"]
    assert found.out == f"{Path('cache').absolute()}: 6 embeddings of run.yaml, 6 of them new, 0.053 GB\n".replace(
        "0.053", f"{15 * BLOCK / 1e9:.3f}"
    )
    assert Reader.loads[0] == "encoders"
    again = dgpo("cache", "fill", file, "--device", "cpu")
    assert "6 embeddings of run.yaml, 0 of them new" in again.out
    assert Reader.loads[-1] == "encoders", "nothing was missing, so no encoder was needed"
    assert kept() == len(Reader.encoded) == 6


def test_a_filled_run_encodes_nothing(dgpo: Run, file: Path) -> None:
    assert dgpo("cache", "fill", file).code == 0
    Reader.loads.clear()
    settings = [f"--set={key}={value}" for key, value in {"run.iterations": 1, "rollout.guidance": 2}.items()]
    assert dgpo("train", file, *settings).code == 0
    assert Reader.loads == []
    assert len(Reader.encoded) == 6


def test_an_interrupted_command_continues(dgpo: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reader, "broken_at", 4)
    assert dgpo("cache", "fill", file).code == 130
    assert kept() == 4
    monkeypatch.setattr(Reader, "broken_at", None)
    assert "6 embeddings of run.yaml, 2 of them new" in dgpo("cache", "fill", file).out
    assert sorted(Reader.encoded) == ["", "a", "b", "c", "ddd", "no"]


def test_a_limit_that_is_too_small_is_named_before_the_rest_is_encoded(dgpo: Run, file: Path) -> None:
    """Prompts of 1 to 100 characters; their mean length is known from 16 of them."""
    Path("train.jsonl").write_text("".join(json.dumps({"prompt": "x" * i}) + "\n" for i in range(1, 101)))
    found = dgpo("cache", "fill", file, "--set", "backbone.cache.max_gb=0.01")
    assert found.code == 2
    assert found.err.count("\n") == 1
    total = (50.5 * 4000 + BLOCK / 2 + 400) * 100 / 1e9  # of blocks, with headers
    assert f"backbone.cache.max_gb: 0.01 is too small for the {100 + 2 + 1} embeddings of this run" in found.err
    stated = float(found.err.split("about ")[1].split(" GB")[0])
    assert stated == pytest.approx(total, rel=0.1)
    assert found.err.endswith("; set at least 2\n")
    assert len(Reader.encoded) == 16


def test_other_embeddings_that_must_go_are_named(dgpo: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dgpo("cache", "fill", file).code == 0
    monkeypatch.setattr(Reader, "encoder_identity", lambda self: "another")
    found = dgpo("cache", "fill", file, "--set", "backbone.cache.max_gb=0.0001")
    assert found.code == 0
    assert "cache has 0.000 GB of other embeddings, of which the least recently used are deleted" in found.err
    assert "6 of them new" in found.out
    assert "0 of them new" in dgpo("cache", "fill", file).out


def test_embeddings_that_turn_out_too_large_end_the_command(
    dgpo: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate is made of a prompt of one character; another one has forty."""
    Path("train.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in [*"bcefgh", "d" * 40]))
    monkeypatch.setattr("dgpo_core.api.filling.TRIED", 1)
    found = dgpo("cache", "fill", file, "--set", f"backbone.cache.max_gb={30 * BLOCK / 1e9}")
    assert found.code == 2
    assert "is too small for the 10 embeddings of this run" in found.err
    assert len(Reader.encoded) > 1


def test_a_full_disk_ends_the_command(dgpo: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dgpo_core.storage.embeddings.EmbeddingFiles._write", full)
    found = dgpo("cache", "fill", file)
    assert found.code == 2
    assert "backbone.cache: an embedding is not kept in " in found.err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--set", "backbone.cache=null"], "backbone.cache: not set, so embeddings are not kept; add `cache: {}`"),
        (["--set", "backbone.use=toy"], "backbone.cache: "),
        (["--device", "gpu"], "--device gpu: choose one of auto, cpu, cuda"),
        (["--set", "prompts.train=none.jsonl"], "prompts.train: "),
        (["--set", "rollout.resolution=[12,8]"], "rollout.resolution: 12x8 is not possible; the nearest is 16x8"),
        (["--set", "backbone.cache.directory=run.yaml"], "run.yaml: Not a directory"),
    ],
)
def test_what_cannot_be_filled(dgpo: Run, file: Path, arguments: list[str], problem: str) -> None:
    found = dgpo("cache", "fill", file, *arguments)
    assert found.code == 2
    assert problem in found.err
    assert "Traceback" not in found.err
    assert kept() == 0
