"""Digests of a base model: what is another model is seen, wherever it lies and however large it is."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.storage import bases
from dgpo_core.storage.bases import base_record, differences
from dgpo_core.weights import digests

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def tensors() -> dict[str, Tensor]:
    """From a few bytes to more than is read of a tensor, with a number of blocks that is odd."""
    torch.manual_seed(0)
    return {"bias": torch.randn(3), "small": torch.randn(64, 40), "large": torch.randn(101, 1000)}


def write(directory: Path, weights: dict[str, Tensor] | None = None) -> Path:
    files = {
        "model_index.json": '{"_class_name": "X"}',
        "transformer/config.json": '{"layers": 2}',
        "tokenizer/merges.txt": "a b\n",
        "tokenizer/spiece.model": "\0\1",
        "README.md": "words",
        "all_in_one.safetensors": "not read beside an index",
        "transformer/model.bin": "pickles are not supported",
        ".cache/lock.json": "{}",
    }
    for name, text in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)
    safetensors.torch.save_file(tensors() if weights is None else weights, directory / WEIGHTS, {"format": "pt"})
    return directory


@pytest.fixture(params=[0, digests.WHOLE], ids=["sampled", "whole"])
def threshold(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Both ways of reading."""
    monkeypatch.setattr(digests, "WHOLE", request.param)
    value: int = request.param
    return value


def found(before: Path, now: Path) -> list[str]:
    one, other = base_record(before), base_record(now)
    assert one is not None
    assert other is not None
    return differences(one, other)


def test_what_is_read(tmp_path: Path) -> None:
    record = base_record(write(tmp_path / "a"))
    assert record is not None
    assert sorted(record.files) == [
        "model_index.json", "tokenizer/merges.txt", "tokenizer/spiece.model", "transformer/config.json", WEIGHTS,
    ]  # fmt: skip
    assert (record.directory, record.commit) == (str(tmp_path / "a"), None)
    whole = (tmp_path / "a" / WEIGHTS).read_bytes()
    assert record.files[WEIGHTS].model_dump() == {
        "bytes": len(whole), "digest": f"sha256:{hashlib.sha256(whole).hexdigest()}",
    }  # fmt: skip


def test_a_digest_of_samples_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size, header, and of each tensor the first, middle and last 4096 bytes, or all of it."""
    monkeypatch.setattr(digests, "WHOLE", 0)
    record = base_record(write(tmp_path))
    raw = (tmp_path / WEIGHTS).read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    sha = hashlib.sha256(len(raw).to_bytes(8, "little") + raw[:start])
    header = json.loads(raw[8:start])
    for name in sorted(tensors(), key=lambda name: header[name]["data_offsets"]):
        data = raw[start:][slice(*header[name]["data_offsets"])]
        middle = (len(data) - 4096) // 2
        sampled = data[:4096] + data[middle : middle + 4096] + data[-4096:] if len(data) > 12288 else data
        sha.update(sampled)
    assert record is not None
    assert record.files[WEIGHTS].digest == f"sampled-sha256:{sha.hexdigest()}"


@pytest.mark.usefixtures("threshold")
def test_the_same_model_elsewhere_is_the_same(tmp_path: Path) -> None:
    assert found(write(tmp_path / "a"), write(tmp_path / "b" / "c")) == []


def _scaled(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda weights: weights | {name: weights[name] * 1.5}


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize(
    "change",
    [
        *(_scaled(name) for name in tensors()),
        lambda weights: weights | {"large": weights["large"] + 1e-6},
        lambda weights: weights | {"large": weights["large"].T.contiguous()},
        lambda weights: weights | {"large": weights["large"].bfloat16()},
        lambda weights: {"renamed" if name == "small" else name: value for name, value in weights.items()},
        lambda weights: {name: value for name, value in weights.items() if name != "bias"},
        lambda weights: weights | {"more": torch.zeros(1)},
    ],
)
def test_another_model_is_seen(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path) -> None:
    (difference,) = found(write(tmp_path / "a"), write(tmp_path / "b", change(tensors())))
    assert difference.startswith(f"{WEIGHTS} has changed")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("transformer/config.json", '{"layers": 3}', ["transformer/config.json has changed"]),
        ("tokenizer/merges.txt", "a c\nd e\n", ["tokenizer/merges.txt has changed (4 bytes, now 8)"]),
        ("tokenizer/merges.txt", None, ["tokenizer/merges.txt is missing"]),
        ("tokenizer/tokenizer.json", "{}", ["tokenizer/tokenizer.json is new"]),
        ("README.md", "other words", []),
        ("all_in_one.safetensors", "other weights", []),
        ("unrelated/config.json", "{}", []),
    ],
)
def test_other_files(name: str, text: str | None, expected: list[str], tmp_path: Path) -> None:
    before, now = write(tmp_path / "a"), write(tmp_path / "b")
    (now / name).parent.mkdir(exist_ok=True)
    (now / name).unlink() if text is None else (now / name).write_text(text)
    assert found(before, now) == expected


def test_a_snapshot_of_the_hub(tmp_path: Path) -> None:
    """Its files are links into the cache, its name is the commit, and other parts may be downloaded to it later."""
    blobs = write(tmp_path / "blobs")
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "models--a--b" / "snapshots" / commit
    for part in ("transformer", "tokenizer"):
        (snapshot / part).mkdir(parents=True)
        for file in (blobs / part).iterdir():
            (snapshot / part / file.name).symlink_to(file)
    (snapshot / "model_index.json").symlink_to(blobs / "model_index.json")
    record = base_record(snapshot)
    assert record is not None
    assert record.commit == commit
    assert found(blobs, snapshot) == []
    (snapshot / "tokenizer" / "tokenizer.json").write_text("{}")
    assert found(blobs, snapshot) == []


def test_linked_directories_are_followed(tmp_path: Path) -> None:
    before = write(tmp_path / "a")
    (tmp_path / "b").mkdir()
    for part in ("transformer", "tokenizer", "model_index.json"):
        (tmp_path / "b" / part).symlink_to(before / part)
    assert found(before, tmp_path / "b") == []


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (write(tmp_path) / "transformer" / "again").symlink_to(tmp_path)
    assert base_record(tmp_path) is not None


@pytest.mark.usefixtures("threshold")
@pytest.mark.parametrize("raw", [b"", b"\0" * 8, b"\xff" * 64, (20).to_bytes(8, "little") + b"{" * 40])
def test_what_is_no_tensor_file_is_read_whole(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(raw)
    record = base_record(tmp_path)
    assert record is not None
    assert record.files["a.safetensors"].digest == f"sha256:{hashlib.sha256(raw).hexdigest()}"


def test_a_pipe_among_the_files_is_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path / "a")
    os.mkfifo(tmp_path / "a" / "transformer" / "more.json")
    assert found(write(tmp_path / "b"), tmp_path / "a") == []


def test_a_directory_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "notes.md").touch()
    assert base_record(tmp_path) is None


def test_a_file_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    write(tmp_path)
    monkeypatch.setattr(bases, "file_digest", refuse)
    with pytest.raises(UserError, match=r"backbone\.checkpoint: cannot read .*: Permission denied"):
        base_record(tmp_path)
