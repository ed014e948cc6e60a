"""HPS v2.1 against its formula in float64 and torchvision's transform; the published format and names."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_pickscore.hpsv2 import HpsReward
from dgpo_pickscore.images import Preprocessing
from dgpo_pickscore.options import HpsOptions
from dgpo_pickscore.testing import make_tiny_hps

from ..by_hand import block, cosine, fused, norm, patches

Contract = Callable[[HpsReward, Tensor, list[Prompt]], None]
WEIGHTS = "HPS_v2.1_compressed.pt"
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_hps(tmp_path_factory.mktemp("hpsv2") / "tiny", seed=3)


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def build(directory: Path, **options: Any) -> HpsReward:
    options = {"model": str(directory), "architecture": str(directory / "architecture.json")} | options
    return HpsReward(HpsOptions(**options), device=torch.device("cpu"))


def tensors_of(directory: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(directory / WEIGHTS, weights_only=True)["state_dict"]
    return tensors


def padded(images: Tensor, side: int) -> Tensor:
    """The published transform (hpsv2/src/open_clip/transform.py, ResizeMaxSize) with torchvision's functions, in
    float64, on values in [0, 1] of 8 bits."""
    levels = (images * 255).round().double() / 255
    height, width = levels.shape[-2:]
    scale = side / max(height, width)
    size = [round(height * scale), round(width * scale)]
    levels = F.resize(levels, size, InterpolationMode.BICUBIC, antialias=True)
    across, down = side - size[1], side - size[0]
    levels = F.pad(levels, [across // 2, down // 2, across - across // 2, down - down // 2], fill=0)
    return F.normalize(levels, MEAN, STD)


def tower(w: dict[str, Tensor], name: str, x: Tensor, visible: Tensor | None = None) -> Tensor:
    for layer in range(2):
        b = f"{name}transformer.resblocks.{layer}"
        attend = fused(w, f"{b}.attn.in_proj_", f"{b}.attn.out_proj", 2, visible)
        x = block(w, (f"{b}.ln_1", f"{b}.ln_2"), attend, (f"{b}.mlp.c_fc", f"{b}.mlp.c_proj"), x, 1e-5)
    return x


def published(directory: Path, images: Tensor, prompts: list[Prompt]) -> Tensor:
    """float64 [B]: the class token of the image, and the end token of the text, which sees what stands before it."""
    w = tensors_of(directory)
    first = w["visual.class_embedding"].double().expand(len(images), 1, -1)
    x = torch.cat([first, patches(w, "visual.conv1", padded(images, 32))], 1)
    x = norm(w, "visual.ln_pre", x + w["visual.positional_embedding"].double(), 1e-5)
    seen = norm(w, "visual.ln_post", tower(w, "visual.", x)[:, 0], 1e-5) @ w["visual.proj"].double()
    ids = open_clip.SimpleTokenizer(context_length=77)([prompt.text for prompt in prompts])
    x = w["token_embedding.weight"].double()[ids] + w["positional_embedding"].double()
    x = tower(w, "", x, torch.ones(77, 77, dtype=torch.bool).tril())
    read = norm(w, "ln_final", x, 1e-5)[range(len(ids)), (ids == 49407).int().argmax(1)]
    return cosine(seen, read @ w["text_projection"].double())


@pytest.mark.parametrize("size", [(40, 48), (32, 32), (31, 40), (40, 33), (9, 5), (1, 1)])
def test_values(tiny: Path, images: Tensor, prompts: list[Prompt], size: tuple[int, int]) -> None:
    images = images[..., : size[0], : size[1]]
    scores = build(tiny).score(images, prompts)
    expected = published(tiny, images, prompts)
    torch.testing.assert_close(scores.values.double(), expected, atol=1e-5, rtol=1e-5)
    percent = build(tiny, scale="percent").score(images, prompts)
    torch.testing.assert_close(percent.values.double(), 100 * expected, atol=1e-3, rtol=1e-5)
    assert expected.std() > 0.02
    assert [(d["tokens"], d["truncated"]) for d in scores.diagnostics][:3] == [(5, False), (5, False), (2, False)]


@pytest.mark.parametrize("side", [224, 32])
@pytest.mark.parametrize(
    ("height", "width"),
    [
        (224, 224),
        (512, 512),
        (500, 300),
        (300, 500),
        (224, 100),
        (101, 224),
        (97, 64),
        (7, 5),
        (1, 1),
        (900, 60),
        (3, 2),
    ],
)
def test_the_longer_side_fits_and_the_rest_is_black(height: int, width: int, side: int) -> None:
    draws = torch.Generator().manual_seed(height * width)
    images = (torch.rand(1, 3, height, width, generator=draws) * 255).round() / 255
    preprocessing = Preprocessing(side, (side, side), tuple(MEAN), tuple(STD), pads=True, keeps_fractions=True)  # type: ignore[arg-type]
    found = preprocessing(images)
    assert found.shape == (1, 3, side, side)
    torch.testing.assert_close(found.double(), padded(images, side), atol=2e-5, rtol=0)


@pytest.mark.parametrize("width", [31, 2])
def test_extreme_images_keep_a_pixel(width: int) -> None:
    """As Pillow resizes floats. The published transform would make the narrower one 0 pixels wide, and torch resizes to
    one pixel with other weights than to two."""
    image = torch.rand(1, 3, 900, width, generator=torch.Generator().manual_seed(width))
    image = (image * 255).round() / 255
    preprocessing = Preprocessing(32, (32, 32), (0.0,) * 3, (1.0,) * 3, pads=True, keeps_fractions=True)  # type: ignore[arg-type]
    found = preprocessing(image)[0]
    for channel, before in zip(found, image[0], strict=True):
        column = np.array(Image.fromarray(before.numpy()).resize((1, 32), Image.Resampling.BICUBIC))
        torch.testing.assert_close(channel[:, 15:16], torch.from_numpy(column), atol=1e-5, rtol=0)
    assert found[..., :15].abs().max() == found[..., 16:].abs().max() == 0


@pytest.mark.parametrize("options", [{}, {"scale": "percent", "batch": 2}, {"text_cache": 1}], ids=str)
def test_contract(
    tiny: Path, contract: Contract, images: Tensor, prompts: list[Prompt], options: dict[str, Any]
) -> None:
    images[4, 0, 0, 0] = torch.nan
    contract(build(tiny, **options), images, prompts)
    contract(build(tiny, every=2, **options), torch.stack([images, images, images.flip(0)], 1), prompts)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_other_precisions(tiny: Path, images: Tensor, prompts: list[Prompt], dtype: str) -> None:
    found, expected = build(tiny, dtype=dtype).score(images, prompts).values, build(tiny).score(images, prompts).values
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0)
    assert not found.equal(expected)


def test_examples_and_provenance(tiny: Path) -> None:
    reward = build(tiny)
    for example in reward.examples():
        assert not reward.score(example.media[None], [example.prompt]).missing.any()
    assert reward.provenance() == {"model": str(tiny), "file": WEIGHTS}
    assert reward.range == HpsReward.range == (-1, 1)


# -- the file ---------------------------------------------------------------------------------------------------------


def message(directory: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(directory, **options)
    text = str(caught.value)
    assert text.startswith("reward hpsv2: option ")
    assert "\n" not in text
    return text


def test_the_published_names(tiny: Path) -> None:
    """Of the CLIP class in hpsv2/src/open_clip/model.py and transformer.py, written down without numbers of layers."""
    block = ("attn.in_proj_bias", "attn.in_proj_weight", "attn.out_proj.bias", "attn.out_proj.weight", "ln_1.bias",
             "ln_1.weight", "ln_2.bias", "ln_2.weight", "mlp.c_fc.bias", "mlp.c_fc.weight", "mlp.c_proj.bias",
             "mlp.c_proj.weight")  # fmt: skip
    expected = {
        "logit_scale", "positional_embedding", "text_projection", "token_embedding.weight", "ln_final.bias",
        "ln_final.weight", "visual.class_embedding", "visual.positional_embedding", "visual.proj",
        "visual.conv1.weight", "visual.ln_pre.bias", "visual.ln_pre.weight", "visual.ln_post.bias",
        "visual.ln_post.weight",
        *(f"{side}transformer.resblocks.N.{part}" for side in ("", "visual.") for part in block),
    }  # fmt: skip
    assert {re.sub(r"\.\d+\.", ".N.", name) for name in tensors_of(tiny)} == expected


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda t: t.pop("visual.proj"), "missing: visual.proj"),
        (lambda t: t.update({"visual.porj": t.pop("visual.proj")}), "missing: visual.proj; unexpected: visual.porj"),
        (lambda t: t.update({"vision_model.norm": torch.zeros(2)}), "unexpected: vision_model.norm"),
        (lambda t: t.update({"positional_embedding": torch.zeros(50, 16)}), "wrong shape: positional_embedding"),
        (lambda t: t.update({"logit_scale": torch.zeros(1)}), "wrong shape: logit_scale"),
    ],
)
def test_weights_that_do_not_match(copy: Path, edit: Callable[[dict[str, Tensor]], object], problem: str) -> None:
    tensors = tensors_of(copy)
    edit(tensors)
    torch.save({"state_dict": tensors}, copy / WEIGHTS)
    assert message(copy).endswith(f"the weights in {copy / WEIGHTS} do not match the model; {problem}")


def test_foreign_and_damaged_files(copy: Path) -> None:
    torch.save({"state_dict": {"a": 1}}, copy / WEIGHTS)
    assert message(copy).endswith("is not a mapping of names to tensors")
    torch.save({"epoch": 3}, copy / WEIGHTS)
    assert message(copy).endswith("is not a mapping of names to tensors")
    (copy / WEIGHTS).write_bytes(b"noise")
    assert "cannot be read: " in message(copy)
    (copy / WEIGHTS).unlink()
    assert f"{copy / WEIGHTS} does not exist" in message(copy)
    assert "no such directory: /no/where" in message(copy, model="/no/where")


def test_a_file_and_safetensors(copy: Path, images: Tensor, prompts: list[Prompt]) -> None:
    expected = build(copy).score(images, prompts).values
    assert build(copy, model=str(copy / WEIGHTS)).score(images, prompts).values.equal(expected)
    save_file(tensors_of(copy), copy / "converted.safetensors")
    found = build(copy, model=str(copy / "converted.safetensors"))
    assert found.score(images, prompts).values.equal(expected)
    assert found.provenance()["file"] == "converted.safetensors"


def test_half_precision_files_are_read_in_float32(copy: Path) -> None:
    torch.save({"state_dict": {name: value.half() for name, value in tensors_of(copy).items()}}, copy / WEIGHTS)
    assert {p.dtype for p in build(copy).encoder._model.parameters()} == {torch.float32}


def test_architectures(copy: Path) -> None:
    assert "unknown open_clip model ViT-H-41; nearest: ViT-H-16, ViT-H-14" in message(copy, architecture="ViT-H-41")
    assert "architecture: no such file: /no/where.json" in message(copy, architecture="/no/where.json")
    assert "roberta-ViT-B-32 is not a CLIP model" in message(copy, architecture="roberta-ViT-B-32")
    path = copy / "architecture.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({"model_cfg": config}))
    build(copy)
    path.write_text(json.dumps(config | {"width": 3}))
    assert f"option architecture: {path} cannot be built" in message(copy)
    path.write_text("[]")
    assert "architecture.json" in message(copy)


def test_the_default_is_the_published_architecture() -> None:
    config = open_clip.get_model_config(HpsOptions().architecture)
    vision, text = config["vision_cfg"], config["text_cfg"]
    assert (vision["width"], vision["layers"], vision["head_width"], vision["patch_size"]) == (1280, 32, 80, 14)
    assert (text["width"], text["heads"], text["layers"], text["context_length"]) == (1024, 16, 24, 77)
    assert (config["embed_dim"], vision["image_size"], config.get("quick_gelu", False)) == (1024, 224, False)


def test_what_is_asked_of_the_hub(tiny: Path, hub: Callable[[Path], list[Any]]) -> None:
    asked = hub(tiny)
    options = HpsOptions(revision="v1", architecture=str(tiny / "architecture.json"))
    reward = HpsReward(options, device=torch.device("cpu"))
    assert asked == [("xswu/HPSv2", "v1", [WEIGHTS])]
    assert reward.provenance() == {"model": "xswu/HPSv2", "file": WEIGHTS, "revision": "0123abc"}


def test_loading_leaves_the_random_state_alone(tiny: Path) -> None:
    before = torch.get_rng_state()
    build(tiny)
    assert torch.get_rng_state().equal(before)
    assert math.isfinite(build(tiny).encoder.logit_scale)
