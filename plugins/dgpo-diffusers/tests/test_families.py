"""Every family against diffusers' own pipeline, on tiny random checkpoints: latents, images, adapters, contract.

A family is added by one `Family`. What is particular to it is tested beside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.flow import schedules
from dgpo_core.types import Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_diffusers.flux import FluxBackbone
from dgpo_diffusers.flux_options import FluxOptions
from dgpo_diffusers.options import DiffusersOptions
from dgpo_diffusers.sdxl import SDXLBackbone
from dgpo_diffusers.tiny import make_tiny_flux, make_tiny_sdxl
from dgpo_kit.contracts import check_backbone
from dgpo_kit.drawing import draw, randomize
from dgpo_schemas.sections.backbone import BackboneSection
from dgpo_sd3.backbone import SD3Backbone
from dgpo_sd3.options import SD3Options
from dgpo_sd3.testing import make_tiny_checkpoint as make_tiny_sd3
from dgpo_wan.backbone import WanBackbone
from dgpo_wan.options import WanOptions
from dgpo_wan.testing import make_tiny_checkpoint as make_tiny_wan

TEXTS = ["a red circle", "two blue squares, left", "green"]
SIZES = [(32, 48), (64, 32)]
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of guidance: by which arguments the pipeline has it, and by which options and guidance a run."""

    pipeline: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 1.0
    negative: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Family:
    """What a family is proven with.

    kind, options: its class and the class of its options, with values; make: writes its tiny checkpoint into a
    directory; call: arguments of the pipeline in every call; cases: kinds of guidance by name; packed, unpacked: the
    backbone's latents [B, ...] to those that the pipeline takes, and those that it gives back, with the shape that
    they have here; sigmas: the pipeline's scheduler, after a call, to its sigmas as dgpo counts them, 0 at the end;
    impossible: a size that it cannot draw; load: arguments of `load_lora_weights`; tolerance: of images; quick:
    values of options with which it is quicker, where images do not matter; traps: mistakes that raise nothing, as
    changes of what the network is given.
    """

    kind: type[DiffusersBackbone]
    options: Any
    make: Callable[[Path], Path]
    values: Mapping[str, Any]
    call: Mapping[str, Any]
    cases: Mapping[str, Case]
    packed: Callable[[Tensor], Tensor] = lambda latents: latents
    unpacked: Callable[[Tensor, tuple[int, ...]], Tensor] = lambda latents, shape: latents
    sigmas: Callable[[Any], Tensor] = lambda scheduler: scheduler.sigmas
    impossible: tuple[int, int] = (32, 45)
    load: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    quick: Mapping[str, Any] = field(default_factory=dict)
    traps: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)


CFG = {"plain": Case(pipeline={"guidance_scale": 1.0}), "cfg": Case(pipeline={"guidance_scale": 4.5}, guidance=4.5)}
NEGATIVE = Case(pipeline={"guidance_scale": 3.0, "negative_prompt": "blur"}, guidance=3.0, negative="blur")
EMPTY = Case(pipeline={"guidance_scale": 3.0, "negative_prompt": ""}, guidance=3.0, negative="")
WAN: dict[str, Any] = {
    "kind": WanBackbone,
    "options": WanOptions,
    "values": {"frames": 9, "text_length": 24},
    "call": {"num_frames": 9, "max_sequence_length": 24},
    "tolerance": 5e-4,  # sums of convolutions depend on batch and processor
}
FLUX: dict[str, Any] = {
    "kind": FluxBackbone,
    "options": FluxOptions,
    "packed": lambda latents: FluxPipeline._pack_latents(latents, *latents.shape),
    "unpacked": lambda tokens, shape: FluxPipeline._unpack_latents(tokens, *shape[1:], vae_scale_factor=1),
    "quick": {"text_length": 16},
}
TRUE = {"true_cfg_scale": 3.0}

