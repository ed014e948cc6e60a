"""Every family against diffusers' own pipeline, on tiny random checkpoints: latents, images, adapters, contract.

`proof.py` says how; a module per family has what is particular to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.flow import schedules
from dgpo_diffusers.families.flux.backbone import FluxBackbone
from dgpo_diffusers.families.flux.options import FluxOptions
from dgpo_kit.contracts import check_backbone
from dgpo_kit.drawing import randomize
from dgpo_schemas.sections.backbone import BackboneSection
from tests.families.proof import (
    STEPS,
    TEXTS,
    among,
    build,
    by_backbone,
    by_pipeline,
    load,
    noise_of,
    proofs,
)  # fmt: skip

FAMILIES = proofs()
PUBLISHED = [name for name in FAMILIES if "," not in name]
"""Families; their variants, which have a comma in their name, are compared in one case and otherwise slow."""
each = pytest.mark.parametrize("name", among(FAMILIES, quick=PUBLISHED))
each_of_some = pytest.mark.parametrize("name", among(FAMILIES, quick=["flux", "qwen-image", "sdxl", "wan"]))
Backbones = Callable[..., Any]
Judge = Callable[[str, str, int, int], tuple[Tensor, Tensor]]


def cases(*, quick: Callable[[str, str, int], bool]) -> list[Any]:
    """Family, kind of guidance, which of its sizes, batch; all but the `quick` ones are slow."""
    found = [
        (name, case, which, batch)
        for name, family in FAMILIES.items()
        for case in family.cases
        for which, batch in ((0, 3), (1, 1))
    ]
    names = {values: "-".join((*values[:2], "three" if values[3] == 3 else "one")) for values in found}
    return among(found, quick=[values for values in found if quick(*values[:3])], names=names)


def first_or_variant(name: str, case: str, which: int) -> bool:
    """Of a family its first case, of a variant its last one, in a batch of three."""
    return which == 0 and case == list(FAMILIES[name].cases)[0 if name in PUBLISHED else -1]


@pytest.fixture(scope="module")
def backbones(checkpoint: Callable[[str], Path]) -> Backbones:
    """`backbones(name, options)`: not to be changed."""
    made: dict[tuple[str, str], Any] = {}

    def get(name: str, options: Mapping[str, Any]) -> Any:
        key = name, repr(sorted(options.items()))
        if key not in made:
            made[key] = build(FAMILIES[name], checkpoint(name), options)
        return made[key]

    return get


@pytest.fixture(scope="module")
def pipelines(checkpoint: Callable[[str], Path]) -> Callable[[str], Any]:
    """diffusers' own pipeline, float32: the independent judge; not to be changed."""
    return cache(lambda name: load(FAMILIES[name], checkpoint(name)))


@pytest.fixture(scope="module")
def judge(pipelines: Callable[[str], Any], backbones: Backbones) -> Judge:
    """The pipeline's latents, and its sigmas."""

    @cache
    def judged(name: str, case: str, which: int, batch: int) -> tuple[Tensor, Tensor]:
        family, pipeline = FAMILIES[name], pipelines(name)
        how, size = family.cases[case], family.sizes[which]
        noise = noise_of(backbones(name, how.options), size, batch)
        return by_pipeline(family, pipeline, how, noise, size, "latent"), family.sigmas(pipeline.scheduler).clone()

    return judged


