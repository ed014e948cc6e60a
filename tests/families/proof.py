"""How the families of diffusers models are tested: against diffusers' own pipeline, on tiny random checkpoints.

A module of this directory per family has `PROOFS`; `proofs` collects them. Shape letters: B samples.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from dgpo_core.media.conditions import condition_medium
from dgpo_core.types import ConditionMedium, Prompt
from dgpo_diffusers.backbone import DiffusersBackbone
from dgpo_kit.drawing import draw
from dgpo_schemas.sections.backbone import BackboneSection

__all__ = [
    "CFG", "EMPTY", "NEGATIVE", "STEPS", "TEXTS", "Case", "Proof", "among", "build", "by_backbone", "by_pipeline",
    "load", "noise_of", "proofs",
]  # fmt: skip

TEXTS = ["a red circle", "two blue squares, left", "green"]
STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of guidance: by which arguments the pipeline has it, and by which options and guidance a run.

    pipeline: arguments by name; a function gives one from the pipeline and the number of samples. image: the condition
    image of the i-th sample; the pipeline then makes each sample by itself.
    """

    pipeline: Mapping[str, Any] = field(default_factory=dict)
    guidance: float = 1.0
    negative: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    image: Callable[[int], Image.Image] | None = None

    def media(self, i: int) -> tuple[ConditionMedium, ...]:
        if self.image is None:
            return ()
        content = io.BytesIO()
        self.image(i).save(content, "PNG")
        return (condition_medium(content.getvalue()),)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What a family is tested with against its diffusers pipeline.

    kind, options: its class and the class of its options, with values; make: writes its tiny checkpoint into a
    directory; call: arguments of the pipeline in every call; cases: kinds of guidance by name; packed, unpacked: the
    backbone's latents [B, ...] to those that the pipeline takes, and those that it gives back, with the shape that
    they have here; normalized: the pipeline and what it gives back to the latents of its last step, where it returns
    others; scheduler: the pipeline's scheduler to the one that it is compared with; sigmas: that scheduler, after a
    call, to its sigmas as dgpo counts them, 0 at the end; sizes: two sizes that it can draw, not square; impossible:
    one that it cannot; load: arguments of `load_lora_weights`; tolerance: of images; quick: values of options with
    which it is quicker, where images do not matter; traps: mistakes that raise nothing, as changes of what the network
    is given; rollout: settings of short runs on the tiny checkpoint; single: whether the pipeline makes each sample by
    itself, since its samples depend on their batch; seen: the pipeline's images [B, ...] to those that rewards see.
    """

    kind: type[DiffusersBackbone]
    options: Any
    make: Callable[[Path], Path]
    values: Mapping[str, Any]
    call: Mapping[str, Any]
    cases: Mapping[str, Case]
    packed: Callable[[Tensor], Tensor] = lambda latents: latents
    unpacked: Callable[[Tensor, tuple[int, ...]], Tensor] = lambda latents, shape: latents
    scheduler: Callable[[Any], Any] = lambda scheduler: scheduler
    normalized: Callable[[Any, Tensor], Tensor] = lambda pipeline, latents: latents
    sigmas: Callable[[Any], Tensor] = lambda scheduler: scheduler.sigmas
    sizes: Sequence[tuple[int, int]] = ((32, 48), (64, 32))
    impossible: tuple[int, int] = (32, 45)
    load: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    rollout: Mapping[str, Any] = field(default_factory=dict)
    quick: Mapping[str, Any] = field(default_factory=dict)
    traps: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]] = field(default_factory=dict)
    single: bool = False
    seen: Callable[[Tensor], Tensor] = lambda images: images


CFG = {"plain": Case(pipeline={"guidance_scale": 1.0}), "cfg": Case(pipeline={"guidance_scale": 4.5}, guidance=4.5)}
NEGATIVE = Case(pipeline={"guidance_scale": 3.0, "negative_prompt": "blur"}, guidance=3.0, negative="blur")
EMPTY = Case(pipeline={"guidance_scale": 3.0, "negative_prompt": ""}, guidance=3.0, negative="")


def proofs() -> dict[str, Proof]:
    """All families, by name; a new module of this directory is found by itself."""
    found: dict[str, Proof] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if not path.stem.startswith(("test_", "proof", "conftest")):
            found |= import_module(f"tests.families.{path.stem}").PROOFS
    return found


def among(values: Iterable[Any], *, quick: Collection[Any], names: Mapping[Any, str] | None = None) -> list[Any]:
    """Parameters of tests, of which all but `quick` are left to `make test-all`; names: ids of tests by value."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)),
            marks=() if value in quick else pytest.mark.slow,
            id=None if names is None else names[value],
        )
        for value in values
    ]


def load(proof: Proof, directory: Path) -> Any:
    pipeline = proof.kind.layout.kind.from_pretrained(directory)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = proof.scheduler(pipeline.scheduler)
    return pipeline


def build(proof: Proof, directory: Path, options: Mapping[str, Any] | None = None, **section: Any) -> Any:
    layout = proof.kind.layout
    section.setdefault("lora", {"rank": 4, "alpha": 12})
    return proof.kind(
        BackboneSection(use=layout.backbone, checkpoint=str(directory), **section),
        proof.options(**{**proof.values, **(options or {})}),
        device=torch.device("cpu"),
    )


def noise_of(backbone: DiffusersBackbone, size: tuple[int, int], batch: int) -> Tensor:
    return torch.randn(batch, *backbone.latent_shape(*size), generator=torch.Generator().manual_seed(0))


def by_pipeline(proof: Proof, pipeline: Any, case: Case, noise: Tensor, size: tuple[int, int], output: str) -> Tensor:
    """Latents or images [B, ...], images in [0, 1]."""
    if case.image is None and not proof.single:
        return _of_texts(proof, pipeline, case, TEXTS[: len(noise)], noise, size, output)
    found = []
    for i in range(len(noise)):
        image = {} if case.image is None else {"image": case.image(i)}
        mine = replace(case, pipeline={**case.pipeline, **image})
        found.append(_of_texts(proof, pipeline, mine, TEXTS[i : i + 1], noise[i : i + 1], size, output))
    return torch.cat(found)


def _of_texts(
    proof: Proof, pipeline: Any, case: Case, texts: list[str], noise: Tensor, size: tuple[int, int], output: str
) -> Tensor:
    given = {**proof.call, **case.pipeline}
    arguments = {
        name: value(pipeline, len(noise)) if callable(value) and name != "image" else value
        for name, value in given.items()
    }
    if "negative_prompt" in arguments:
        arguments["negative_prompt"] = [arguments["negative_prompt"]] * len(noise)
    found = pipeline(
        prompt=texts, height=size[0], width=size[1], num_inference_steps=STEPS,
        latents=proof.packed(noise), output_type=output, **arguments,
    )  # fmt: skip
    media: Tensor = found[0]
    if output != "latent":
        return proof.seen(media)
    return proof.unpacked(proof.normalized(pipeline, media), tuple(noise.shape[1:]))


def by_backbone(
    backbone: DiffusersBackbone, case: Case, noise: Tensor, size: tuple[int, int], sigmas: Tensor
) -> Tensor:
    """Latents by Euler steps."""
    prompts = [
        Prompt(text, negative=case.negative, media=case.media(i), size=size)
        for i, text in enumerate(TEXTS[: len(noise)])
    ]
    return draw(backbone, prompts, noise, sigmas, case.guidance)
