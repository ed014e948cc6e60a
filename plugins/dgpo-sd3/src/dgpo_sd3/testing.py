"""Help for tests: a tiny, random, complete Stable Diffusion 3 checkpoint, made offline in about a second; and what a
LoRA adds to each weight, by its definition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import ascii_lowercase, digits, punctuation

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from dgpo_core.contracts import Backbone

__all__ = ["added_weights", "changed_weights", "make_tiny_checkpoint", "randomise"]

CHARACTERS = ascii_lowercase + digits + punctuation


def make_tiny_checkpoint(
    directory: str | Path,
    *,
    layers: int = 2,
    width: int = 16,
    latent_channels: int = 4,
    vae_factor: int = 4,
    pos_embed_max_size: int = 8,
    text_width: int = 16,
    text_tokens: int = 32,
    t5: bool = False,
    shift: float = 3.0,
    seed: int = 0,
) -> Path:
    """Write a random SD3 pipeline with the parts of SD3.5-M: query-key norms, dual attention in the first block.

    The transformer has `layers` blocks of `width` (two heads) on patches of 2x2 latents; pictures of up to
    2 * vae_factor * pos_embed_max_size pixels a side (64 by default; a power of two for vae_factor). Prompts are read
    letter by letter, `text_tokens` of them. Without `t5` the third text encoder is absent. The same arguments give
    the same weights, and the global random state is left alone. Returns the directory as a Path.
    """
    directory = Path(directory)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        _pipeline(
            layers, width, latent_channels, vae_factor, pos_embed_max_size, text_width, text_tokens, t5, shift
        ).save_pretrained(directory)
    return directory


def _pipeline(
    layers: int,
    width: int,
    latent_channels: int,
    vae_factor: int,
    pos_embed_max_size: int,
    text_width: int,
    text_tokens: int,
    t5: bool,
    shift: float,
) -> StableDiffusion3Pipeline:
    transformer = SD3Transformer2DModel(
        sample_size=pos_embed_max_size * 2,
        patch_size=2,
        in_channels=latent_channels,
        out_channels=latent_channels,
        num_layers=layers,
        attention_head_dim=width // 2,
        num_attention_heads=2,
        joint_attention_dim=2 * text_width,
        caption_projection_dim=width,
        pooled_projection_dim=2 * text_width,
        pos_embed_max_size=pos_embed_max_size,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    levels = vae_factor.bit_length()
    vae = AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=latent_channels,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=2 * vae_factor * pos_embed_max_size,
        scaling_factor=1.5305,
        shift_factor=0.0609,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    tokenizers = [_clip_tokenizer(text_tokens) for _ in range(2)]
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        vae=vae.eval(),
        text_encoder=_clip_encoder(tokenizers[0], text_width, text_tokens),
        tokenizer=tokenizers[0],
        text_encoder_2=_clip_encoder(tokenizers[1], text_width, text_tokens),
        tokenizer_2=tokenizers[1],
        text_encoder_3=_t5_encoder(2 * text_width) if t5 else None,
        tokenizer_3=T5TokenizerFast(vocab=_t5_pieces(), extra_ids=0) if t5 else None,
    )


def _clip_tokenizer(text_tokens: int) -> CLIPTokenizer:
    names = ["<|startoftext|>", "<|endoftext|>", *CHARACTERS, *(f"{c}</w>" for c in CHARACTERS)]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=text_tokens)


def _clip_encoder(tokenizer: CLIPTokenizer, text_width: int, text_tokens: int) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=text_width,
        intermediate_size=2 * text_width,
        projection_dim=text_width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=text_tokens,
        # Random weights of the usual size hardly tell prompts apart; these do.
        initializer_factor=3.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config).eval()


def _t5_pieces() -> list[tuple[str, float]]:
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return [*special, *((piece, -2.0) for piece in ("▁", *CHARACTERS))]


def _t5_encoder(width: int) -> T5EncoderModel:
    config = T5Config(vocab_size=len(_t5_pieces()), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def randomise(backbone: Backbone) -> None:
    """Trained weights that are not zero anywhere, the same each time."""
    with torch.no_grad():
        for i, parameter in enumerate(backbone.trainable().values()):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))


def added_weights(backbone: Backbone) -> dict[str, Tensor]:
    """alpha / rank * B A of every layer in float64, from the trained parameters of a LoRA; by the names of weights."""
    scale = backbone.section.lora.alpha / backbone.section.lora.rank
    parameters = {name: p.detach().double() for name, p in backbone.trainable().items()}
    return {
        name.replace("lora_A.default.", ""): scale * parameters[name.replace("lora_A", "lora_B")] @ down
        for name, down in parameters.items()
        if "lora_A" in name
    }


def changed_weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was added to every weight that is not as before, in float64."""
    assert before.keys() == after.keys()
    found = {name: after[name].double() - before[name].double() for name in before}
    return {name: change for name, change in found.items() if bool(change.any())}
