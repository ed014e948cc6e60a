"""What is particular to image-to-video; `test_families` compares it with its pipeline."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from PIL import Image
from pydantic import ValidationError
from torch import nn
from torch.testing import assert_close

from dgpo_cli.main import main
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.errors import UserError
from dgpo_core.media.conditions import condition_medium
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_kit.drawing import randomize
from dgpo_lab.planning.plan import make_plan, measure_model
from dgpo_wan.i2v.backbone import ImageToVideoBackbone
from dgpo_wan.i2v.options import ImageToVideoOptions
from dgpo_wan.i2v.tiny import make_tiny_i2v
from dgpo_wan.original import NAMES
from dgpo_wan.testing import make_tiny_checkpoint
from tests.families.proof_published import adapted_layers, meta_model, operations, parameters, section, trained_steps
from tests.trained import added_weights, changed_weights

SIZE = (32, 48)
EXAMPLE = Path(__file__).parents[3] / "examples" / "wan21-i2v-pickscore.yaml"
PUBLISHED = "Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny checkpoint of a model, made once."""
    make: Any = make_tiny_i2v
    return cache(lambda model: make(tmp_path_factory.mktemp("i2v") / model, model=model, layers=1))


def build(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> ImageToVideoBackbone:
    given = ImageToVideoOptions(**({"frames": 5} | (options or {})))
    return ImageToVideoBackbone(section("wan-i2v", checkpoint, **settings), given, device=torch.device("cpu"))


def medium(color: str, size: tuple[int, int] = (40, 30)) -> ConditionMedium:
    content = BytesIO()
    Image.new("RGB", size, color).save(content, "PNG")
    return condition_medium(content.getvalue())


def prompt(*media: ConditionMedium, **more: Any) -> Prompt:
    return Prompt("a red circle", media=media, size=SIZE, **more)


# -- prompts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media", "problem"),
    [
        ((), "has no media, but the backbone wan-i2v requires one condition image: give its path as `media`"),
        ((medium("red"), medium("blue")), "has 2 media, but .* requires one condition image: keep the first frame"),
        ((ConditionMedium("video", "0" * 64, "{v}.mp4"),), r"has a video \(\{v\}.mp4\), but .*: save the first frame"),
    ],
    ids=["none", "two", "video"],
)
def test_prompts_have_one_condition_image(
    tiny: Callable[[str], Path], media: tuple[ConditionMedium, ...], problem: str
) -> None:
    backbone = build(tiny("2.2-5B"))
    backbone.check_prompts([prompt(medium("red")), backbone.example(SIZE)])
    with pytest.raises(UserError, match=f"^p.jsonl:2: the prompt {problem}"):
        backbone.check_prompts([prompt(medium("red")), prompt(*media, origin="p.jsonl:2")])


def test_an_image_is_encoded_once_and_is_in_both_branches(tiny: Callable[[str], Path]) -> None:
    backbone = build(tiny("2.1"))
    count = 0

    def counted(*_: Any) -> None:
        nonlocal count
        count += 1

    backbone.pipeline.image_encoder.register_forward_pre_hook(counted)
    red, blue = prompt(medium("red")), prompt(medium("blue"))
    rows = backbone.encode([red, blue, replace(red, text="green")]).tensors
    assert count == 2
    for name in ("condition", "image_embeds"):
        assert rows[name][0].equal(rows[name][2])
        assert (rows[name][0] - rows[name][1]).abs().max() > 0.01
        assert backbone.unconditional([red]).tensors[name].equal(rows[name][:1])
    assert not rows["prompt_embeds"][0].equal(rows["prompt_embeds"][2])


def test_images_are_resized_as_the_pipeline_does_without_cropping(tiny: Callable[[str], Path]) -> None:
    """The whole image, whatever its proportions: red on the left, blue on the right."""
    backbone = build(tiny("2.2-A14B"), {"text_length": 8})
    wide, content = Image.new("RGB", (200, 20), "red"), BytesIO()
    wide.paste("blue", (100, 0, 200, 20))
    wide.save(content, "PNG")
    found = backbone.encode([prompt(condition_medium(content.getvalue()))]).tensors["condition"]
    video = torch.zeros(1, 3, 5, *SIZE)
    pixels = torch.tensor(wide.resize((SIZE[1], SIZE[0]), Image.Resampling.LANCZOS).get_flattened_data())
    video[:, :, 0] = pixels.view(*SIZE, 3).permute(2, 0, 1) / 127.5 - 1
    config = backbone.vae.config
    mean, std = (torch.tensor(n).view(1, -1, 1, 1, 1) for n in (config.latents_mean, config.latents_std))
    with torch.no_grad():
        assert_close(found, (backbone.vae.encode(video).latent_dist.mode() - mean) / std, atol=1e-5, rtol=0)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_one_frame_is_the_image_itself() -> None:
    with pytest.raises(ValidationError, match=r"1 frame is not possible: the first frame is the condition image; .* 5"):
        ImageToVideoOptions(frames=1)


