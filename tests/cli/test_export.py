"""`dgpo export`."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from dgpo_kit.toy import ToyAdapter, ToyBackbone, ToyOptions
from dgpo_schemas.manifest import sealed_json
from dgpo_schemas.sections.backbone import BackboneSection

Run = Callable[..., Any]


def tree(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


@pytest.mark.parametrize("model", ["policy", "ema_fast", "ema"])
@pytest.mark.parametrize(("checkpoint", "iteration"), [("newest", 4), ("2", 2)])
def test_the_weights_are_those_of_the_checkpoint(
    dgpo: Run, trained: Any, model: str, checkpoint: str, iteration: int
) -> None:
    done = dgpo("export", trained.path, "--model", model, "--checkpoint", checkpoint)
    assert (done.code, done.err) == (0, "")
    assert done.out == f"{model} weights of runs/toy after iteration {iteration}: adapter\n"
    exported = safetensors.torch.load_file("adapter/toy.safetensors")
    saved = safetensors.torch.load_file(trained.path / f"checkpoints/{iteration:06d}/weights.safetensors")
    wanted = {name.removeprefix(f"{model}/"): tensor for name, tensor in saved.items() if name.startswith(f"{model}/")}
    assert len(wanted) == 4  # two layers, two matrices each
    assert exported.keys() == wanted.keys()
    assert all(torch.equal(exported[name], wanted[name]) for name in wanted)
    assert json.loads(Path("adapter/dgpo.json").read_text()) == {
        "base": "toy", "revision": None, "model": model, "base_files": None, "iteration": iteration,
    }  # fmt: skip


def test_the_slow_average_is_the_default_and_models_differ(dgpo: Run, trained: Any) -> None:
    for name, options in (("default", []), ("ema", ["--model", "ema"]), ("policy", ["--model", "policy"])):
        assert dgpo("export", trained.path, "--output", name, *options).code == 0
    weights = {name: Path(name, "toy.safetensors").read_bytes() for name in ("default", "ema", "policy")}
    assert weights["default"] == weights["ema"] != weights["policy"]


def test_the_best_checkpoint(dgpo: Run, trained: Any) -> None:
    records = [json.loads(line) for line in (trained.path / "evaluations.jsonl").read_text().splitlines()]
    best = max(records, key=lambda r: (r["value"], -r["iteration"]))["iteration"]
    done = dgpo("export", trained.path, "--checkpoint", "best")
    assert done.out == f"ema weights of runs/toy after iteration {best}: adapter\n"


def test_the_run_is_left_as_it_was(dgpo: Run, trained: Any) -> None:
    before = tree(trained.path)
    dgpo("export", trained.path)
    assert tree(trained.path) == before
    assert sorted(p.name for p in Path().iterdir()) == ["adapter", "run.yaml", "runs"]


def test_nothing_is_overwritten_without_force(dgpo: Run, trained: Any) -> None:
    out = Path("adapter")
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    done = dgpo("export", trained.path, "--output", out)
    assert (done.code, done.out) == (2, "")
    assert done.err == "--output adapter: exists and is not empty; name another directory, or replace it with --force\n"
    assert tree(out) == {"thesis.tex": b"years of work"}

    assert dgpo("export", trained.path, "--output", out, "--force").code == 0
    assert sorted(tree(out)) == ["dgpo.json", "toy.safetensors"]


def test_an_empty_directory_and_new_ones_above_it_are_fine(dgpo: Run, trained: Any) -> None:
    Path("empty").mkdir()
    for out in ("empty", "new/and/deep"):
        assert dgpo("export", trained.path, "--output", out).code == 0
        assert sorted(tree(Path(out))) == ["dgpo.json", "toy.safetensors"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("run.yaml", "--output run.yaml: is a file; name a directory"),
        ("run.yaml/below", "--output run.yaml/below: cannot be written: {here}/run.yaml is a file"),
        (".", "--output .: would replace the working directory; name a directory of its own"),
        ("..", "--output ..: would replace the working directory; name a directory of its own"),
        ("runs", "--output runs: would replace runs/toy; name a directory of its own"),
        ("runs/toy", "--output runs/toy: would replace runs/toy; name a directory of its own"),
        (
            "runs/toy/checkpoints",
            "--output runs/toy/checkpoints: would replace checkpoints of the run {here}/runs/toy; name a directory of "
            "its own",
        ),
        (
            "other/checkpoints/000002",
            "--output other/checkpoints/000002: would replace checkpoints of the run {here}/other; name a directory of "
            "its own",
        ),
        ("other", "--output other: would replace the run {here}/other; name a directory of its own"),
        ("home", "--output home: would replace the home directory; name a directory of its own"),
    ],
)
def test_places_that_are_never_replaced(
    dgpo: Run, trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, expected: str
) -> None:
    shutil.copytree(trained.path, "other")
    Path("home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    before = tree(tmp_path)
    done = dgpo("export", trained.path, "--output", output, "--force")
    assert (done.code, done.out, done.err) == (2, "", expected.format(here=tmp_path) + "\n")
    assert tree(tmp_path) == before


def test_a_directory_that_must_not_be_written(dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("shut").mkdir()
    allowed = os.access

    def access(path: Any, mode: int) -> bool:  # root may write anywhere
        return Path(path).name != "shut" and allowed(path, mode)

    monkeypatch.setattr(os, "access", access)
    done = dgpo("export", trained.path, "--output", "shut/adapter")
    assert (done.code, done.out) == (2, "")
    assert (
        done.err == f"--output shut/adapter: cannot be written: no permission to write in {Path('shut').absolute()}\n"
    )


def test_a_full_disk_keeps_what_was_there(dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path("adapter")
    dgpo("export", trained.path, "--output", out, "--checkpoint", "1")
    before = tree(Path())

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    done = dgpo("export", trained.path, "--output", out, "--force")
    assert (done.code, done.out, done.err) == (2, "", "cannot write adapter: No space left on device\n")
    assert tree(Path()) == before


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["runs/toy", "--model", "base"], "--model base: the base model is the checkpoint that the run started from; "
         "nothing to export"),
        (["runs/toy", "--model", "slow"], "--model slow: choose one of base, policy, ema_fast, ema"),
        (["run.yaml"], "run.yaml: is a run file, which has only its base model; name a run directory"),
        (["runs/tyo"], "runs/tyo: no such run directory"),
        (["runs"], "runs: not a run directory (it has no config.yaml)"),
        (["runs/toy", "--checkpoint", "7"], "runs/toy/checkpoints: no checkpoint '7'; there are newest, best and "
         "iterations 0, 1, 2, 3, 4"),
        (["runs/toy", "--checkpoint", "²"], "runs/toy/checkpoints: no checkpoint '²'; there are newest, best and "
         "iterations 0, 1, 2, 3, 4"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported(dgpo: Run, trained: Any, arguments: list[str], expected: str) -> None:
    done = dgpo("export", *arguments)
    assert (done.code, done.out, done.err) == (2, "", expected + "\n")
    assert not Path("adapter").exists()


def test_a_run_without_checkpoints(dgpo: Run, trained: Any) -> None:
    shutil.rmtree(trained.path / "checkpoints")
    done = dgpo("export", trained.path)
    assert (done.code, done.out, done.err) == (2, "", "runs/toy/checkpoints: contains no checkpoint\n")
    assert not Path("adapter").exists()


def test_a_damaged_checkpoint_is_not_exported(dgpo: Run, trained: Any) -> None:
    (trained.path / "checkpoints/000002/weights.safetensors").write_bytes(b"\0" * 100)
    done = dgpo("export", trained.path, "--checkpoint", "2")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "runs/toy/checkpoints/000002/weights.safetensors: its content differs from what was saved (SHA-256)\n"
    )
    assert not Path("adapter").exists()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("weights.safetensors", "manifest.json: does not list weights.safetensors"),
        ("optimizer.safetensors", "manifest.json: does not list optimizer.safetensors"),
    ],
)
def test_a_manifest_that_lacks_a_file(dgpo: Run, trained: Any, file: str, expected: str) -> None:
    manifest = trained.path / "checkpoints/000002/manifest.json"
    data = json.loads(manifest.read_text())
    del data["files"][file]
    manifest.write_text(sealed_json(data))
    done = dgpo("export", trained.path, "--checkpoint", "2")
    assert (done.code, done.err) == (2, f"runs/toy/checkpoints/000002/{expected}\n")


@pytest.fixture
def two_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy also writes a text file with the name of the format."""

    usual = ToyAdapter.save

    def save(adapter: ToyAdapter, directory: Path, format: str) -> None:
        if format == "diffusers":
            return usual(adapter, directory, format)
        directory.mkdir(exist_ok=True)
        size = sum(float(p.detach().norm()) for p in adapter.parameters().values())
        (directory / "toy.txt").write_text(f"{format} {size}")

    monkeypatch.setattr(ToyAdapter, "formats", ("diffusers", "kohya"))
    monkeypatch.setattr(ToyAdapter, "save", save)


