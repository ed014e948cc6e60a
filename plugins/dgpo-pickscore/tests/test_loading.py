"""Every way in which weights, processors and heads can be wrong, and the Hub without a network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_pickscore import loading
from dgpo_pickscore.head import load_head
from dgpo_pickscore.rewards import AestheticReward, PickScoreReward
from dgpo_pickscore.testing import make_tiny_clip, make_tiny_head
from tests.edited import edit_json

PickScore = Callable[..., PickScoreReward]
Aesthetic = Callable[..., AestheticReward]
WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(clip: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be damaged."""
    return Path(shutil.copytree(clip, tmp_path / "copy"))


def edit_weights(path: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def message(build: Callable[..., object], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(**{name: str(value) for name, value in options.items()})
    text = str(caught.value)
    assert text.startswith("reward ")
    assert "\n" not in text
    return text


# -- CLIP -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["logit_scale", "visual_projection.weight", "text_model.final_layer_norm.bias"])
def test_a_missing_tensor(pickscore: PickScore, copy: Path, name: str) -> None:
    edit_weights(copy / WEIGHTS, lambda tensors: tensors.pop(name))
    assert message(pickscore, model=copy).endswith(f"do not match the model; missing: {name}")


def test_a_superfluous_tensor(pickscore: PickScore, copy: Path) -> None:
    edit_weights(copy / WEIGHTS, lambda tensors: tensors.update({"vision_model.more.weight": torch.zeros(3)}))
    assert message(pickscore, model=copy).endswith("unexpected: vision_model.more.weight")


def test_a_tensor_of_another_shape(pickscore: PickScore, copy: Path) -> None:
    name = "vision_model.embeddings.position_embedding.weight"
    edit_weights(copy / WEIGHTS, lambda tensors: tensors.update({name: torch.zeros(5, 16)}))
    assert message(pickscore, model=copy).endswith(f"wrong shape: {name}")


def test_a_renamed_tensor_is_missing_and_superfluous(pickscore: PickScore, copy: Path) -> None:
    edit_weights(copy / WEIGHTS, lambda t: t.update({"text_projection.weigth": t.pop("text_projection.weight")}))
    text = message(pickscore, model=copy)
    assert text.endswith("missing: text_projection.weight; unexpected: text_projection.weigth")


def test_many_missing_tensors_are_not_all_named(pickscore: PickScore, copy: Path) -> None:
    edit_weights(copy / WEIGHTS, lambda t: [t.pop(n) for n in list(t) if n.startswith("vision_model.encoder")])
    assert " and 27 more" in message(pickscore, model=copy)


def test_counters_of_older_versions_are_let_pass(pickscore: PickScore, copy: Path, images: Tensor) -> None:
    """The published files hold them."""
    counters = {name: torch.arange(3)[None].contiguous() for name in loading.BENIGN}
    edit_weights(copy / WEIGHTS, lambda tensors: tensors.update(counters))
    prompt = [Prompt("a")]
    found = pickscore(model=str(copy)).score(images[:1], prompt)
    torch.testing.assert_close(found.values, pickscore().score(images[:1], prompt).values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "damage, problem",
    [
        ("missing", "has no weights: no such file: model.safetensors"),
        ("truncated", "is not a complete safetensors file: it has "),
        ("noise", "do not start with a header"),
        ("pickle", "only as a pickle, pytorch_model.bin, which is not supported"),
        ("pointer", "is a git-lfs pointer"),
    ],
)
def test_damaged_weights(pickscore: PickScore, copy: Path, damage: str, problem: str) -> None:
    path = copy / WEIGHTS
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "noise":
        path.write_bytes(b"\xff" * 1000)
    elif damage == "pickle":  # it would load, but pickles are never read
        torch.save({}, path.parent / "pytorch_model.bin")
    elif damage == "pointer":
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    text = message(pickscore, model=copy)
    assert text.startswith(f"reward pickscore: option model: {copy}")
    assert problem in text


def test_the_only_variant_of_the_weights_is_read(pickscore: PickScore, copy: Path) -> None:
    (copy / WEIGHTS).rename(copy / "model.fp16.safetensors")
    assert pickscore(model=str(copy)).encoder.width == pickscore().encoder.width


def test_a_quantized_model(pickscore: PickScore, copy: Path) -> None:
    edit_json(copy / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "is set to bitsandbytes (8 bit): the model is quantized" in message(pickscore, model=copy)


def test_a_root_of_the_hubs_cache(pickscore: PickScore, copy: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--clip" / "snapshots" / "0123abc"
    snapshot.parent.mkdir(parents=True)
    copy.rename(snapshot)
    assert f"the Hub cache of org/clip; use {snapshot}" in message(pickscore, model=tmp_path / "models--org--clip")


def test_half_precision_files_are_read_in_float32(pickscore: PickScore, copy: Path) -> None:
    edit_weights(copy / WEIGHTS, lambda tensors: tensors.update({n: t.half() for n, t in tensors.items()}))
    assert {p.dtype for p in pickscore(model=str(copy)).encoder._model.parameters()} == {torch.float32}


def test_another_architecture(pickscore: PickScore, tmp_path: Path) -> None:
    CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    assert "contains a model of type clip_text_model; expected clip" in message(pickscore, model=tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_no_configuration(pickscore: PickScore, copy: Path, content: str | None) -> None:
    (copy / "config.json").unlink() if content is None else (copy / "config.json").write_text(content)
    assert "config.json" in message(pickscore, model=copy)


def test_loading_is_quiet_and_leaves_the_random_state_alone(
    pickscore: PickScore, capfd: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_rng_state()
    pickscore()
    assert torch.get_rng_state().equal(before)
    assert capfd.readouterr() == ("", "")


# -- processor ------------------------------------------------------------------------------------------------------


def test_no_vocabulary(pickscore: PickScore, copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    assert f"{copy} has no vocabulary: tokenizer.json or vocab.json" in message(pickscore, processor=copy)
    (copy / "tokenizer.json").write_text("{")
    assert f"the tokenizer of {copy} cannot be loaded" in message(pickscore, processor=copy)


def test_no_numbers_for_images(pickscore: PickScore, copy: Path) -> None:
    (copy / "preprocessor_config.json").unlink()
    assert f"option processor: {copy} has no preprocessor_config.json" in message(pickscore, processor=copy)


def test_numbers_that_do_not_fit(pickscore: PickScore, copy: Path) -> None:
    edit_json(copy / "preprocessor_config.json", do_resize=False)
    assert "preprocessor_config.json: do_resize is false" in message(pickscore, processor=copy)
    edit_json(copy / "preprocessor_config.json", do_resize=True, crop_size=40)
    assert "crops to (40, 40), but" in message(pickscore, processor=copy)


def test_what_newer_versions_save(pickscore: PickScore, copy: Path) -> None:
    """A processor_config.json with the image processor inside, its sizes as mappings."""
    old = json.loads((copy / "preprocessor_config.json").read_text())
    new = old | {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    (copy / "preprocessor_config.json").unlink()
    (copy / "processor_config.json").write_text(json.dumps({"image_processor": new}))
    found = pickscore(processor=str(copy)).encoder.preprocessing
    assert found == pickscore().encoder.preprocessing


# -- head -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".pt"])
def test_a_head_may_be_either_kind_of_file(tmp_path: Path, ending: str) -> None:
    path = make_tiny_head(tmp_path / f"head{ending}", seed=5)
    other = load_file(make_tiny_head(tmp_path / "other.safetensors", seed=5))
    head = load_head(str(path), "", None, "x")
    assert not head.training
    assert all(value.equal(other[f"layers.{key}"]) for key, value in head.state_dict().items())
    beside = load_head(str(tmp_path), path.name, None, "x")
    assert beside.state_dict()["7.bias"].equal(head.state_dict()["7.bias"])


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: t.pop("layers.4.bias"), "missing: layers.4.bias"),
        (lambda t: t.update(more=torch.zeros(1)), "unexpected: more"),
        (lambda t: t.update({"layers.6.weight": torch.zeros(16, 63)}), "wrong shape: layers.6.weight"),
        (lambda t: t.update({"layers.0.weight": torch.zeros(3)}), "wrong shape: layers.0.weight"),
        (lambda t: t.pop("layers.0.weight"), "missing: layers.0.weight"),
    ],
)
def test_a_head_that_does_not_match(
    aesthetic: Aesthetic, head: Path, tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], problem: str
) -> None:
    path = tmp_path / "head.safetensors"
    shutil.copy(head, path)
    edit_weights(path, edit)
    assert message(aesthetic, head=path).endswith(f"do not match the model; {problem}")


class Evil:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("evil"),))


def test_a_head_runs_no_code(aesthetic: Aesthetic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"layers.0.weight": Evil()}, tmp_path / "head.pth")
    assert "cannot be read: " in message(aesthetic, head=tmp_path / "head.pth")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("content", [[1, 2], {"layers.0.weight": 3}])
def test_a_head_that_holds_no_tensors(aesthetic: Aesthetic, tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "head.pth")
    assert message(aesthetic, head=tmp_path / "head.pth").endswith("is not a mapping of names to tensors")


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("head.pth", b"noise", "cannot be read: "),
        ("head.pth", b"<!DOCTYPE html>", "is an HTML page"),
        ("head.safetensors", b"noise", "is not a complete safetensors file"),
        ("head.safetensors", b"", "is empty"),
    ],
)
def test_a_damaged_head(aesthetic: Aesthetic, tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert f"{name} {problem}" in message(aesthetic, head=tmp_path / name)


# -- the Hub --------------------------------------------------------------------------------------------------------


def test_paths_that_do_not_exist(pickscore: PickScore, aesthetic: Aesthetic, head: Path) -> None:
    assert "no such directory: /no/where (the nearest existing directory is /); allowed is a directory or" in message(
        pickscore, model="/no/where"
    )
    assert f"{head} is a file; allowed is a directory" in message(pickscore, model=head)
    assert message(aesthetic, head="/no/head.pth").startswith(
        "reward aesthetic: option head: no such directory: /no/head.pth"
    )


def test_a_revision_of_what_is_here(pickscore: PickScore, aesthetic: Aesthetic) -> None:
    assert "is a directory; a revision is for a Hub repository" in message(pickscore, revision="main")
    assert "is a directory; a revision is for a Hub repository" in message(pickscore, processor_revision="main")
    assert "is a file; a revision is for a Hub repository" in message(aesthetic, head_revision="main")


def test_repositories_that_cannot_be_fetched(
    pickscore: PickScore, aesthetic: Aesthetic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = message(pickscore, model="dgpo-tests/nothing", revision="v1")
    assert text.startswith("reward pickscore: option model: dgpo-tests/nothing is not a local directory, and as a Hub")
    assert "at revision v1 it cannot be downloaded: " in text
    assert "hf download dgpo-tests/nothing --revision v1 --local-dir DIRECTORY" in text
    assert "option processor: dgpo-tests/nothing" in message(pickscore, processor="dgpo-tests/nothing")
    assert "option head: dgpo-tests/nothing" in message(aesthetic, head="dgpo-tests/nothing")


def test_what_is_asked_of_the_hub(
    pickscore: PickScore, aesthetic: Aesthetic, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is played by directories: revisions reach it, and of a repository only what is needed is fetched."""
    tiny = make_tiny_clip(tmp_path / "tiny")
    asked: list[tuple[str, str | None]] = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert not any(pattern in ("*", "*.json", "*.safetensors") for pattern in allow_patterns)
        if repository == "c/head":
            assert allow_patterns == [head.name]
            return str(head.parent)
        return str(tiny)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    pickscore(model="a/model", revision="v1", processor="b/processor", processor_revision="v2")
    assert asked == [("a/model", "v1"), ("b/processor", "v2")]
    asked.clear()
    aesthetic(model="a/model", revision="v1", head="c/head", head_file=head.name, head_revision="v3")
    assert asked == [("c/head", "v3"), ("a/model", "v1"), ("a/model", "v1")]
    asked.clear()
    reward = aesthetic(model="a/model", revision="v1", processor="b/processor")
    assert asked == [("a/model", "v1"), ("b/processor", None)]
    assert reward.provenance() == {"model": "a/model", "revision": "v1", "head": str(head)}


def test_a_head_that_is_not_there(aesthetic: Aesthetic, tmp_path: Path) -> None:
    assert f"{tmp_path / 'other.pth'} does not exist; " in message(aesthetic, head=tmp_path, head_file="other.pth")
