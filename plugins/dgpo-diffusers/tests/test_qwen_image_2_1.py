"""What is particular to Qwen-Image 2.1; `test_families` compares it with its pipeline."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImage21Pipeline
from torch import Tensor
from torch.testing import assert_close
from transformers import Qwen3VLProcessor

from dgpo_core.builtin.timesteps import SamplerSteps
from dgpo_core.config.pipeline import load_run_config
from dgpo_core.contracts import TimestepContext
from dgpo_core.errors import UserError
from dgpo_core.flow.schedules import sigmas as sampler_times
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Conditioning, Prompt
from dgpo_diffusers.checkpoint_check import Index
from dgpo_diffusers.families.qwen_image.backbone import QwenImageBackbone
from dgpo_diffusers.families.qwen_image.options import QwenImageOptions
from dgpo_diffusers.families.qwen_image_2_1.backbone import QwenImage21Backbone
from dgpo_diffusers.families.qwen_image_2_1.checks import suggested_times
from dgpo_diffusers.families.qwen_image_2_1.options import QwenImage21Options
from dgpo_diffusers.families.qwen_image_2_1.positions import own_positions
from dgpo_diffusers.families.qwen_image_2_1.tiny import make_tiny_qwen_image_2_1
from dgpo_lab.planning.meter import Meter
from dgpo_lab.planning.shapes import CPU
from dgpo_schemas.run import BackboneSection

PUBLISHED = "Qwen/Qwen-Image-2.1"
SIZE = (64, 96)
EXAMPLE = Path(__file__).parents[3] / "examples" / "qwen-image-2.1-pickscore.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_qwen_image_2_1(tmp_path_factory.mktemp("qwen") / "tiny")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    found = QwenImage21Pipeline.from_pretrained(checkpoint)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(scope="module")
def backbone(checkpoint: Path) -> QwenImage21Backbone:
    return build(checkpoint)


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry()


@pytest.fixture(scope="module")
def meta_model() -> Any:
    return QwenImage21Backbone.meta_model(section(PUBLISHED), QwenImage21Options())


def section(checkpoint: Path | str, **settings: Any) -> BackboneSection:
    settings.setdefault("lora", {"rank": 4, "alpha": 12})
    return BackboneSection(use="qwen-image-2.1", checkpoint=str(checkpoint), **settings)


def build(checkpoint: Path, options: dict[str, Any] | None = None, **settings: Any) -> QwenImage21Backbone:
    given = QwenImage21Options(**(options or {}))
    return QwenImage21Backbone(section(checkpoint, **settings), given, device=torch.device("cpu"))


def prompts(*texts: str, negative: str | None = None) -> list[Prompt]:
    return [Prompt(text, negative=negative, size=SIZE) for text in texts]


def noise(backbone: QwenImage21Backbone, count: int = 1) -> Tensor:
    return torch.randn(count, *backbone.latent_shape(*SIZE), generator=torch.Generator().manual_seed(0))


def edited(source: Path, target: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint with other values in one of its JSON files."""
    shutil.copytree(source, target)
    path = target / file
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    return target


# -- prompts -----------------------------------------------------------------------------------------------------------


def test_rows_are_the_states_before_the_final_norm_without_the_system_prompt(
    backbone: QwenImage21Backbone, pipeline: Any
) -> None:
    """transformers' last hidden state is behind the norm, which is another input."""
    row = backbone.encode(prompts("a red circle"))
    tokens = pipeline.processor.tokenizer(pipeline.prompt_template_t2i.format("a red circle"), return_tensors="pt")
    system = pipeline.prompt_template_t2i.split("<|im_start|>user")[0]
    start = len(pipeline.processor.tokenizer(system).input_ids)
    assert start == pipeline._drop_idx > 10
    seen: list[Tensor] = []
    norm = pipeline.text_encoder.model.language_model.norm
    with norm.register_forward_pre_hook(lambda module, given: seen.append(given[0])), torch.no_grad():
        normed = pipeline.text_encoder(**tokens, output_hidden_states=True).hidden_states[-1]
    assert row.lengths == {"prompt_embeds": (tokens.input_ids.shape[1] - start,)}
    assert_close(row.tensors["prompt_embeds"], seen[0][:, start:])
    assert (row.tensors["prompt_embeds"] - normed[:, start:]).abs().max() > 0.1


