"""CLIPScore against open_clip's own forward pass and transform; every way in which a model can be wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_pickscore import loading
from dgpo_pickscore.options import ClipScoreOptions
from dgpo_pickscore.rewards import ClipScoreReward
from dgpo_pickscore.testing import make_tiny_clip, make_tiny_open_clip

Contract = Callable[[ClipScoreReward, Tensor, list[Prompt]], None]
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_open_clip(tmp_path_factory.mktemp("open_clip") / "tiny", seed=2)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Another one, to be damaged."""
    return make_tiny_open_clip(tmp_path / "copy")


def build(directory: Path | str, **options: Any) -> ClipScoreReward:
    name = f"local-dir:{directory}" if isinstance(directory, Path) else directory
    return ClipScoreReward(ClipScoreOptions(model=name, **options), device=torch.device("cpu"))


def message(directory: Path | str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(directory, **options)
    text = str(caught.value)
    assert text.startswith("reward clipscore: ")
    assert "\n" not in text
    return text


def published(directory: Path, images: Tensor, prompts: list[Prompt]) -> tuple[Tensor, float]:
    """Cosines float64 [B] and the logit scale: PIL images through open_clip alone."""
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    model = model.double().eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    pictures = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    with torch.no_grad():
        seen = model.encode_image(torch.stack([transform(p) for p in pictures]).double(), normalize=True)
        read = model.encode_text(tokenizer([p.text for p in prompts]), normalize=True)
    return (seen * read).sum(-1).double(), float(model.logit_scale.detach().exp())


@pytest.mark.parametrize("size", [(40, 48), (32, 32), (31, 40), (40, 33), (9, 5), (1, 1)])
def test_values(tiny: Path, images: Tensor, prompts: list[Prompt], size: tuple[int, int]) -> None:
    images = images[..., : size[0], : size[1]]
    scores = build(tiny).score(images, prompts)
    expected, _ = published(tiny, images, prompts)
    torch.testing.assert_close(scores.values.double(), expected, atol=1e-5, rtol=1e-5)


def test_every_scale(tiny: Path, images: Tensor, prompts: list[Prompt]) -> None:
    cosine, factor = published(tiny, images, prompts)
    assert (cosine < 0).any()
    assert (cosine > 0).any()
    scales: dict[str, tuple[Tensor, tuple[float, float]]] = {
        "cosine": (cosine, (-1, 1)),
        "percent": (100 * cosine, (-100, 100)),
        "hessel": (2.5 * cosine.clamp_min(0), (0, 2.5)),
        "flowgrpo": (factor * cosine / 30, (-factor / 30, factor / 30)),
    }
    for scale, (expected, limits) in scales.items():
        reward = build(tiny, scale=scale)
        scores = reward.score(images, prompts)
        torch.testing.assert_close(scores.values.double(), expected, atol=1e-5 * limits[1], rtol=1e-5)
        assert reward.range == pytest.approx(limits)
        for name, (values, _) in scales.items():
            found = torch.tensor([d[name] for d in scores.diagnostics], dtype=torch.float64)
            torch.testing.assert_close(found, values, atol=1e-3, rtol=1e-5)
    assert ClipScoreReward.range == (-1, 1)


@pytest.mark.parametrize("options", [{}, {"scale": "hessel", "batch": 2}, {"text_cache": 1}], ids=str)
def test_contract(
    tiny: Path, contract: Contract, images: Tensor, prompts: list[Prompt], options: dict[str, Any]
) -> None:
    images[4, 0, 0, 0] = torch.nan
    contract(build(tiny, **options), images, prompts)
    contract(build(tiny, every=2, **options), torch.stack([images, images, images.flip(0)], 1), prompts)


def test_truncation_is_reported(tiny: Path, images: Tensor) -> None:
    """CLIP's own tokenizer; "a" is one token."""
    texts = ["a " * 75, "a " * 76, "a"]
    found = build(tiny).score(images[:3], [Prompt(text) for text in texts]).diagnostics
    assert [(d["tokens"], d["truncated"]) for d in found] == [(77, False), (78, True), (3, False)]


def test_models_with_a_tokenizer_of_transformers(copy: Path, images: Tensor, prompts: list[Prompt]) -> None:
    """The tiny one, which reads letter by letter."""
    make_tiny_clip(copy / "other")
    for path in (copy / "other").glob("tokenizer*"):
        shutil.copy(path, copy)
    path = copy / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "anything"
    path.write_text(json.dumps(config))
    scores = build(copy).score(images, prompts)
    expected, _ = published(copy, images, prompts)
    torch.testing.assert_close(scores.values.double(), expected, atol=1e-5, rtol=1e-5)
    assert [d["tokens"] for d in scores.diagnostics] == [9, 15, 2, 9, 23, 302]
    assert [d["truncated"] for d in scores.diagnostics] == [False] * 5 + [True]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions(tiny: Path, images: Tensor, prompts: list[Prompt], dtype: str) -> None:
    found, expected = build(tiny, dtype=dtype), build(tiny)
    assert found.encoder.logit_scale == expected.encoder.logit_scale
    torch.testing.assert_close(
        found.score(images, prompts).values, expected.score(images, prompts).values, atol=0.05, rtol=0
    )


def test_squashing_models(copy: Path, images: Tensor, prompts: list[Prompt]) -> None:
    path = copy / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"] |= {"resize_mode": "squash", "interpolation": "bilinear"}
    path.write_text(json.dumps(config))
    expected, _ = published(copy, images, prompts)
    torch.testing.assert_close(build(copy).score(images, prompts).values.double(), expected, atol=1e-5, rtol=1e-5)
    config["preprocess_cfg"]["resize_mode"] = "longest"
    path.write_text(json.dumps(config))
    assert "its preprocessing (longest to (32, 32), bilinear) is not supported" in message(copy)


# -- weights --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: t.pop("visual.proj"), 'Missing key(s) in state_dict: "visual.proj"'),
        (lambda t: t.update(more=torch.zeros(1)), 'Unexpected key(s) in state_dict: "more"'),
        (lambda t: t.update({"text_projection": torch.zeros(16, 8)}), "size mismatch for text_projection"),
        (lambda t: t.update({"visual.positional_embedding": torch.zeros(10, 16)}), "visual.positional_embedding"),
        (lambda t: t.update({"positional_embedding": torch.zeros(50, 16)}), "positional_embedding is [50, 16]"),
    ],
)
def test_weights_that_do_not_match(copy: Path, edit: Callable[[dict[str, Tensor]], object], problem: str) -> None:
    tensors = load_file(copy / WEIGHTS)
    edit(tensors)
    save_file(tensors, copy / WEIGHTS)
    assert problem in message(copy)


