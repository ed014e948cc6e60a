"""Every component that comes with the project keeps its contract, by the suite that plugin authors use. A new component
is found here by itself; one that cannot be built with its defaults says in GIVEN how it is."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dgpo_core.plugins.discovery import entry_points
from dgpo_core.plugins.installable import installable
from dgpo_core.plugins.registry import Registry, get_registry
from dgpo_core.types import Prompt
from dgpo_geneval.detectors.testing import (
    make_tiny_grounding_dino,
    make_tiny_owl,
    make_tiny_rt_detr,
    make_tiny_yolox,
)
from dgpo_geneval.testing import make_tiny_mask2former
from dgpo_judge.demo_server import Server
from dgpo_kit import Given, NeedsInput
from dgpo_kit.contracts import check_light, check_reward, component_checks
from dgpo_miniature.captions import TASKS, all_captions, metadata, scene_content, text
from dgpo_miniature.world import random_scenes, render
from dgpo_pickscore.testing import (
    make_tiny_clip,
    make_tiny_head,
    make_tiny_hps,
    make_tiny_imagereward,
    make_tiny_open_clip,
    make_tiny_siglip,
)
from dgpo_schemas.base import UseBlock
from tests.families.proof import Proof, proofs

Key = tuple[str, str]


def geneval(directory: Path) -> Given:
    return Given({"detector": "shapes"}, prompts=drawn()[1])


def frames(directory: Path) -> Given:
    return Given({"reward": {"use": "geneval", "options": {"detector": "shapes"}}}, prompts=drawn()[1])


def mask2former(directory: Path) -> Given:
    return Given({"checkpoint": str(make_tiny_mask2former(directory / "mask2former")), "side": 64})


def detr(directory: Path) -> Given:
    return Given({"checkpoint": str(make_tiny_rt_detr(directory / "detr")), "score": 0.05})


def grounding_dino(directory: Path) -> Given:
    return Given({"checkpoint": str(make_tiny_grounding_dino(directory / "grounding-dino"))})


def owl(directory: Path) -> Given:
    return Given({"checkpoint": str(make_tiny_owl(directory / "owl"))})


def yolox(directory: Path) -> Given:
    return Given({"file": str(make_tiny_yolox(directory / "yolox.onnx")), "score": 0.2})


def pickscore(directory: Path) -> Given:
    clip = str(make_tiny_clip(directory / "clip"))
    return Given({"model": clip, "processor": clip})


def clipscore(directory: Path) -> Given:
    pytest.importorskip("open_clip")
    return Given({"model": f"local-dir:{make_tiny_open_clip(directory / 'open_clip')}"})


def hpsv2(directory: Path) -> Given:
    pytest.importorskip("open_clip")
    tiny = make_tiny_hps(directory / "hps")
    return Given({"model": str(tiny), "architecture": str(tiny / "architecture.json")})


def imagereward(directory: Path) -> Given:
    tiny = str(make_tiny_imagereward(directory / "imagereward"))
    return Given({"model": tiny, "tokenizer": tiny})


def siglipscore(directory: Path) -> Given:
    return Given({"model": str(make_tiny_siglip(directory / "siglip"))})


def aesthetic(directory: Path) -> Given:
    clip, head = make_tiny_clip(directory / "clip"), make_tiny_head(directory / "head.safetensors")
    return Given({"model": str(clip), "head": str(head)})


SUITE_FILES = {
    "geneval2": '{"prompt": "two pigs", "vqa_list": [["How many pigs?", "two"], ["Any pigs?", "Yes"]], '
    '"skills": ["count", "object"], "atom_count": 2}\n',
    "dpg": "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    "0,a pig,1,0,entity - whole (pig),Is there a pig?\n0,a pig,2,1,attribute - color (green),Is it green?\n"
    "1,a cat,1,0,entity - whole (cat),Is there a cat?\n2,a dog,1,0,entity - whole (dog),Is there a dog?\n",
    "drawbench": "Prompts,Category\na red car,Colors\ntwo cats,Counting\n",
    "parti": "Prompt\tCategory\tChallenge\tNote\nbond\tAbstract\tBasic\tx\na cat\tAnimals\tBasic\tx\n",
    "longtext": '{"prompt": "a sign", "text": ["ONE TWO", "three"]}\n{"prompt": "a poster", "text": ["four"]}\n',
    "ocr": 'a sign that says "OPEN"\na door that says "SHUT"\n',
}
SUITE_FILES["dpg-reference"] = SUITE_FILES["dpg"]
"""Prompt files in the published formats."""


def suite_file(name: str, directory: Path) -> Given:
    path = directory / f"{name}{'.csv' if name == 'drawbench' else '.txt'}"
    path.write_text(SUITE_FILES[name])
    return Given({"file": str(path)})


@cache
def judge_server() -> Server:
    """A judge without a model, for the whole session."""
    return Server()


def judge(directory: Path) -> Given:
    return Given({"urls": [judge_server().url]})


def pairwise(directory: Path) -> Given:
    return Given({"reward": {"use": "geneval", "options": {"detector": "shapes"}}}, prompts=drawn()[1][:1])


def family(proof: Proof, directory: Path) -> Given:
    """With an adapter; `tests/families/test_families.py` has the contract of whole denoisers."""
    section = {"checkpoint": str(proof.make(directory / "tiny")), "train": "lora"}
    return Given({**proof.values, **proof.quick}, section=section, size=proof.sizes[0])


GIVEN: dict[Key, Callable[[Path], Given]] = {
    **{
        ("backbone", proof.kind.layout.backbone): partial(family, proof)
        for name, proof in proofs().items()
        if "," not in name
    },
    ("reward", "frames"): frames,
    ("reward", "geneval"): geneval,
    ("reward", "geneval-official"): geneval,
    ("reward", "geneval-flowgrpo"): geneval,
    ("reward", "judge"): judge,
    ("reward", "judge-pairs"): judge,
    ("reward", "judge-list"): judge,
    ("reward", "pairwise"): pairwise,
    ("reward", "pickscore"): pickscore,
    ("reward", "clipscore"): clipscore,
    ("reward", "hpsv2"): hpsv2,
    ("reward", "imagereward"): imagereward,
    ("reward", "siglipscore"): siglipscore,
    ("reward", "aesthetic"): aesthetic,
    ("prompts", "miniature"): lambda directory: Given({"train_count": 60, "heldout_count": 60}),
    ("prompts", "geneval"): lambda directory: Given({"train_count": 60, "heldout_count": 60}),
    ("detector", "mask2former"): mask2former,
    ("detector", "detr"): detr,
    ("detector", "grounding-dino"): grounding_dino,
    ("detector", "owlv2"): owl,
    ("detector", "yolox"): yolox,
    **{("suite", name): partial(suite_file, name) for name in SUITE_FILES},
}
"""Of components that want options or a checkpoint, or are quicker with them."""

RANDOM_WEIGHTS = {
    ("reward", name) for name in ("pickscore", "clipscore", "hpsv2", "imagereward", "siglipscore", "aesthetic")
}
"""Their tiny checkpoints do not know good from bad."""

SLOW = RANDOM_WEIGHTS | {("reward", name) for name in ("ocr", "judge", "judge-pairs", "judge-list")}
"""Their distributions' own tests try their contracts too."""