def test_another_text_length_is_refused_where_text_would_become_image(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"backbone\.options\.text_length: 24 is not possible .*; allowed is 512$"):
        build(tiny("2.1"), {"text_length": 24})
    assert build(tiny("2.2-A14B"), {"text_length": 24}).rows()["prompt_embeds"] == (24, 16)


def test_text_to_video_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes 4 channels, but 12 are .* not image-to-video; .* set use: wan$"):
        build(make_tiny_checkpoint(tmp_path / "t2v"))


def test_wan_22_5b_is_published_as_text_to_video(tmp_path: Path) -> None:
    """Its index names WanPipeline, and either pipeline reads it."""
    directory = make_tiny_checkpoint(tmp_path / "5b", expand_timesteps=True)
    assert build(directory).first_frame


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"in_channels": 9}, "takes 9 channels, but 12 are latents, a mask of 4 .* it is not image-to-video$"),
        ({"pos_embed_seq_len": 34}, "takes a first and a last frame"),
        ({"image_dim": 8}, r"takes image embeddings of width 8 \(image_dim\), but image_encoder gives 16"),
    ],
)
def test_transformers_for_other_inputs_are_refused(
    tiny: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny("2.1"))
    pipeline.transformer = WanTransformer3DModel.from_config({**pipeline.transformer.config, **changes})
    pipeline.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=problem):
        build(tmp_path / "other")


def test_a_missing_image_encoder_is_named(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny("2.1"), image_encoder=None, image_processor=None)
    pipeline.save_pretrained(tmp_path / "without")
    with pytest.raises(UserError, match="but there is no image_encoder"):
        build(tmp_path / "without")


# -- Wan 2.2 5B --------------------------------------------------------------------------------------------------------


def test_the_first_frame_goes_straight_to_the_image_and_adds_no_loss(tiny: Callable[[str], Path]) -> None:
    """At every sigma; other frames do get a gradient, and in bfloat16 the image is kept in float32."""
    backbone = build(tiny("2.2-5B"), dtype="bfloat16")
    randomize(backbone)
    conditioning = backbone.encode([prompt(medium("red"))]).expand(3)
    condition = conditioning.tensors["condition"]
    assert condition.dtype == torch.float32
    noise = torch.randn(3, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0))
    x0 = torch.cat([condition, noise[:, :, 1:] / 2], 2)
    sigma = torch.tensor([1.0, 0.5, 0.01])
    x = (1 - sigma.view(3, 1, 1, 1, 1)) * x0 + sigma.view(3, 1, 1, 1, 1) * noise
    velocity = backbone.velocity(x, sigma, conditioning)
    assert_close(velocity[:, :, 0], (noise - x0)[:, :, 0], atol=1e-4, rtol=0)
    parameters = list(backbone.trainable().values())
    for frames, trains in ((velocity[:, :, :1], False), (velocity[:, :, 1:], True)):
        found = torch.autograd.grad(frames.square().sum(), parameters, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and bool(gradient.any()) for gradient in found) == trains


# -- the adapter -------------------------------------------------------------------------------------------------------


