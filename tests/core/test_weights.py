"""Where checkpoints are looked for, and what is seen of them before anything is loaded."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import errors

from dgpo_core.errors import UserError
from dgpo_core.weights import (
    check_weights,
    read_json,
    refuse_quantized,
    resolve_checkpoint,
    unreachable,
    where_instead,
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed plugin `some_weights` with one directory of weights; importing it is an error."""
    site = tmp_path / "site"
    root = site / "some_weights"
    (root / "models" / "small").mkdir(parents=True)
    (root / "__init__.py").write_text("raise SystemExit('imported')")
    metadata = site / "some_weights-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[dgpo]\nweights = some_weights.plugin\n")
    monkeypatch.syspath_prepend(str(site))
    return root


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = str((tmp_path / "owner" / "model").resolve())
    # A directory wins over a repository of the same name.
    for text in (expected, "owner/model", "./owner/model/", "~/owner/model"):
        assert resolve_checkpoint(text) == expected


@pytest.mark.parametrize("text", ["stabilityai/stable-diffusion-3.5-medium", "gpt2", "a-b/c_d.e"])
def test_hub_repositories(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(text) == text


@pytest.mark.parametrize("text", ["./nothing", "/nothing/here", "runs/a/checkpoint", "~/nothing-here", "a b"])
def test_paths_that_do_not_exist(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"no such directory: .* \(the nearest existing directory is /.*\); allowed is"):
        resolve_checkpoint(text)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(UserError, match=r"is a file, a single-file checkpoint; .*; allowed is a directory"):
        resolve_checkpoint(str(path))


def test_weights_in_a_package(package: Path) -> None:
    assert resolve_checkpoint("package:some_weights/models/small") == str(package / "models" / "small")
    assert resolve_checkpoint("package:some_weights/models/./small/") == str(package / "models" / "small")


@pytest.mark.parametrize(
    "text, problem",
    [
        ("package:", "is incomplete; write package:NAME/path"),
        ("package:some_weights", "is incomplete"),
        ("package:some_weights/", "is incomplete"),
        ("package:some_weights/.", "is incomplete"),
        ("package:some_weights/models/large", "directories beside it: small"),
        ("package:some_weights/none/large", "directories beside it: none"),
        ("package:some_weight/x", "no installed plugin declares .*did you mean some_weights"),
        ("package:..weights/x", "no installed plugin declares"),
        ("package:some_weights.models/small", "no installed plugin declares"),
        ("package:antigravity/x", "no installed plugin declares .*; available: .*package:dgpo_miniature/checkpoint"),
        ("package:json/x", "no installed plugin declares"),
        ("package:some_weights/../../etc", "must stay inside the package"),
        ("package:some_weights/models/../models/small", "must stay inside the package"),
        ("package:some_weights//etc", "must stay inside the package"),
        ("package:some_weights/a\0b", "must stay inside the package"),
        ("package:some_weights/a\\b", "must stay inside the package"),
        ("package:some_weights/" + "x" * 300, "cannot be read: File name too long"),
    ],
)
def test_packages_that_do_not_have_it(package: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=f"backbone.checkpoint: package:.*{problem}"):
        resolve_checkpoint(text)


def test_nothing_is_imported_for_weights(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the package itself, whose import would end the program, nor a module in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend("")
    resolve_checkpoint("package:some_weights/models/small")
    with pytest.raises(UserError, match="no installed plugin declares"):
        resolve_checkpoint("package:here/x")
    assert not {"here", "some_weights"} & sys.modules.keys()


@pytest.mark.parametrize(
    "text, hint",
    [
        ("https://huggingface.co/owner/name/tree/main", "write the name of the repository, owner/name"),
        ("s3://bucket/model", "download it first"),
        ("owner/name@main", "checkpoint: owner/name, revision: main"),
        ("owner/name/", "without the trailing slash: owner/name"),
        ("models--owner--some--name", "write owner/some--name"),
        ("", "is not a path"),
        ("a\0b", "is not a path"),
        ("x" * 300, "too long"),
        ("round", "cannot be read: Too many levels"),
        ("dangling", "is a link to nowhere, which does not exist"),
        ("a.gguf", "GGUF"),
        ("a.safetensors", "from_single_file"),
        ("a.ckpt", "pickles are not supported"),
        ("a.zip", "unpack it"),
        ("model_index.json", "use its directory"),
        ("pytorch_lora_weights.safetensors", "a LoRA adapter; use the model"),
        ("a.zip/inner", "a parent of it is a file"),
    ],
)
def test_other_things_than_a_model(text: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.symlink("round", "round")
    os.symlink("nowhere", "dangling")
    if text.partition("/")[0].endswith((".gguf", ".safetensors", ".ckpt", ".zip", ".json")):
        Path(text.partition("/")[0]).touch()
    with pytest.raises(UserError, match=hint) as caught:
        resolve_checkpoint(text)
    assert "\n" not in str(caught.value)


def test_a_directory_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="you have no permission to read"):
        resolve_checkpoint(str(tmp_path))


WANTED = "model_index.json"


def make(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_where_a_pipeline_is_instead(tmp_path: Path) -> None:
    model = tmp_path / "deep" / "model"
    make(model, WANTED, "transformer/blocks/x")
    assert where_instead(model / "transformer" / "blocks", WANTED).endswith(f"in {model}; use that directory")
    assert where_instead(tmp_path / "deep", WANTED) == "; found one in model"
    assert where_instead(tmp_path, WANTED) == "; found one in deep/model"


def test_where_a_pipeline_is_in_the_hubs_cache(tmp_path: Path) -> None:
    entry = tmp_path / "hub" / "models--org--the--name"
    make(entry, f"snapshots/0123abc/{WANTED}", "blobs/55.incomplete", "snapshots/4567/x")
    expected = f"the Hub cache of org/the--name; use {entry}/snapshots/0123abc"
    assert where_instead(entry, WANTED) == f"; it is {expected}"
    for inner in ("snapshots", "blobs", "snapshots/4567"):
        assert where_instead(entry / inner, WANTED) == f"; it is in {expected}"
    make(entry, f"snapshots/4567/{WANTED}", "refs/main")
    (entry / "refs" / "main").write_text("4567")
    several = where_instead(entry, WANTED)
    assert several.endswith(f"use {entry}/snapshots/4567 (refs/main) or {entry}/snapshots/0123abc")
    assert "models--org--the--name/snapshots/0123abc" in where_instead(tmp_path / "hub", WANTED)
    for name in ("0123abc", "4567"):
        (entry / "snapshots" / name / WANTED).unlink()
    broken = where_instead(entry, WANTED)
    assert "a download was interrupted (it left blobs/55.incomplete" in broken
    assert broken.endswith("hf download org/the--name")


@pytest.mark.parametrize(
    "files, what",
    [
        ((), "it is empty"),
        (("pytorch_lora_weights.safetensors",), "contains a LoRA"),
        (("adapter_config.json", "adapter_model.safetensors"), "contains a LoRA"),
        (("config.yaml", "run.json", "metrics.jsonl"), "a run directory"),
        (("sd3-Q4_K_M.gguf",), "GGUF"),
        (("sd3.5_medium.safetensors",), "sd3.5_medium.safetensors is a single-file checkpoint"),
        (("config.json", "model.safetensors"), "a single model, not a pipeline"),
        ((".cache/huggingface/download/x.incomplete",), "a download was interrupted"),
        (("README.md",), ""),
    ],
)
def test_what_lies_there_instead(files: tuple[str, ...], what: str, tmp_path: Path) -> None:
    make(tmp_path, *files)
    (tmp_path / ".keep").touch() if files else None
    assert what in where_instead(tmp_path, WANTED)


# -- files of weights -------------------------------------------------------------------------------------------------


def safetensors(path: Path, tensors: dict[str, tuple[str, list[int], int]] | None = None, *, cut: int = 0) -> None:
    """A file as the format's description says it; name to type, shape and bytes."""
    header: dict[str, Any] = {}
    at = 0
    for name, (kind, shape, size) in (tensors or {"a.weight": ("BF16", [2, 2], 8)}).items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(at)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content[: len(content) - cut])


@pytest.mark.parametrize(
    "names, asked, chosen",
    [
        (["model.safetensors"], None, None),
        (["model.safetensors", "model.fp16.safetensors"], None, None),
        (["model.safetensors", "model.fp16.safetensors"], "fp16", "fp16"),
        (["model.safetensors"], "fp16", None),
        (["model.fp16.safetensors"], None, "fp16"),
        (["model.fp16.safetensors"], "bf16", "fp16"),
        (["model.bf16.safetensors", "model.non_ema.safetensors"], "non_ema", "non_ema"),
    ],
)
def test_variants(names: list[str], asked: str | None, chosen: str | None, tmp_path: Path) -> None:
    for name in names:
        safetensors(tmp_path / name)
    assert check_weights(tmp_path, "model", "here", variant=asked) == chosen


def test_several_variants_leave_the_choice(tmp_path: Path) -> None:
    for variant in ("fp16", "bf16"):
        safetensors(tmp_path / f"model.{variant}.safetensors")
    for asked in (None, "fp8"):
        with pytest.raises(UserError, match="several variants, bf16, fp16; choose one with the option variant"):
            check_weights(tmp_path, "model", "here", variant=asked)


def shards(directory: Path, index: str = "model.safetensors.index.json", ending: str = ".safetensors") -> list[Path]:
    names = [f"model-0000{i}-of-00002{ending}" for i in (1, 2)]
    for name in names:
        safetensors(directory / name)
    (directory / index).write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1], "c": names[0]}}))
    return [directory / name for name in names]