@pytest.mark.parametrize(
    "name, case, which, batch",
    cases(quick=lambda name, case, which: (which == 0 and name in PUBLISHED) or first_or_variant(name, case, 0)),
)
def test_latents_are_the_pipelines(
    backbones: Backbones, judge: Judge, name: str, case: str, which: int, batch: int
) -> None:
    family = FAMILIES[name]
    how, size = family.cases[case], family.sizes[which]
    backbone = backbones(name, how.options)
    expected, sigmas = judge(name, case, which, batch)
    times = schedules.sigmas(STEPS, backbone.schedule(*size, STEPS))
    torch.testing.assert_close(times.float(), sigmas, atol=1e-6, rtol=0)
    latents = by_backbone(backbone, how, noise_of(backbone, size, batch), size, sigmas)
    assert latents.shape == expected.shape
    assert float((latents - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("name, case, which, batch", cases(quick=first_or_variant))
def test_images_are_the_pipelines(
    pipelines: Callable[[str], Any], backbones: Backbones, judge: Judge, name: str, case: str, which: int, batch: int
) -> None:
    family = FAMILIES[name]
    how, size = family.cases[case], family.sizes[which]
    backbone = backbones(name, how.options)
    latents, _ = judge(name, case, which, batch)
    images = by_pipeline(family, pipelines(name), how, noise_of(backbone, size, batch), size, "pt")
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


def in_two_steps(name: str, backbone: Any) -> Tensor:
    family = FAMILIES[name]
    sigmas, noise = torch.tensor([backbone.sigma_range[1], 0.5, 0.0]), noise_of(backbone, family.sizes[0], 1)
    return by_backbone(backbone, next(iter(family.cases.values())), noise, family.sizes[0], sigmas)


@pytest.fixture(scope="module")
def drawn_right(backbones: Backbones) -> Callable[[str], Tensor]:
    return cache(lambda name: in_two_steps(name, backbones(name, {})))


@pytest.mark.parametrize("name, trap", [(name, trap) for name, family in FAMILIES.items() for trap in family.traps])
def test_a_mistake_that_raises_nothing_is_another_image(
    backbones: Backbones, drawn_right: Callable[[str], Tensor], name: str, trap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the comparison with the pipeline would show it."""
    backbone, right = backbones(name, {}), drawn_right(name)
    monkeypatch.setattr(backbone, "network", Corrupted(backbone.network, FAMILIES[name].traps[trap]))
    wrong = in_two_steps(name, backbone)
    assert float((wrong - right).abs().max() / right.abs().max()) > 1e-3


@each_of_some
def test_a_saved_adapter_draws_the_same_in_a_fresh_pipeline(
    checkpoint: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    case, size = list(family.cases.values())[-1], family.sizes[0]
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


CONTRACTS = [(name, train) for name in FAMILIES for train in ("lora", "full") if (train == "full" or "," in name)]


@pytest.mark.parametrize("name, train", among(CONTRACTS, quick=[("flux", "full")]))
def test_the_contract(checkpoint: Callable[[str], Path], name: str, train: str) -> None:
    """`tests/test_bundled.py` has that of each family with an adapter."""
    family, directory = FAMILIES[name], checkpoint(name)
    check_backbone(
        lambda: build(family, directory, family.quick, train=train), family.sizes[0], impossible=family.impossible
    )


@each
def test_without_weights_it_has_the_same_shapes(backbones: Backbones, name: str) -> None:
    family, real = FAMILIES[name], backbones(name, {})
    meta = family.kind.meta_model(real.section, real.options)
    assert {n: shapes(m.named_parameters()) for n, m in meta.components().items()} == {
        n: shapes(m.named_parameters()) for n, m in real.components().items()
    }
    assert all(p.device.type == "meta" for part in meta.components().values() for p in part.parameters())
    assert meta.latent_shape(*family.sizes[0]) == real.latent_shape(*family.sizes[0])
    prompts = [replace(real.example(family.sizes[0]), text=text) for text in TEXTS]
    for rows in ("encode", "unconditional"):
        found, wanted = (getattr(backbone, rows)(prompts) for backbone in (meta, real))
        # Rows of different lengths are as long as the longest possible one.
        longest = {n: found.tensors[n].shape[1] - t.shape[1] for n, t in wanted.tensors.items() if n in wanted.lengths}
        assert all(missing >= 0 for missing in longest.values())
        filled = {
            n: torch.cat([t, t.new_zeros(len(t), longest[n], *t.shape[2:])], 1) if n in longest else t
            for n, t in wanted.tensors.items()
        }
        assert shapes(iter(found.tensors.items())) == shapes(iter(filled.items()))


def test_a_family_that_names_no_published_models_asks_for_a_directory() -> None:
    layout = replace(FluxBackbone.layout, backbone="mine")
    mine = type("MineBackbone", (FluxBackbone,), {"layout": layout, "__module__": FluxBackbone.__module__})
    section = BackboneSection(use="mine", checkpoint="some/model")
    with pytest.raises(UserError, match=r"some/model is neither a local directory nor .*; use a local directory$"):
        mine.meta_model(section, FluxOptions())


def shapes(tensors: Iterator[tuple[str, Tensor]]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}


@each_of_some
def test_text_encoders_may_wait_in_host_memory(
    checkpoint: Callable[[str], Path], backbones: Backbones, name: str
) -> None:
    family, here = FAMILIES[name], backbones(name, FAMILIES[name].quick)
    away = build(family, checkpoint(name), {**family.quick, "offload_text": True})
    assert set(here.components()) - set(away.components()) == {"text encoders"}
    assert not here.offloaded_modules()
    assert set(away.offloaded_modules()) == {"text encoders"}
    prompts = [replace(here.example(family.sizes[0]), text=TEXTS[0])]
    with away.encoding():
        found = away.encode(prompts).tensors
    for key, tensor in here.encode(prompts).tensors.items():
        assert torch.equal(found[key], tensor)