each = pytest.mark.parametrize
COMPONENTS = [(kind, name) for kind in get_registry().kinds for name in get_registry().components(kind)]


@pytest.fixture(scope="module")
def installed() -> Registry:
    return get_registry()


def test_nothing_is_broken(installed: Registry) -> None:
    assert installed.broken == []
    assert installed.conflicts() == {}


def test_what_the_project_brings_is_known_to_come_with_it(installed: Registry) -> None:
    """So that a run file which names a component that is not installed says what to install."""
    declared = {(kind, name): installed.find(kind, name).distribution for kind, name in COMPONENTS}
    declared |= {("command", name): one.distribution for name, one in installed.commands().items()}
    declared |= {("transport", key): one.distribution for key, one in installed.transports.items()}
    declared |= {("kind", "detector"): "dgpo-geneval", ("hook", "dgpo_detectors"): "dgpo-geneval"}
    separate = {component: owner for component, owner in declared.items() if owner.startswith("dgpo-")}
    assert separate == {(kind, name): owner for kind, names in installable().items() for name, owner in names.items()}


@each("module", sorted(entry_point.value for _, _, entry_point in entry_points()))
def test_entry_points_are_light(module: str) -> None:
    check_light(module)


@each(
    ("kind", "name"),
    [pytest.param(*component, marks=pytest.mark.slow if component in SLOW else ()) for component in COMPONENTS],
)
def test_every_component_keeps_its_contract(kind: str, name: str, installed: Registry, tmp_path: Path) -> None:
    given = GIVEN.get((kind, name), lambda directory: Given())(tmp_path)
    broken = []
    for check in component_checks(installed, kind, name, given):
        if check.name == "examples" and (kind, name) in RANDOM_WEIGHTS:
            continue
        try:
            check.run()
        except unittest.SkipTest:
            continue
        except NeedsInput as lack:
            pytest.fail(f"{kind} {name} cannot be built with what is given here; say in GIVEN how: {lack}")
        except Exception as error:
            broken.append(f"{check.name}: {type(error).__name__}: {error}")
    assert broken == []


def drawn(per_task: int = 2) -> tuple[Tensor, list[Prompt]]:
    """Images of the miniature's world with their prompts: half as the prompt demands, the others of anything; then
    noise, black and white."""
    rng, generator = Random(0), np.random.default_rng(0)
    kinds, colors, prompts = [], [], []
    for task in TASKS:
        for i, caption in enumerate(rng.sample(all_captions(task), per_task)):
            kind, color = scene_content(caption, rng)
            kinds.append(kind if i % 2 == 0 else generator.integers(-1, 4, 4))
            colors.append(color)
            words = text(caption, "a photo of")
            prompts.append(Prompt(words, metadata(caption, words)))
    images = torch.from_numpy(render(random_scenes(np.array(kinds), np.array(colors), generator)))
    others = torch.stack([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 64, 64),
                          torch.ones(3, 64, 64)])  # fmt: skip
    return torch.cat([images, others]), prompts + prompts[:3]


@each("name", ["geneval", "geneval-official", "geneval-flowgrpo"])
def test_geneval_on_drawn_scenes(name: str, installed: Registry) -> None:
    media, prompts = drawn()
    block = UseBlock(use=name, options={"detector": "shapes"})
    reward: Any = installed.create("reward", block, device=torch.device("cpu"))
    check_reward(reward, media, prompts)
    scores = reward.score(media, prompts)
    assert not scores.missing.any()
    assert (scores.values[0 : 2 * len(TASKS) : 2] == 1).all(), "what the prompt demands is rewarded in full"
    assert (scores.values[-3:] < 1).all()
