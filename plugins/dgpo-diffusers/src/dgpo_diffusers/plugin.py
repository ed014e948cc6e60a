"""Plugin declarations of dgpo-diffusers. Do not import torch or diffusers here."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Component

__all__ = ["dgpo_backbones"]

dgpo_contract = 3


@hookimpl
def dgpo_backbones() -> Sequence[Component]:
    """Declare the backbones of this distribution."""
    return [
        Component(
            name="flux",
            summary="FLUX.1 (dev and schnell) through diffusers, LoRA through peft",
            implementation="dgpo_diffusers.families.flux.backbone:FluxBackbone",
            options="dgpo_diffusers.families.flux.options:FluxOptions",
            tiny="dgpo_diffusers.families.flux.tiny:make_tiny_flux",
        ),
        Component(
            name="flux2-klein",
            summary="FLUX.2 klein (base and distilled) through diffusers",
            implementation="dgpo_diffusers.families.flux2_klein.backbone:Flux2KleinBackbone",
            options="dgpo_diffusers.families.flux2_klein.options:Flux2KleinOptions",
            tiny="dgpo_diffusers.families.flux2_klein.tiny:make_tiny_flux2_klein",
        ),
        Component(
            name="ltx-video",
            summary="LTX-Video through diffusers, LoRA through peft",
            implementation="dgpo_diffusers.families.ltx_video.backbone:LTXVideoBackbone",
            options="dgpo_diffusers.families.ltx_video.options:LTXVideoOptions",
            tiny="dgpo_diffusers.families.ltx_video.tiny:make_tiny_ltx_video",
        ),
        Component(
            name="lumina2",
            summary="Lumina-Image 2.0 through diffusers, LoRA through peft",
            implementation="dgpo_diffusers.families.lumina2.backbone:Lumina2Backbone",
            options="dgpo_diffusers.families.lumina2.options:Lumina2Options",
            tiny="dgpo_diffusers.families.lumina2.tiny:make_tiny_lumina2",
        ),
        Component(
            name="qwen-image",
            summary="Qwen-Image through diffusers, LoRA through peft",
            implementation="dgpo_diffusers.families.qwen_image.backbone:QwenImageBackbone",
            options="dgpo_diffusers.families.qwen_image.options:QwenImageOptions",
            tiny="dgpo_diffusers.families.qwen_image.tiny:make_tiny_qwen_image",
        ),
        Component(
            name="qwen-image-2.1",
            summary="Qwen-Image 2.1 through diffusers, LoRA through peft",
            implementation="dgpo_diffusers.families.qwen_image_2_1.backbone:QwenImage21Backbone",
            options="dgpo_diffusers.families.qwen_image_2_1.options:QwenImage21Options",
            tiny="dgpo_diffusers.families.qwen_image_2_1.tiny:make_tiny_qwen_image_2_1",
        ),
        Component(
            name="sana",
            summary="SANA through diffusers, LoRA through peft",
            implementation="dgpo_diffusers.families.sana.backbone:SanaBackbone",
            options="dgpo_diffusers.options:DiffusersOptions",
            tiny="dgpo_diffusers.families.sana.tiny:make_tiny_sana",
        ),
        Component(
            name="sd",
            summary="Stable Diffusion 1.5 and 2.1 through diffusers",
            implementation="dgpo_diffusers.families.sd.backbone:SDBackbone",
            options="dgpo_diffusers.options:DiffusersOptions",
            tiny="dgpo_diffusers.families.sd.tiny:make_tiny_sd",
        ),
        Component(
            name="sdxl",
            summary="Stable Diffusion XL through diffusers, LoRA through peft",
            implementation="dgpo_diffusers.families.sdxl.backbone:SDXLBackbone",
            options="dgpo_diffusers.options:DiffusersOptions",
            tiny="dgpo_diffusers.families.sdxl.tiny:make_tiny_sdxl",
        ),
        Component(
            name="z-image",
            summary="Z-Image and Z-Image-Turbo through diffusers",
            implementation="dgpo_diffusers.families.z_image.backbone:ZImageBackbone",
            options="dgpo_diffusers.families.z_image.options:ZImageOptions",
            tiny="dgpo_diffusers.families.z_image.tiny:make_tiny_z_image",
        ),
    ]