FAMILIES = {
    "sd3": Family(
        kind=SD3Backbone,
        options=SD3Options,
        make=lambda directory: make_tiny_sd3(directory, t5=True),
        values={"text_length": 16},
        call={"max_sequence_length": 16},
        cases=CFG | {"negative": NEGATIVE},
    ),
    "sdxl": Family(
        kind=SDXLBackbone,
        options=DiffusersOptions,
        make=make_tiny_sdxl,
        values={},
        call={},
        cases=CFG | {"negative": NEGATIVE, "empty": EMPTY},
        sigmas=lambda scheduler: scheduler.sigmas / (1 + scheduler.sigmas),
        tolerance=1e-4,  # latents of about 12, of which the autoencoder sees what is left after its norms
    ),
    "wan": Family(make=make_tiny_wan, cases=CFG | {"negative": NEGATIVE}, **WAN),
    "wan, two experts": Family(
        make=lambda directory: make_tiny_wan(directory, boundary=0.8),
        cases={"cfg": CFG["cfg"]},
        **WAN | {"values": WAN["values"] | {"expert": "low"}},
        load={"load_into_transformer_2": True},
    ),
    # Prompts as long as the checkpoints' own, which the pipeline has to be told of schnell alone.
    "flux": Family(
        make=make_tiny_flux,
        values={},
        call={},
        cases={
            "plain": Case(),
            "embedded": Case(pipeline={"guidance_scale": 1.5}, options={"embedded_guidance": 1.5}),
            "empty": Case(pipeline=TRUE | {"negative_prompt": ""}, guidance=3.0),
            "negative": Case(pipeline=TRUE | {"negative_prompt": "blur"}, guidance=3.0, negative="blur"),
        },
        traps={
            "fewer text tokens": lambda given: {
                "encoder_hidden_states": given["encoder_hidden_states"][:, :256],
                "txt_ids": given["txt_ids"][:256],
            },
            "a guidance of 3500": lambda given: {"guidance": 1000 * given["guidance"]},
            "times up to 1000": lambda given: {"timestep": 1000 * given["timestep"]},
            "rows as columns": lambda given: {"img_ids": given["img_ids"][:, [0, 2, 1]]},
            "text has places too": lambda given: {"txt_ids": torch.arange(512.0)[:, None].expand(-1, 3)},
            "channels inside": lambda given: {
                "hidden_states": given["hidden_states"].unflatten(2, (-1, 4)).transpose(2, 3).flatten(2)
            },
        },
        **FLUX,
    ),
    "flux, schnell": Family(
        make=lambda directory: make_tiny_flux(directory, schnell=True),
        values={},
        call={"max_sequence_length": 256},
        cases={
            "plain": Case(pipeline={"guidance_scale": 0.0}),
            "negative": Case(pipeline=TRUE | {"negative_prompt": "blur"}, guidance=3.0, negative="blur"),
        },
        **FLUX,
    ),
}
CASES = [(family, case) for family, found in FAMILIES.items() for case in found.cases]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's tiny checkpoint, made once."""
    return cache(lambda name: FAMILIES[name].make(tmp_path_factory.mktemp("family") / "tiny"))