def test_diffusers_reads_the_original_names(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Of every linear layer in a block. It does not read those of the image's embedding from such files."""
    pipeline = WanImageToVideoPipeline.from_pretrained(tiny("2.1"))
    linear = [name for name, layer in pipeline.transformer.named_modules() if isinstance(layer, nn.Linear)]
    for name in linear:
        original = next(iter(NAMES.original_pairs({name: (torch.zeros(1, 1), torch.zeros(1, 1))})))
        assert list(convert_wan_transformer_to_diffusers({f"{original}.weight": 0})) == [f"{name}.weight"]
    targets = [name for name in linear if name.startswith("blocks.")]
    assert sum("add_" in name for name in targets) == 2
    backbone = build(tiny("2.1"), lora={"rank": 2, "alpha": 5, "targets": targets})
    randomize(backbone)
    assert backbone.adapter is not None
    backbone.adapter.save(tmp_path, "comfyui")
    before = copy.deepcopy(pipeline.transformer.state_dict())
    pipeline.load_lora_weights(tmp_path)
    pipeline.transformer.fuse_lora()
    pipeline.transformer.unload_lora()
    found, wanted = changed_weights(before, pipeline.transformer.state_dict()), added_weights(backbone)
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        assert_close(found[name].double(), change, atol=1e-6, rtol=0, msg=name)


# -- a run -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["2.1", "2.2-5B"])
def test_a_run_trains_and_samples_from_condition_images(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    model: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for color in ("red", "blue"):
        Image.new("RGB", (40, 30), color).save(f"{color}.png")
    prompts = [{"prompt": "a circle", "media": "red.png"}, {"prompt": "green", "media": "blue.png"}]
    Path("prompts.jsonl").write_text("".join(json.dumps(record) + "\n" for record in prompts))
    Path("text.jsonl").write_text(json.dumps({"prompt": "a circle"}) + "\n")
    Path("run.yaml").write_text(
        yaml.safe_dump({
            "run": {"name": "moving", "iterations": 2},
            "backbone": {
                "use": "wan-i2v", "checkpoint": str(tiny(model)), "lora": {"rank": 2, "alpha": 2},
                "options": {"frames": 5} | ({"text_length": 24} if model == "2.2-5B" else {}),
            },
            "prompts": {"train": "prompts.jsonl", "heldout": "prompts.jsonl"},
            "rollout": {"steps": 2, "group_size": 2, "groups": 1, "resolution": [16, 32], "guidance": 2.0},
            "rewards": [{"use": "motion"}],
            "timesteps": {"count": 1},
            "evaluation": {"every": 2, "at_start": False, "prompts": 1, "samples_per_prompt": 1, "many_step": None},
        })
    )  # fmt: skip

    def dgpo(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        return int(ended.value.code or 0)

    assert dgpo("train", "run.yaml") == 0
    record = json.loads(Path("runs/moving/metrics.jsonl").read_text().splitlines()[-1])
    assert record["change_norm"] > 0
    assert dgpo("sample", "runs/moving", "-p", "a circle", "--media", "red.png", "-n", "1", "--output", "out") == 0
    assert json.loads(Path("out/conditions.json").read_text())[0]["media"].startswith("media-")
    assert dgpo("train", "run.yaml", "--set", "prompts.train=text.jsonl", "--set", "run.name=other") == 2
    assert "text.jsonl:1: the prompt has no media, but the backbone wan-i2v requires" in capsys.readouterr().err


# -- the model without its weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "billions", "layers", "image", "shift"),
    [
        (PUBLISHED, 16.39, 400, (257, 1280), 3.0),
        ("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", 16.39, 400, (257, 1280), 5.0),
        ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", 14.29, 320, None, 3.0),
        ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", 5.00, 240, None, 5.0),
    ],
)
def test_published_models(name: str, billions: float, layers: int, image: tuple[int, int] | None, shift: float) -> None:
    meta = meta_model("wan-i2v", name, frames=81)
    assert parameters(meta) / 1e9 == pytest.approx(billions, abs=0.005)
    kinds = Counter(n.split(".", 2)[2] for n in adapted_layers(meta))
    assert sum(kinds.values()) == layers
    assert {"attn2.add_k_proj", "attn2.add_v_proj"} <= set(kinds) or image is None
    rows = meta.encode([Prompt("a", size=(480, 832))]).tensors
    assert (tuple(rows["image_embeds"].shape[1:]) if "image_embeds" in rows else None) == image
    frames, sides = (1, (30, 52)) if meta.first_frame else (21, (60, 104))
    assert tuple(rows["condition"].shape[2:]) == (frames, *sides)
    assert meta.latent_shape(480, 832)[1:] == (21, *sides)
    assert meta.schedule(480, 832, 10).shift == shift
    assert len(meta.others) == (1 if "A14B" in name else 0)


@pytest.mark.slow
def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m]; videos attend to themselves, to texts and to the image."""
    width, hidden, text, image, rank = 5120, 13824, 512, 257, 4
    video = 21 * 4 * 6
    adapted = width**2 + 2 * rank * width
    block = 6 * video * adapted + 2 * text * adapted + 2 * image * adapted + 2 * video * width * hidden
    attention = 2 * video * (video + text + image) * width
    ends = video * 36 * 4 * width + video * 64 * width + text * (4096 * width + width**2)
    ends += image * (1280**2 + 1280 * width) + 256 * width + 7 * width**2
    found = operations(meta_model("wan-i2v", PUBLISHED, frames=81), (64, 96))
    assert found == 2 * (40 * (block + attention) + ends)


# -- the example -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


def test_the_example_holds_the_published_settings(registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    options = ImageToVideoOptions.model_validate(config.backbone.options)
    assert (options.frames, config.rollout.steps, config.rollout.guidance, config.evaluation.steps) == (5, 10, 5.0, 28)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha, config.optimizer.learning_rate) == (64, 128, 1e-4)
    assert (config.rollout.group_size, config.rollout.groups) == (16, 48)
    model = meta_model("wan-i2v", PUBLISHED, frames=81)
    assert any(trained_steps(config, model.schedule(*config.rollout.height_width, config.rollout.steps)))


@pytest.mark.slow
def test_the_example_can_be_planned(registry: Registry) -> None:
    """16.4 thousand million parameters in two bytes; the text encoders come to the card to read prompts."""
    config = load_run_config(EXAMPLE, registry=registry)
    plan = make_plan(config, measure_model(config, registry), registry)
    assert plan.held["transformer"] == pytest.approx(32.8e9, rel=0.01)
    assert plan.peak / 2**30 < 79