def test_padding_changes_nothing_and_would_without_mask_or_own_positions(
    backbone: QwenImage21Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = backbone.encode(prompts("a red circle", "two blue squares on the left"))
    x, sigma = noise(backbone).expand(2, -1, -1, -1), torch.full((2,), 0.7)

    def velocity(conditioning: Conditioning, count: int = 2) -> Tensor:
        with torch.no_grad():
            return backbone.velocity(x[:count], sigma[:count], conditioning)

    together, alone = velocity(both), velocity(both.rows([0]), 1)
    assert both.rows([0]).tensors["prompt_embeds"].shape[1] < both.tensors["prompt_embeds"].shape[1]
    assert_close(together[:1], alone, atol=2e-6, rtol=0)
    assert (velocity(Conditioning(both.tensors))[:1] - alone).abs().max() > 1e-2
    longest = both.lengths["prompt_embeds"][1]
    monkeypatch.setattr(
        "dgpo_diffusers.families.qwen_image_2_1.backbone.own_positions",
        lambda embedder, lengths, padded: own_positions(embedder, [longest] * len(lengths), padded),
    )
    misplaced = velocity(both)
    assert (misplaced[:1] - alone).abs().max() > 1e-3, "as in a batch of diffusers' pipeline"
    assert_close(misplaced[1:], together[1:], atol=0, rtol=0)


def test_positions_are_those_of_each_row_by_itself(pipeline: Any) -> None:
    """In the transformer's own positions, of a row that is as long as itself."""
    embedder, lengths, padded, image = pipeline.transformer.pos_embed, (2, 5, 3), 5, (1, 4, 6)

    def positions(text: int) -> Any:
        return embedder([image], torch.arange(text + 24) >= text, torch.device("cpu"))

    with own_positions(embedder, lengths, padded):
        found = positions(padded).unsqueeze(1)
    assert found.shape == (3, padded + 24, 1, 8)
    for row, length in zip(found[:, :, 0], lengths, strict=True):
        assert torch.equal(torch.cat([row[:length], row[padded:]]), positions(length))
    assert isinstance(positions(padded), Tensor), "only inside of the context"


def test_prompts_are_cut_where_users_are_told(checkpoint: Path) -> None:
    """The chat template around a prompt has eight tokens of Qwen3's vocabulary, and more letters here."""
    backbone = build(checkpoint, {"text_length": 64})
    template = backbone.encode(prompts("x")).lengths["prompt_embeds"][0] - 1
    room = 64 - template
    given = prompts(*("x" * (room + more) for more in (-1, 0, 1, 9)))
    encoded = backbone.encode(given)
    assert encoded.lengths["prompt_embeds"] == (63, 64, 64, 64)
    assert backbone.truncated_prompts(given) == ([2, 3], room)
    assert (encoded.tensors["prompt_embeds"][1] - encoded.tensors["prompt_embeds"][2]).abs().max() > 0.1


def test_guidance_leads_away_from_a_space(backbone: QwenImage21Backbone) -> None:
    """Which the pipeline encodes in the place of an empty text."""
    space = backbone.encode(prompts(" ")).tensors["prompt_embeds"]
    for negative in (None, "", " "):
        found = backbone.unconditional(prompts("a red circle", negative=negative))
        assert torch.equal(found.tensors["prompt_embeds"], space)


# -- times, sizes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "shift"), [(512, 1.714), (1024, 2.001)])
def test_times_of_the_published_model(meta_model: Any, side: int, shift: float) -> None:
    """A token is 16x16 pixels, though sides are multiples of 32; the last time is 0.02."""
    schedule = meta_model.schedule(side, side, 10)
    assert (schedule.grid, schedule.terminal, schedule.first) == ("even", 0.02, 1.0)
    assert schedule.shift == pytest.approx(shift, abs=1e-3)


def test_times_that_the_checkpoint_suggests(checkpoint: Path, tmp_path: Path) -> None:
    """For their number of steps, as in diffusers' pipeline; for others, evenly spaced ones."""
    listed = [0.98, 0.6, 0.15]
    directory = edited(checkpoint, tmp_path / "listed", "model_index.json", sample_sigmas=listed)
    backbone, pipeline = build(directory), QwenImage21Pipeline.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a", height=64, width=96, num_inference_steps=7, output_type="latent")
    times = sampler_times(3, backbone.schedule(*SIZE, 3))
    assert_close(times.float(), pipeline.scheduler.sigmas)
    assert backbone.schedule(*SIZE, 4) == build(checkpoint).schedule(*SIZE, 4)
    for wrong in ([0.5, 0.7], [1.2, 0.5], [], ["a"], 3):
        with pytest.raises(UserError, match=r"sample_sigmas is .*; allowed is null, or a list of descending numbers"):
            suggested_times(Index(Path("model_index.json"), {"sample_sigmas": wrong}))


def test_bfloat16_rounds_times(checkpoint: Path, backbone: QwenImage21Backbone) -> None:
    """0.901 and 0.903 are one time to the transformer, and two in float32."""
    rounded = build(checkpoint, dtype="bfloat16")
    times = torch.tensor([0.901, 0.903])
    with torch.no_grad():
        same, different = (
            model.velocity(noise(model).expand(2, -1, -1, -1), times, model.encode(prompts("a")).expand(2))
            for model in (rounded, backbone)
        )
    assert same[0].equal(same[1])
    assert (different[0] - different[1]).abs().max() > 1e-5


def test_possible_sides(backbone: QwenImage21Backbone) -> None:
    assert backbone.latent_shape(64, 96) == (4, 4, 6)
    with pytest.raises(UserError, match="multiples of 32 from 32 to 16384; the nearest is 64x64"):
        backbone.latent_shape(64, 72)


def test_transparent_pixels_are_white(backbone: QwenImage21Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth channel is alpha: -1 transparent, 1 opaque."""
    pixels = torch.linspace(-1, 1, 4 * 64 * 96).view(1, 4, 1, 64, 96)
    pixels[:, 3, :, :20], pixels[:, 3, :, 20:40], pixels[:, 3, :, 40:] = -1, 1, 0.5
    monkeypatch.setattr(backbone.vae, "decode", lambda z, return_dict: (pixels,))
    found = backbone.decode(noise(backbone))
    color = (pixels[:, :3, 0] + 1) / 2
    assert torch.equal(found[:, :, :20], torch.ones(1, 3, 20, 96))
    assert_close(found[:, :, 20:40], color[:, :, 20:40])
    assert_close(found[:, :, 40:], 0.75 * color[:, :, 40:] + 0.25)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_two_models_are_told_apart(checkpoint: Path) -> None:
    as_before = BackboneSection(use="qwen-image", checkpoint=str(checkpoint))
    with pytest.raises(
        UserError, match=r"contains a QwenImage21Pipeline; .* for this checkpoint, set use: qwen-image-2\.1$"
    ):
        QwenImageBackbone(as_before, QwenImageOptions(), device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("vae/config.json", {"latents_std": [1.0, 2.0]}, "the length of latents_std is 2; allowed is 4 with"),
        ("vae/config.json", {"latents_mean": [1.0] * 3}, "the length of latents_mean is 3; allowed is 4 with"),
    ],
)
def test_components_that_do_not_match_are_refused(
    checkpoint: Path, tmp_path: Path, file: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        build(edited(checkpoint, tmp_path / "other", file, **changes))


def test_a_processor_without_its_vocabulary_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """Also one that knows more tokens than the text encoder."""
    directory = shutil.copytree(checkpoint, tmp_path / "other")
    (directory / "processor" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"other/processor has no vocabulary: tokenizer\.json or vocab\.json"):
        build(directory)
    larger = shutil.copytree(checkpoint, tmp_path / "larger")
    tokenizer = QwenImage21Pipeline.from_pretrained(checkpoint).processor.tokenizer
    tokenizer.add_tokens(["one", "more"])
    tokenizer.save_pretrained(larger / "processor")
    with pytest.raises(UserError, match=r"processor knows \d+ tokens, but text_encoder \d+: they do not belong"):
        build(larger)


def test_a_missing_library_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers names it: Qwen3-VL's processor requires torchvision."""
    raised = ImportError("\nX requires the Torchvision library but it was not found. See the page\nof it:")

    def fail(*given: Any, **settings: Any) -> None:
        raise raised

    monkeypatch.setattr(Qwen3VLProcessor, "from_pretrained", fail)
    with pytest.raises(UserError, match=r"/processor cannot be loaded: X requires the Torchvision .* not found$"):
        build(checkpoint)


# -- the model without its weights -------------------------------------------------------------------------------------


def test_the_published_model_has_its_size_and_its_layers_are_adapted(meta_model: Any) -> None:
    """Four projections of 32 blocks, and nothing outside of attention."""
    trained = meta_model.trainable()
    adapted = {id(parameter) for parameter in trained.values()}
    count = sum(p.numel() for p in meta_model.module.parameters() if id(p) not in adapted)
    sizes = {n: sum(p.numel() for p in part.parameters()) / 1e9 for n, part in meta_model.components().items()}
    assert count / 1e9 == pytest.approx(7.12, abs=0.005)
    assert sizes["text encoders"] == pytest.approx(8.77, abs=0.005)
    assert sizes["autoencoder"] == pytest.approx(0.338, abs=0.0005)
    bound = {n.split(".lora_")[0] for n in trained}
    assert Counter(n.split(".")[0] for n in bound) == {"transformer_blocks": 32 * 4}
    assert {n.split(".", 2)[2] for n in bound} == {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"}
    assert meta_model.encode(prompts("a")).tensors["prompt_embeds"].shape == (1, 512, 4096)
    assert meta_model.latent_shape(512, 512) == (64, 32, 32)
    assert meta_model.pipeline.processor is None


def test_operations_are_those_of_its_layers() -> None:
    """2 n m l of each product of [l, n] with [n, m], and of attention: of the text to itself, of the image to both. Two
    times are embedded, that of the image and 0 of the text."""
    meta_model = QwenImage21Backbone.meta_model(section(PUBLISHED), QwenImage21Options())
    meta_model.network.transformer_blocks = meta_model.network.transformer_blocks[:3]  # all are alike
    conditioning = meta_model.encode(prompts("a"))
    width, image, text, rank = 4096, 1024, 512, 4
    both = image + text
    projections = 4 * width**2 + 4 * rank * 2 * width
    block = both * (projections + 9 * width**2) + 2 * (text**2 + image * both) * width
    ends = image * 64 * width + both * width * 64 + text * 2 * width**2
    expected = 3 * block + ends + 2 * (256 * width + width**2 + 4 * width**2 + width**2)
    with Meter("here", meta_model.network, device=CPU) as meter, meter.lap() as lap, torch.no_grad():
        x = torch.zeros((1, *meta_model.latent_shape(512, 512)))
        rows = torch.zeros(conditioning.tensors["prompt_embeds"].shape)
        meta_model.velocity(x, torch.zeros(1), Conditioning({"prompt_embeds": rows}))
    assert lap.operations == 2 * expected


# -- the example -------------------------------------------------------------------------------------------------------


def test_the_example_holds_the_settings_that_it_names(meta_model: Any, registry: Registry) -> None:
    config = load_run_config(EXAMPLE, registry=registry)
    assert (config.rollout.guidance, config.evaluation.guidance, config.objective.kl_cfg) == (1.0, 1.0, 1.0)
    assert (config.backbone.lora.rank, config.backbone.lora.alpha, config.optimizer.learning_rate) == (64, 128, 3e-4)
    assert (config.rollout.group_size, config.rollout.groups, config.rollout.steps) == (16, 48, 10)
    schedule = meta_model.schedule(*config.rollout.height_width, config.rollout.steps)
    sigmas = sampler_times(config.rollout.steps, schedule)
    t_min, t_max = config.training_range(schedule.shift)
    assert ((sigmas >= t_min) & (sigmas <= t_max)).tolist() == [i < 7 for i in range(11)], "the first 7 of 10 steps"
    context = TimestepContext(sigmas, t_min, t_max, schedule.shift, 1, config.run.iterations)
    SamplerSteps(None).check(context, config.timesteps.count)