@pytest.mark.usefixtures("two_formats")
def test_a_format_by_name(dgpo: Run, trained: Any) -> None:
    written = {}
    for model in ("ema", "policy"):
        done = dgpo("export", trained.path, "--output", model, "--model", model, "--format", "kohya")
        assert (done.code, done.err) == (0, "")
        assert sorted(tree(Path(model))) == ["dgpo.json", "toy.txt"]
        written[model] = Path(model, "toy.txt").read_text()
    assert {text.split()[0] for text in written.values()} == {"kohya"}
    assert written["ema"] != written["policy"], "the view's weights are written"
    assert dgpo("export", trained.path, "--output", "usual").code == 0
    assert sorted(tree(Path("usual"))) == ["dgpo.json", "toy.safetensors"]


@pytest.mark.usefixtures("two_formats")
@pytest.mark.parametrize("meta_model", [True, False], ids=["said-by-its-meta-model", "said-when-loaded"])
@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("safetensors", "--format safetensors: choose one of diffusers, kohya"),
        ("khoya", "--format khoya: choose one of diffusers, kohya; did you mean kohya?"),
        ("", "--format : choose one of diffusers, kohya"),
    ],
)
def test_a_format_that_is_not_there(
    dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch, format: str, expected: str, meta_model: bool
) -> None:
    if meta_model:
        made = ToyBackbone(BackboneSection(use="toy", checkpoint="toy"), ToyOptions(), device=torch.device("cpu"))
        monkeypatch.setattr(ToyBackbone, "meta_model", lambda *_: made)
        said = "nothing is loaded before that is said"
        monkeypatch.setattr(ToyBackbone, "__init__", lambda *_, **__: pytest.fail(said))
    done = dgpo("export", trained.path, "--format", format)
    assert (done.code, done.out, done.err) == (2, "", expected + "\n")
    assert not Path("adapter").exists()


