"""Checkpoints: what comes back is what was saved, and what is damaged is never taken for whole."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from dgpo_core.errors import UserError
from dgpo_core.storage.checkpoint import Checkpoint, Checkpoints, Clock, load, load_manifest
from dgpo_schemas.manifest import FileEntry, sealed_json

ENTRY = FileEntry(sha256=hashlib.sha256(b"line\n").hexdigest(), bytes=5)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def save(checkpoints: Checkpoints, iteration: int, best: tuple[int, float] | None = None) -> Path:
    value = float(iteration)
    return checkpoints.save(
        iteration=iteration,
        updates=2 * iteration,
        weights={"policy/a": torch.full((2, 3), value), "ema_fast/a": torch.arange(6.0).view(2, 3).T + value},
        optimizer={"a/step": torch.tensor(value)},
        timesteps={"t_min": 0.25, "seen": [1, 2]},
        best=best,
        counters={"skipped_updates": 3},
        logs=dict.fromkeys(("metrics.jsonl", "evaluations.jsonl"), ENTRY),
        clock=Clock(0.5 * iteration, ENTRY),
    )


def there(checkpoints: Checkpoints) -> list[int]:
    return [int(path.name) for path in checkpoints.paths()]


def test_what_is_saved_comes_back(checkpoints: Checkpoints) -> None:
    path = save(checkpoints, 7, best=(5, 0.5))
    found = load(path)
    assert torch.equal(found.weights["policy/a"], torch.full((2, 3), 7.0))
    assert torch.equal(found.weights["ema_fast/a"], torch.tensor([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]) + 7)
    assert torch.equal(found.optimizer["a/step"], torch.tensor(7.0))
    manifest = found.manifest
    assert (manifest.iteration, manifest.updates) == (7, 14)
    assert (manifest.best_iteration, manifest.best_score) == (5, 0.5)
    assert (manifest.timesteps, manifest.counters) == ({"t_min": 0.25, "seen": [1, 2]}, {"skipped_updates": 3})


def test_the_manifest_lists_every_file_with_its_digest(checkpoints: Checkpoints) -> None:
    path = save(checkpoints, 1)
    listed = json.loads((path / "manifest.json").read_text())["files"]
    files = {f.name: f.read_bytes() for f in path.iterdir() if f.suffix == ".safetensors"}
    assert listed == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in files.items()
    }


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_and_the_best_are_kept(tmp_path: Path, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep=keep)
    best = {1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 4, 7: 4, 10: 10}
    for iteration, best_so_far in best.items():
        save(checkpoints, iteration, best=(best_so_far, 0.0))
        saved = [i for i in best if i <= iteration]
        assert there(checkpoints) == sorted({*saved[-keep:], best_so_far})


def test_finding(checkpoints: Checkpoints) -> None:
    for iteration in (3, 9, 12):
        save(checkpoints, iteration, best=(3, 1.0))

    def found(which: str) -> int:
        return checkpoints.find(which).manifest.iteration

    assert [found(which) for which in ("newest", "best", "3", "9", "000009", "12")] == [12, 3, 3, 9, 9, 12]
    for unknown in ("4", "last", "-3", "", "²", "3.0"):
        with pytest.raises(UserError, match=r"no checkpoint .*; there are newest, best and iterations 3, 9, 12$"):
            checkpoints.find(unknown)


@pytest.mark.parametrize("best", [None, (4, 1.0)])
def test_the_newest_stands_in_for_the_best(checkpoints: Checkpoints, best: tuple[int, float] | None) -> None:
    """Where no evaluation was made, and where the newest is the best."""
    save(checkpoints, 2)
    save(checkpoints, 4, best=best)
    assert checkpoints.find("best").manifest.iteration == 4


@pytest.mark.parametrize("which", ["newest", "best"])
def test_where_there_are_none(checkpoints: Checkpoints, which: str) -> None:
    assert checkpoints.paths() == []
    with pytest.raises(UserError, match="no checkpoint"):
        checkpoints.find(which)
    with pytest.raises(UserError, match="iterations none"):
        checkpoints.find("1")


def test_other_things_in_the_directory_are_no_checkpoints(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    for name in (".000002.writing", ".000002.old", "notes", "000003.bak"):
        (checkpoints.directory / name).mkdir()
    (checkpoints.directory / "000004").touch()
    assert there(checkpoints) == [1]


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _forget_optimizer(path: Path) -> None:
    data = json.loads(path.read_text())
    del data["files"]["optimizer.safetensors"]
    path.write_text(sealed_json(data))


def _change(**changes: Any) -> Callable[[Path], object]:
    """Values that are as plausible as the right ones, without a new digest."""

    def change(path: Path) -> None:
        path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=1))

    return change


def _unseal(path: Path) -> None:
    data = json.loads(path.read_text())
    del data["sha256"]
    path.write_text(json.dumps(data))


def _of_another_iteration(path: Path) -> None:
    path.write_text(sealed_json(json.loads(path.read_text()) | {"iteration": 1}))


DAMAGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("weights.safetensors", _flip, r"its content differs from what was saved \(SHA-256\)"),
    ("weights.safetensors", _halve, "its content differs"),
    ("optimizer.safetensors", _flip, "its content differs"),
    ("weights.safetensors", Path.unlink, "missing"),
    ("optimizer.safetensors", Path.unlink, "missing"),
    ("manifest.json", Path.unlink, "missing"),
    ("manifest.json", _halve, ""),
    ("manifest.json", lambda path: path.write_bytes(b"\xff\xfe"), "decode"),
    ("manifest.json", _forget_optimizer, "does not list optimizer.safetensors"),
    ("manifest.json", _change(iteration=3), "its content differs from what was saved"),
    ("manifest.json", _change(best_score=0.75), "its content differs from what was saved"),
    ("manifest.json", _change(counters={"skipped_updates": 2}), "its content differs from what was saved"),
    ("manifest.json", _unseal, "contains no digest"),
    ("clock.json", _change(trained_seconds=9.0), "its content differs from what was saved"),
    ("clock.json", _unseal, "contains no digest"),
    ("clock.json", _halve, "not JSON"),
    ("clock.json", Path.unlink, "missing"),
    ("clock.json", _of_another_iteration, "of iteration 1, the manifest is of 2"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    checkpoints: Checkpoints,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[Path], object],
    reason: str,
) -> None:
    save(checkpoints, 1)
    damaged = save(checkpoints, 2) / name
    damage(damaged)
    with pytest.raises(UserError, match=rf"{damaged}: .*{reason}"):
        checkpoints.find("2")
    assert checkpoints.newest().manifest.iteration == 1
    assert str(damaged) in caplog.text


def test_a_flipped_bit_anywhere_in_a_manifest_or_a_clock_is_seen(checkpoints: Checkpoints) -> None:
    """Or it changes blanks alone."""
    path = save(checkpoints, 1, best=(1, 0.5))
    wanted = load(path)
    for name in ("manifest.json", "clock.json"):
        whole = (path / name).read_bytes()
        for place in range(len(whole)):
            changed = bytearray(whole)
            changed[place] ^= 1 << (place % 8)
            (path / name).write_bytes(changed)
            with contextlib.suppress(UserError):
                assert load_manifest(path) == (wanted.manifest, wanted.clock), f"byte {place} of {name}"
        (path / name).write_bytes(whole)


def test_a_renamed_checkpoint_is_found_out(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    save(checkpoints, 1)
    renamed = save(checkpoints, 2).rename(checkpoints.directory / "000020")
    reason = f"{renamed}: contains the state after iteration 2, not 20: it was renamed; rename it to 000002"
    with pytest.raises(UserError, match=reason):
        checkpoints.find("20")
    assert checkpoints.newest().manifest.iteration == 1
    assert reason in caplog.text


def test_a_file_that_is_as_saved_but_no_tensor_file(checkpoints: Checkpoints) -> None:
    path = save(checkpoints, 1)
    (path / "weights.safetensors").write_bytes(b"not tensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["weights.safetensors"] = {"sha256": hashlib.sha256(b"not tensors").hexdigest(), "bytes": 11}
    (path / "manifest.json").write_text(sealed_json(manifest))
    with pytest.raises(UserError, match=r"weights\.safetensors: "):
        load(path)


def test_another_format_is_not_passed_over(checkpoints: Checkpoints) -> None:
    """Going on from an older one would lose what a newer program did."""
    save(checkpoints, 1)
    manifest = save(checkpoints, 2) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format_version": 3', '"format_version": 4'))
    with pytest.raises(UserError, match="unknown checkpoint format version 4"):
        checkpoints.newest()


def test_a_disk_that_fills_up_leaves_the_checkpoints_as_they_were(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in (1, 2):
        save(checkpoints, iteration)
    written = safetensors.torch.save_file

    def full(tensors: Any, path: Path) -> None:
        if path.name == "optimizer.safetensors":
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        written(tensors, path)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    for iteration in (2, 3):  # over an old one, and a new one
        with pytest.raises(UserError, match=rf"cannot write .*00000{iteration}: .*No space left on device"):
            save(checkpoints, iteration)
    assert sorted(p.name for p in checkpoints.directory.iterdir()) == ["000001", "000002"]
    assert checkpoints.newest().manifest.iteration == 2


def test_dropping_one_half_leaves_nothing_under_its_name(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for iteration in (1, 2):
        save(checkpoints, iteration)

    def cut_short(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", cut_short)
        with pytest.raises(KeyboardInterrupt):
            save(checkpoints, 3)
    assert there(checkpoints) == [2, 3]


def test_saving_an_iteration_again_replaces_it(checkpoints: Checkpoints) -> None:
    save(checkpoints, 1)
    save(checkpoints, 1, best=(1, 0.75))
    found: Checkpoint = checkpoints.newest()
    assert found.manifest.best_score == 0.75
    assert [p.name for p in checkpoints.directory.iterdir()] == ["000001"]