@pytest.fixture(scope="module")
def pipelines(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """diffusers' own pipeline, float32: the independent judge; not to be changed."""
    return cache(lambda name: load(FAMILIES[name], checkpoint(name)))


def load(family: Family, directory: Path) -> Any:
    pipeline = family.kind.layout.kind.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build(family: Family, directory: Path, options: Mapping[str, Any] | None = None, **section: Any) -> Any:
    layout = family.kind.layout
    section.setdefault("lora", {"rank": 4, "alpha": 12})
    return family.kind(
        BackboneSection(use=layout.backbone, checkpoint=str(directory), **section),
        family.options(**{**family.values, **(options or {})}),
        device=torch.device("cpu"),
    )


def noise_of(backbone: DiffusersBackbone, size: tuple[int, int], batch: int) -> Tensor:
    return torch.randn(batch, *backbone.latent_shape(*size), generator=torch.Generator().manual_seed(0))


def by_pipeline(family: Family, pipeline: Any, case: Case, noise: Tensor, size: tuple[int, int], output: str) -> Tensor:
    """Latents or images [B, ...], images in [0, 1]."""
    arguments = {**family.call, **case.pipeline}
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(noise)
    found = pipeline(
        TEXTS[: len(noise)], height=size[0], width=size[1], num_inference_steps=STEPS,
        latents=family.packed(noise), output_type=output, **arguments,
    )  # fmt: skip
    media: Tensor = found[0]
    return family.unpacked(media, tuple(noise.shape[1:])) if output == "latent" else media


def by_backbone(
    backbone: DiffusersBackbone, case: Case, noise: Tensor, size: tuple[int, int], sigmas: Tensor
) -> Tensor:
    """Latents by Euler steps."""
    prompts = [Prompt(text, negative=case.negative, size=size) for text in TEXTS[: len(noise)]]
    return draw(backbone, prompts, noise, sigmas, case.guidance)


@pytest.mark.parametrize("size, batch", [(SIZES[0], 3), (SIZES[1], 1)], ids=["three", "one"])
@pytest.mark.parametrize("name, case", CASES)
def test_latents_and_images_are_the_pipelines(
    checkpoint: Callable[[str], Path], pipelines: Callable[[str], Any], name: str, case: str, size: tuple[int, int],
    batch: int,
) -> None:  # fmt: skip
    family, pipeline = FAMILIES[name], pipelines(name)
    how = family.cases[case]
    backbone = build(family, checkpoint(name), how.options)
    noise = noise_of(backbone, size, batch)
    expected = by_pipeline(family, pipeline, how, noise, size, "latent")
    sigmas = family.sigmas(pipeline.scheduler)
    times = schedules.sigmas(STEPS, backbone.schedule(*size, STEPS))
    torch.testing.assert_close(times.float(), sigmas, atol=1e-6, rtol=0)
    latents = by_backbone(backbone, how, noise, size, sigmas)
    assert latents.shape == expected.shape
    assert float((latents - expected).abs().max() / expected.abs().max()) < 1e-5
    images = by_pipeline(family, pipeline, how, noise, size, "pt")
    found = backbone.decode(latents)
    assert found.shape == images.shape
    torch.testing.assert_close(found, images, atol=family.tolerance, rtol=0)
    if batch > 1:
        assert (images[0] - images[1]).abs().max() > 0.1, "the comparison means nothing if all are alike"


class Corrupted(torch.nn.Module):
    """A network that is given something else."""

    def __init__(self, network: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        super().__init__()
        self.network, self.config, self.change = network, network.config, change

    def forward(self, **given: Any) -> Any:
        return self.network(**given | self.change(given))


@pytest.mark.parametrize("name, trap", [(name, trap) for name, family in FAMILIES.items() for trap in family.traps])
def test_a_mistake_that_raises_nothing_is_another_image(
    checkpoint: Callable[[str], Path], name: str, trap: str
) -> None:
    """So that the comparison with the pipeline would show it."""
    family = FAMILIES[name]
    case = next(iter(family.cases.values()))
    backbone, sigmas = build(family, checkpoint(name)), torch.tensor([1.0, 0.5, 0.0])
    noise = noise_of(backbone, SIZES[0], 1)
    right = by_backbone(backbone, case, noise, SIZES[0], sigmas)
    backbone.network = Corrupted(backbone.network, family.traps[trap])
    wrong = by_backbone(backbone, case, noise, SIZES[0], sigmas)
    assert float((wrong - right).abs().max() / right.abs().max()) > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_adapter_draws_the_same_in_a_fresh_pipeline(
    checkpoint: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    case, size = list(family.cases.values())[-1], SIZES[0]
    backbone, pipeline = build(family, checkpoint(name), case.options), load(family, checkpoint(name))
    randomize(backbone)
    backbone.adapter.save(tmp_path / "adapter", "diffusers")
    noise = noise_of(backbone, size, 1)
    before = by_pipeline(family, pipeline, case, noise, size, "pt")
    pipeline.load_lora_weights(tmp_path / "adapter", **family.load)
    after = by_pipeline(family, pipeline, case, noise, size, "pt")
    found = by_backbone(backbone, case, noise, size, family.sigmas(pipeline.scheduler))
    assert (after - before).abs().max() > 0.05
    torch.testing.assert_close(backbone.decode(found), after, atol=family.tolerance, rtol=0)


@pytest.mark.parametrize("train", ["lora", "full"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_contract(checkpoint: Callable[[str], Path], name: str, train: str) -> None:
    family, directory = FAMILIES[name], checkpoint(name)
    check_backbone(lambda: build(family, directory, family.quick, train=train), SIZES[0], impossible=family.impossible)


@pytest.mark.parametrize("name", FAMILIES)
def test_without_weights_it_has_the_same_shapes(checkpoint: Callable[[str], Path], name: str) -> None:
    family, directory = FAMILIES[name], checkpoint(name)
    real = build(family, directory)
    meta = family.kind.meta_model(real.section, real.options)
    assert {n: shapes(m.named_parameters()) for n, m in meta.components().items()} == {
        n: shapes(m.named_parameters()) for n, m in real.components().items()
    }
    assert all(p.device.type == "meta" for part in meta.components().values() for p in part.parameters())
    assert meta.latent_shape(*SIZES[0]) == real.latent_shape(*SIZES[0])
    prompts = [Prompt(text, size=SIZES[0]) for text in TEXTS]
    for rows in ("encode", "unconditional"):
        found, wanted = (getattr(backbone, rows)(prompts).tensors for backbone in (meta, real))
        assert shapes(iter(found.items())) == shapes(iter(wanted.items()))


def test_a_family_that_names_no_published_models_asks_for_a_directory() -> None:
    layout = replace(FluxBackbone.layout, backbone="mine")
    mine = type("MineBackbone", (FluxBackbone,), {"layout": layout, "__module__": FluxBackbone.__module__})
    section = BackboneSection(use="mine", checkpoint="some/model")
    with pytest.raises(UserError, match=r"some/model is neither a local directory nor .*; use a local directory$"):
        mine.meta_model(section, FluxOptions())


def shapes(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}


@pytest.mark.parametrize("name", FAMILIES)
def test_text_encoders_may_wait_in_host_memory(checkpoint: Callable[[str], Path], name: str) -> None:
    family, directory = FAMILIES[name], checkpoint(name)
    here, away = (build(family, directory, {**family.quick, "offload_text": away}) for away in (False, True))
    assert set(here.components()) - set(away.components()) == {"text encoders"}
    assert not here.offloaded_modules()
    assert set(away.offloaded_modules()) == {"text encoders"}
    prompts = [Prompt(TEXTS[0], size=SIZES[0])]
    with away.encoding():
        found = away.encode(prompts).tensors
    for key, tensor in here.encode(prompts).tensors.items():
        assert torch.equal(found[key], tensor)