def test_no_weights_and_damaged_ones(copy: Path) -> None:
    content = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(content[: len(content) // 2])
    assert f"{WEIGHTS} is not a complete safetensors file" in message(copy)
    (copy / WEIGHTS).unlink()
    assert f"{copy} contains none of open_clip_model.safetensors, " in message(copy)


def test_no_configuration(copy: Path) -> None:
    (copy / "open_clip_config.json").unlink()
    assert "open_clip_config.json" in message(copy)


def test_loading_leaves_the_random_state_alone(tiny: Path) -> None:
    before = torch.get_rng_state()
    build(tiny)
    assert torch.get_rng_state().equal(before)


# -- names ----------------------------------------------------------------------------------------------------------


def test_names_that_are_unknown() -> None:
    assert "unknown open_clip model ViT-L-41; nearest: ViT-L-1" in message("ViT-L-41")
    text = message("ViT-H-14", pretrained="openai")
    assert "openai is neither a file nor a tag of ViT-H-14 (tags: laion2b_s32b_b79k" in text


def test_random_weights_are_refused() -> None:
    assert "ViT-L-14-quickgelu would use random weights" in message("ViT-L-14-quickgelu", pretrained=None)


def test_the_activation_belongs_to_the_weights() -> None:
    assert message("ViT-L-14").endswith("set ViT-L-14-quickgelu")
    text = message("ViT-H-14-quickgelu", pretrained="laion2b_s32b_b79k")
    assert "nor a tag of ViT-H-14-quickgelu (tags: metaclip_fullcc" in text


def test_a_built_in_model_with_a_file(tmp_path: Path, images: Tensor) -> None:
    """The smallest that open_clip brings."""
    with torch.random.fork_rng():
        model = open_clip.create_model("ViT-S-32-alt", pretrained=None)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    scores = build("ViT-S-32-alt", pretrained=str(tmp_path / "weights.pt")).score(images[:1], [Prompt("a")])
    assert not scores.missing.any()
    torch.save(model.state_dict() | {"more": torch.zeros(1)}, tmp_path / "weights.pt")
    assert '"more"' in message("ViT-S-32-alt", pretrained=str(tmp_path / "weights.pt"))


def test_revisions() -> None:
    assert "option revision: only supported for hf-hub: models" in message("ViT-L-14-quickgelu", revision="main")


def test_the_hub(tiny: Path, tmp_path: Path, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played by a directory."""
    asked: list[tuple[str, str | None]] = []

    def snapshot(repository: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repository, revision))
        assert not any(pattern.endswith((".bin", ".pt")) for pattern in allow_patterns)
        return str(tiny)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    found = build("hf-hub:owner/model", revision="v1").score(images[:1], [Prompt("a")])
    torch.testing.assert_close(found.values, build(tiny).score(images[:1], [Prompt("a")]).values)
    assert asked == [("owner/model", "v1")]


def test_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "dgpo-tests/nothing is not a local directory, and as a Hub repository" in message(
        "hf-hub:dgpo-tests/nothing"
    )
    text = message("ViT-L-14-quickgelu", pretrained="openai")
    assert text.startswith("reward clipscore: model ViT-L-14-quickgelu, pretrained openai cannot be loaded: Failed to")
    assert "a directory (local-dir:PATH) or a weights file does not" in text


def test_examples(tiny: Path) -> None:
    reward = build(tiny)
    for example in reward.examples():
        assert not reward.score(example.media[None], [example.prompt]).missing.any()