def test_shards(tmp_path: Path) -> None:
    second = shards(tmp_path)[1]
    assert check_weights(tmp_path, "model", "here") is None
    safetensors(second, cut=1)
    with pytest.raises(UserError, match=r"00002-of-00002[.]safetensors is not a complete safetensors file"):
        check_weights(tmp_path, "model", "here")
    second.unlink()
    with pytest.raises(UserError, match=r"is missing 1 of the 2 files listed in .*index.json: model-00002.*incomplete"):
        check_weights(tmp_path, "model", "here")
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match=r"has weight shards .* but not their index model.safetensors.index.json"):
        check_weights(tmp_path, "model", "here")


def test_shards_of_a_variant(tmp_path: Path) -> None:
    shards(tmp_path, "model.safetensors.index.fp16.json", ".fp16.safetensors")
    assert check_weights(tmp_path, "model", "here") == "fp16"


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "", "..", "a\0"])
def test_an_index_that_leads_elsewhere(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="allowed are files beside it"):
        check_weights(tmp_path, "model", "here")


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": 1}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "[", ""]
)
def test_an_index_that_says_nothing(content: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match=r"weight_map must map|is not valid JSON|is empty"):
        check_weights(tmp_path, "model", "here")


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("model.safetensors", b"", "is empty"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "git lfs pull"),
        ("model.safetensors", b"<!DOCTYPE html><html>", "an HTML page"),
        ("model.safetensors", b"GGUF\3\0\0\0", "GGUF format: the model is quantized"),
        ("model.safetensors", b"\x05", "do not start with a header"),
        ("model.safetensors", b"\xff" * 64, "do not start with a header"),
        ("model.safetensors", (900).to_bytes(8, "little") + b'{"a"', "ends inside its header"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"{}", "contains no tensors"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "header cannot be read"),
        ("model.safetensors", (40000).to_bytes(8, "little") + b"[" * 40000, "header cannot be read"),
        ("pytorch_model.bin", b"x", "which is not supported"),
        ("other.safetensors", b"x", "if other.safetensors contains these weights, rename it"),
        ("q4.gguf", b"GGUF", "GGUF"),
        ("config.json", b"{}", "has no weights: no such file: model.safetensors"),
    ],
)
def test_weights_that_are_none(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        check_weights(tmp_path, "model", "here: it")
    assert str(caught.value).startswith("here: it: ")
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is not a regular file"):
        check_weights(tmp_path, "model", "here")


def test_weights_whose_file_was_removed(tmp_path: Path) -> None:
    """As where someone cleared the blobs of the Hub cache."""
    place = tmp_path / "models--org--name" / "snapshots" / "0"
    place.mkdir(parents=True)
    (place / "model.safetensors").symlink_to("../../blobs/1")
    with pytest.raises(UserError, match=r"is a link to ../../blobs/1, which does not exist; .*hf download org/name"):
        check_weights(place, "model", "here")


@pytest.mark.parametrize(
    "name, kind, shape",
    [
        ("blocks.0.attn.to_q.weight", "F8_E4M3", [4, 4]),
        ("blocks.0.attn.to_q.scale_weight", "F32", [1]),
        ("scaled_fp8", "F8_E4M3", [2]),
        ("to_q.weight", "U8", [8, 1]),
        ("to_q.weight", "I8", [4, 4]),
        ("to_q.weight.quant_state.bitsandbytes__nf4", "U8", [10]),
        ("to_q.qweight", "I32", [4, 4]),
        ("to_q.weight._data", "I8", [4, 4]),
        ("to_q.wscales", "BF16", [4, 4]),
        ("to_q.weight_scale", "F32", [4]),
    ],
)
def test_quantized_weights(name: str, kind: str, shape: list[int], tmp_path: Path) -> None:
    safetensors(tmp_path / "model.safetensors", {"a": ("F32", [1], 4), name: (kind, shape, 16)})
    with pytest.raises(UserError, match="the model is quantized, and neither training on nor sampling"):
        check_weights(tmp_path, "model", "here")


def test_weights_that_are_not_quantized(tmp_path: Path) -> None:
    """Counters and masks are of whole numbers; names of layers may speak of scales."""
    plain = {"position_ids": ("I64", [1, 77], 616), "attn.mask": ("U8", [4, 4], 16), "norm.scale": ("F16", [2], 4)}
    safetensors(tmp_path / "model.safetensors", plain | {"scale_shift_table": ("F32", [6, 2], 48)})
    assert check_weights(tmp_path, "model", "here") is None


@pytest.mark.parametrize(
    "section, shown",
    [
        ({"quant_method": "quanto", "weights_dtype": "int8"}, r"quanto \(int8\)"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "bitsandbytes .4 bit, nf4",
        ),
        ({"quant_method": "modelopt", "quant_type": "FP8"}, "modelopt .FP8"),
        ({"quant_method": "torchao", "quant_type": {"default": {}}}, "torchao"),
        ({"a": 1}, "unknown method"),
        ("gguf", "gguf"),
    ],
)
def test_quantized_configurations(section: Any, shown: str) -> None:
    with pytest.raises(
        UserError, match=f"here: c.json: quantization_config is set to {shown}.*: the model is quantized"
    ):
        refuse_quantized({"quantization_config": section}, Path("c.json"), "here")
    refuse_quantized({"quantization_config": None}, Path("c.json"), "here")


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"", "is empty"),
        (b"[1]", "must contain a JSON object, {...}, not list"),
        (b"[" * 200_000, "is not valid JSON: nested too deeply"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"1" * 5000, "is not valid JSON"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_configurations_that_are_none(content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=problem):
        read_json(tmp_path / "config.json", "here")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "config.json", "here") == {"a": 1}