def test_a_backbone_of_one_format(dgpo: Run, trained: Any) -> None:
    done = dgpo("export", trained.path, "--format", "diffusers")
    expected = "--format diffusers: choose one of toy\n"
    assert (done.code, done.out, done.err) == (2, "", expected)


@pytest.mark.usefixtures("two_formats")
def test_every_weight_has_no_adapter_to_write(dgpo: Run, trained: Any) -> None:
    config = trained.path / "config.yaml"
    data = yaml.safe_load(config.read_text())
    data["backbone"].pop("lora")
    config.write_text(yaml.safe_dump(data | {"backbone": data["backbone"] | {"train": "full"}}))
    done = dgpo("export", trained.path, "--format", "kohya")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "--format kohya: is an adapter format, and runs/toy has no adapter (backbone.train: full); leave --format out\n"
    )


def test_every_weight_is_written(dgpo: Run, trained: Any) -> None:
    """Of a run that has no adapter, by their names; there is no format to choose."""
    data = yaml.safe_load(trained.file.read_text())
    data["backbone"] = {"use": "toy", "checkpoint": "toy", "train": "full"}
    data["run"] |= {"name": "full", "iterations": 1, "output": "runs"}
    Path("full.yaml").write_text(yaml.safe_dump(data))
    assert dgpo("train", "full.yaml").code == 0
    assert dgpo("export", "runs/full", "--model", "policy").code == 0
    assert sorted(tree(Path("adapter"))) == ["dgpo.json", "weights.safetensors"]
    exported = safetensors.torch.load_file("adapter/weights.safetensors")
    saved = safetensors.torch.load_file("runs/full/checkpoints/000001/weights.safetensors")
    assert exported.keys() == {name.removeprefix("policy/") for name in saved if name.startswith("policy/")}
    assert all(torch.equal(tensor, saved[f"policy/{name}"]) for name, tensor in exported.items())


def test_a_checkpoint_of_another_run_is_reported(dgpo: Run, trained: Any) -> None:
    """Nothing is wrong with its own digests."""
    log = trained.path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"iteration": 1,', '"iteration": 1, "other": 1,', 1))
    done = dgpo("export", trained.path)
    assert done.code == 0
    assert "from what was logged by iteration 4" in done.err
    assert done.err.endswith("runs/toy/checkpoints/000004 is a checkpoint of another run\n")


def test_a_best_checkpoint_that_is_gone(dgpo: Run, trained: Any) -> None:
    manifest = json.loads((trained.path / "checkpoints/000004/manifest.json").read_text())
    best = manifest["best_iteration"]
    if best == 4:  # then it is another's word
        (trained.path / "checkpoints/000004/manifest.json").write_text(sealed_json(manifest | {"best_iteration": 2}))
        best = 2
    shutil.rmtree(trained.path / f"checkpoints/{best:06d}")
    done = dgpo("export", trained.path, "--checkpoint", "best")
    assert (done.code, done.err) == (
        2, f"runs/toy/checkpoints: the best checkpoint, of iteration {best}, is missing; use newest\n"
    )  # fmt: skip


def test_the_whole_network(dgpo: Run, trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the backbone can merge; elsewhere it is not among the formats."""
    done = dgpo("export", trained.path, "--format", "merged")
    assert (done.code, done.out, done.err) == (2, "", "--format merged: choose one of toy\n")
    asked = []

    def save_merged(self: ToyBackbone, directory: Path, dtype: str | None) -> None:
        asked.append(dtype)
        safetensors.torch.save_file({"w": torch.ones(1)}, directory / "all.safetensors")

    monkeypatch.setattr(ToyBackbone, "save_merged", save_merged, raising=False)
    for format in ("merged", "merged-float32"):
        assert dgpo("export", trained.path, "--format", format, "--output", format).code == 0
        assert sorted(tree(Path(format))) == ["all.safetensors", "dgpo.json"]
    assert asked == [None, "float32"]
    done = dgpo("export", trained.path, "--format", "merge")
    assert done.err == "--format merge: choose one of toy, merged, merged-float32; did you mean merged?\n"