# -- the Hub ----------------------------------------------------------------------------------------------------------


def answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/o/n"))


@pytest.mark.parametrize(
    "error, reason",
    [
        (
            errors.GatedRepoError("", response=answer(403)),
            "it is gated; accept its license at https://huggingface.co/o/n",
        ),
        (errors.RepositoryNotFoundError("", response=answer(401)), "no such repository, or it is private"),
        (errors.RevisionNotFoundError("", response=answer(404)), "it has no revision v1"),
        (
            errors.RemoteEntryNotFoundError("no x.json", response=answer(404)),
            "not a model in the required format: no x.json",
        ),
        (errors.LocalEntryNotFoundError("gone"), "cannot be reached, .*hf download o/n --revision v1 --local-dir"),
        (errors.HFValidationError("two slashes"), "not a valid repository name"),
        (errors.HfHubHTTPError("", response=answer(401)), "token is invalid"),
        (errors.HfHubHTTPError("", response=answer(403)), "your account has no access"),
        (errors.HfHubHTTPError("", response=answer(429)), "limits the rate"),
        (errors.HfHubHTTPError("Server error\nmore", response=answer(503)), "Server error"),
        (httpx.ConnectError("no route"), r"cannot be reached, .*\(no route\)"),
        (OSError(28, "No space left on device", "/cache"), "No space left on device .*HF_HOME"),
        (ValueError(), "ValueError"),
    ],
)
def test_why_a_repository_cannot_be_fetched(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    text = str(unreachable("here", "o/n", "v1", error))
    assert text.startswith(
        "here: o/n is not a local directory, and as a Hub repository at revision v1 it cannot be downloaded: "
    )
    assert re.search(reason, text)
    assert "\n" not in text


def test_the_variable_that_forbids_the_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = str(unreachable("here", "o/n", None, errors.LocalEntryNotFoundError("gone")))
    assert "HF_HUB_OFFLINE is set, and the cache does not have all of it; unset it" in text
