"""Mask2Former against transformers' own processor and post-processing, on tiny random weights."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.contract import check_detector
from dgpo_geneval.evaluator import evaluate, keep
from dgpo_geneval.mask2former import Mask2FormerDetector, boxes_of, find_instances, network_size
from dgpo_geneval.metadata import parse
from dgpo_geneval.options import GenEvalOptions, Mask2FormerOptions
from dgpo_geneval.reward import GenEvalOfficialReward, GenEvalReward
from dgpo_geneval.testing import COCO, make_tiny_mask2former
from dgpo_kit.contracts import check_reward

CPU = torch.device("cpu")
SIZE = (60, 88)
Edit = Callable[[Path], object]


def detector(checkpoint: Path, **options: Any) -> Mask2FormerDetector:
    options = {"side": 96, "score": 0.02, "counting": 0.3} | options
    return Mask2FormerDetector(Mask2FormerOptions(checkpoint=str(checkpoint), **options), device=CPU)


def pictures(count: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    """Smooth colors, of 8 bits: random weights tell images apart by their tone, noise looks alike to them."""
    coarse = torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(5))
    fine = torch.nn.functional.interpolate(coarse, size, mode="bicubic", align_corners=False).clamp(0, 1)
    return (fine * 255).round() / 255


@pytest.fixture(scope="module")
def processor(tiny_mask2former: Path) -> Any:
    """transformers' own: with torchvision or with Pillow, whichever is there."""
    return AutoImageProcessor.from_pretrained(tiny_mask2former)


def test_the_weights_are_named(tiny_mask2former: Path) -> None:
    digest = hashlib.sha256((tiny_mask2former / "model.safetensors").read_bytes()).hexdigest()
    assert detector(tiny_mask2former).provenance() == {
        "score": 0.02, "counting": 0.3, "per_class": 16,
        "checkpoint": tiny_mask2former.name, "weights": f"model.safetensors sha256:{digest}",
    }  # fmt: skip


# -- sizes and pixels -----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 2000), st.floats(1, 16), st.booleans())
def test_sizes_are_transformers(short: int, ratio: float, upright: bool) -> None:
    long = int(short * ratio)
    size = (long, short) if upright else (short, long)
    exact = get_size_with_aspect_ratio(size, 800, 1333)
    assert network_size(*size, 800, 1333) == tuple(math.ceil(edge / 32) * 32 for edge in exact)


def test_a_line_has_a_size() -> None:
    """transformers gives it none at all."""
    assert network_size(1, 3000, 800, 1333) == (32, 1344)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (800, 800)), ((1024, 1024), (800, 800)), ((768, 1024), (800, 1088)), ((512, 2048), (352, 1344))],
)
def test_usual_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert network_size(*size, 800, 1333) == expected


def test_pixels_are_the_processors(tiny_mask2former: Path, processor: Any) -> None:
    """On images of 8 bits, up to the rounding of Pillow's resize to 8 bits."""
    images = pictures()
    as_pil = [Image.fromarray((image.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()) for image in images]
    expected = processor(
        as_pil, size={"shortest_edge": 96, "longest_edge": 1333}, size_divisor=32, return_tensors="pt"
    )["pixel_values"]
    found = detector(tiny_mask2former).pixels(images)
    assert found.shape == expected.shape == (3, 3, 96, 160)
    # Pillow rounds to 8 bits after the rows and after the columns: half a step each, over the smallest deviation.
    torch.testing.assert_close(found, expected, atol=1.01 / 255 / 0.224, rtol=0)
    assert (found - expected).abs().mean() < 0.3 / 255 / 0.224


def test_the_numbers_of_the_checkpoint_are_used(tiny_mask2former: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_mask2former, tmp_path / "copy"))
    config = json.loads((copy / "preprocessor_config.json").read_text())
    config |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 2.0], "rescale_factor": 1 / 127.5}
    (copy / "preprocessor_config.json").write_text(json.dumps(config))
    gray = torch.full((1, 3, 32, 32), 0.5)
    expected = [(1.0 - 0.1) / 0.5, (1.0 - 0.2) / 0.25, (1.0 - 0.3) / 2.0]
    torch.testing.assert_close(detector(copy).pixels(gray)[0, :, 0, 0], torch.tensor(expected))
    config |= {"do_normalize": False}
    (copy / "preprocessor_config.json").write_text(json.dumps(config))
    torch.testing.assert_close(detector(copy).pixels(gray)[0, :, 0, 0], torch.ones(3))


# -- instances ------------------------------------------------------------------------------------------------------


Found = dict[tuple[int, bytes], float]


def by_mask(labels: list[int], scores: list[float], masks: np.ndarray) -> Found:
    """Scores by what is seen and where."""
    keys = [(label, mask.astype(bool).tobytes()) for label, mask in zip(labels, masks, strict=True)]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, scores, strict=True))


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.45, 0.99])
def test_instances_are_transformers(tiny_mask2former: Path, processor: Any, threshold: float) -> None:
    seen = detector(tiny_mask2former)
    images = pictures()
    with torch.no_grad():
        output = seen.network(pixel_values=seen.pixels(images))
    expected = processor.post_process_instance_segmentation(
        output, threshold=threshold, target_sizes=[SIZE] * 3, return_binary_maps=True
    )
    found = find_instances(output.class_queries_logits, output.masks_queries_logits, SIZE, score=threshold)
    for image, one in enumerate(expected):
        mine = found.image == image
        infos = one["segments_info"]
        maps = np.zeros((0, *SIZE)) if not infos else np.asarray(one["segmentation"])
        theirs = by_mask([info["label_id"] for info in infos], [info["score"] for info in infos], maps)
        ours = by_mask(found.label[mine].tolist(), found.score[mine].tolist(), found.mask[mine].numpy())
        assert ours == pytest.approx(theirs, abs=1e-6)
    assert {0.0: 24, 0.99: 0}.get(threshold, len(found.score)) == len(found.score)


def test_one_query_may_be_two_things_and_overlaps_stay() -> None:
    """Scores and masks worked out by hand."""
    probabilities = torch.tensor([[[0.5, 0.4, 0.1], [0.05, 0.9, 0.05], [0.01, 0.01, 0.98]]])
    masks = torch.full((1, 3, 4, 4), -20.0)
    masks[0, :2, :, :2] = 20.0  # both on the left half, with an edge that is sharp but for a percent
    found = find_instances(probabilities.log(), masks, (8, 8), score=0.3)
    assert found.label.tolist() == [1, 0, 1]
    assert found.score.tolist() == pytest.approx([0.9, 0.5, 0.4], rel=0.01)
    assert boxes_of(found.mask).tolist() == [[0, 0, 4, 8]] * 3


def test_a_stricter_mask_is_smaller() -> None:
    slope = torch.linspace(-4, 4, 32).expand(1, 1, 32, 32)
    areas = [
        find_instances(torch.tensor([[[9.0, 0.0]]]), slope, (32, 32), score=0.0, mask=cut).mask.sum().item()
        for cut in (0.2, 0.5, 0.8)
    ]
    assert areas[0] > areas[1] > areas[2] > 0
    assert areas[1] == 32 * 16


def test_boxes_hold_their_masks() -> None:
    masks = torch.zeros(3, 10, 12, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 9, 11] = True
    masks[2, 0, 0] = masks[2, 9, 4] = True
    assert boxes_of(masks).tolist() == [[3, 2, 9, 5], [11, 9, 12, 10], [0, 0, 5, 10]]
    assert boxes_of(masks[:0]).shape == (0, 4)


# -- the detector ---------------------------------------------------------------------------------------------------


def test_contract(tiny_mask2former: Path) -> None:
    check_detector(detector(tiny_mask2former, batch=2, side=64), pictures(3))


@pytest.mark.parametrize("kind", [GenEvalReward, GenEvalOfficialReward])
def test_a_reward_with_it(tiny_mask2former: Path, kind: type[GenEvalReward]) -> None:
    """Colors from a stand-in; random weights are no judge, so the examples are not looked at."""

    class Blind(Mask2FormerDetector):
        def examples(self) -> tuple[()]:
            return ()

    options = Mask2FormerOptions(checkpoint=str(tiny_mask2former), side=96, score=0.02, counting=0.3)
    seen = Blind(options, device=CPU)
    images = pictures(4)
    labels = [found[0].label for found in seen.detect(images)]
    prompts = [
        Prompt("p", {"tag": tag, "include": [{"class": label, "count": 1, **more}]})
        for tag, label, more in zip(
            ("single_object", "colors", "colors", "counting"),
            labels,
            ({}, {"color": "red"}, {"color": "blue"}, {}),
            strict=True,
        )
    ]
    reward = kind(
        GenEvalOptions(),
        device=CPU,
        detector=seen,
        color_classifier=lambda batch, objects: [["red"] * len(one) for one in objects],
    )
    check_reward(reward, images, prompts)
    assert not reward.score(images, prompts).missing.any()


def test_detections(tiny_mask2former: Path) -> None:
    seen = detector(tiny_mask2former)
    assert seen.labels == CLASSES
    assert (seen.thresholds.score, seen.thresholds.counting, seen.thresholds.per_class) == (0.02, 0.3, 16)
    found = seen.detect(pictures())
    assert any(found)
    for one in found:
        assert [d.score for d in one] == sorted((d.score for d in one), reverse=True)
        for detection in one:
            assert detection.mask is not None
            rows, columns = np.nonzero(detection.mask)
            assert detection.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert detection.color is None


def test_nothing_below_both_thresholds_is_given(tiny_mask2former: Path) -> None:
    def scores(**options: float) -> list[float]:
        return [d.score for one in detector(tiny_mask2former, **options).detect(pictures()) for d in one]

    everything = scores(score=0.0)
    assert min(everything) < 0.3
    assert sorted(scores(score=0.4, counting=0.3)) == sorted(s for s in everything if s >= 0.3)
    assert sorted(scores(score=0.3, counting=0.9)) == sorted(s for s in everything if s >= 0.3)


def test_renamed_classes(tiny_mask2former: Path) -> None:
    assert {"mouse", "remote", "keyboard"} <= set(COCO)
    names = detector(tiny_mask2former).names
    assert [names[COCO.index(old)] for old in ("mouse", "remote", "keyboard")] == [
        "computer mouse",
        "tv remote",
        "computer keyboard",
    ]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_sees_much_the_same(tiny_mask2former: Path, dtype: str) -> None:
    exact, rough = (detector(tiny_mask2former, dtype=d, score=0.0).detect(pictures()) for d in ("float32", dtype))
    for one, other in zip(exact, rough, strict=True):
        assert [d.score for d in other[:2]] == pytest.approx([d.score for d in one[:2]], abs=0.05)


def test_examples_are_a_photograph_and_noise(tiny_mask2former: Path) -> None:
    examples = detector(tiny_mask2former).examples()
    assert [(e.prompt.metadata["include"][0]["class"], e.good) for e in examples] == [
        ("person", True),
        ("giraffe", False),
        ("person", False),
    ]
    for example in examples:
        assert example.media.shape == (3, 600, 512)
        assert example.media.dtype == torch.float32
        assert 0 <= example.media.min() < example.media.max() <= 1
    assert torch.equal(examples[0].media, examples[1].media)


# -- what can be wrong with a checkpoint ----------------------------------------------------------------------------


def weights(edit: Callable[[dict[str, Tensor]], object]) -> Edit:
    def change(path: Path) -> None:
        tensors = load_file(path / "model.safetensors")
        edit(tensors)
        save_file(tensors, path / "model.safetensors", {"format": "pt"})

    return change


def config(**changes: Any) -> Edit:
    def change(path: Path) -> None:
        found = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(found | changes))

    return change


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            weights(lambda t: [t.pop("class_predictor.bias"), t.pop("class_predictor.weight")]),
            r"lacks 2 weights of Mask2FormerForUniversalSegmentation: class_predictor.bias, class_predictor.weight",
        ),
        (
            weights(lambda t: t.update({"class_predictor.bias": torch.zeros(5)})),
            r"has 1 weights whose shape differs from config.json: class_predictor.bias",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "has no weights: no such file: model.safetensors"),
        (
            lambda path: (path / "model.safetensors").write_bytes(b"no"),
            "/model.safetensors is not a complete",
        ),
        (lambda path: (path / "config.json").write_text("{"), "/config.json is not valid JSON"),
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (config(quantization_config={"quant_method": "quanto"}), "/config.json: quantization_config is set to quanto"),
        (lambda path: (path / "preprocessor_config.json").unlink(), "cannot be loaded: .*preprocessor_config.json"),
        (
            config(architectures=["MaskFormerForInstanceSegmentation"]),
            "contains MaskFormerForInstanceSegmentation; expected Mask2Former",
        ),
        (
            config(id2label={str(i): f"LABEL_{i}" for i in range(80)}),
            "has none of GenEval's classes; its classes are label_0, label_1",
        ),
        (
            config(id2label={str(i): "dog" if name == "cat" else name for i, name in enumerate(COCO)}),
            "lacks 1 of GenEval's 80 classes: cat. .*set `subset: true`",
        ),
    ],
)
def test_mistakes_are_named(tiny_mask2former: Path, tmp_path: Path, edit: Edit, words: str) -> None:
    copy = Path(shutil.copytree(tiny_mask2former, tmp_path / "copy"))
    edit(copy)
    before = torch.get_rng_state()
    with pytest.raises(UserError, match=f"^detector mask2former: checkpoint: .*copy ?{words}"):
        detector(copy)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_buffer_of_the_training_loss_may_be_absent(tiny_mask2former: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_mask2former, tmp_path / "copy"))
    weights(lambda t: t.pop("criterion.empty_weight"))(copy)
    assert detector(copy).detect(pictures()) == detector(tiny_mask2former).detect(pictures())


def test_a_subset_of_the_classes_wants_permission(tmp_path: Path) -> None:
    few = make_tiny_mask2former(tmp_path / "few", classes=("sofa", "Mouse", "dog", "spaceship"))
    with pytest.raises(UserError, match=r"lacks 77 of GenEval's 80 classes: person, bicycle"):
        detector(few)
    seen = detector(few, subset=True)
    assert seen.labels == ("couch", "computer mouse", "dog", "spaceship")
    reward = GenEvalReward(GenEvalOptions(), device=CPU, detector=seen)
    with pytest.raises(UserError, match="unknown class 'cat'"):
        reward.check_prompts([Prompt("p", {"tag": "single_object", "include": [{"class": "cat", "count": 1}]})])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checkpoint": "/nowhere/at/all"}, "no such directory: /nowhere/at/all"),
        ({"checkpoint": "./nowhere"}, "no such directory: ./nowhere"),
        ({"checkpoint": __file__}, "is a file; allowed is"),
    ],
)
def test_paths(options: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Mask2FormerDetector(Mask2FormerOptions(**options), device=CPU)


def test_a_revision_is_for_the_hub(tiny_mask2former: Path) -> None:
    with pytest.raises(UserError, match=r"revision main is set, but .* is a directory"):
        detector(tiny_mask2former, revision="main")


def test_without_the_hub_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = r"^detector mask2former: checkpoint: nobody/nothing is not .* at revision v1 .*HF_HUB_OFFLINE is set"
    with pytest.raises(UserError, match=words):
        Mask2FormerDetector(Mask2FormerOptions(checkpoint="nobody/nothing", revision="v1"), device=CPU)


def test_without_scipy_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tiny_mask2former: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(UserError, match=r"pip install 'dgpo-geneval\[mask2former\]'"):
        detector(tiny_mask2former)


def test_options_are_checked() -> None:
    with pytest.raises(ValidationError, match="longest \\(400\\) is less than side \\(800\\)"):
        Mask2FormerOptions(longest=400)


# -- scores: their order, their thresholds, and what else is in the batch ----------------------------------------------


class Answers(torch.nn.Module):
    """In the network's place: one object a query, of the probability given, its mask sure of every pixel.

    Like kernels do, it answers a little differently to every size of batch.
    """

    def __init__(self, chances: Sequence[float], masks: Tensor | None = None) -> None:
        super().__init__()
        chance = torch.tensor(chances, dtype=torch.float64)
        sure = torch.stack([chance, *[torch.zeros_like(chance)] * (len(CLASSES) - 1), 1 - chance], 1)
        self.classes = sure.clamp(min=1e-30).log().float()
        self.masks = torch.full((len(chances), 8, 8), 40.0) if masks is None else masks

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        batch = len(pixel_values)
        tone = pixel_values.mean((1, 2, 3))[:, None, None]
        classes = self.classes.expand(batch, -1, -1) + 1e-4 * tone * torch.linspace(-1, 1, self.classes.shape[1])
        return SimpleNamespace(
            class_queries_logits=classes + 1e-6 * batch * torch.linspace(-1, 1, 81),
            masks_queries_logits=self.masks.expand(batch, -1, -1, -1),
        )


def answering(tiny: Path, chances: Sequence[float], masks: Tensor | None = None, **options: Any) -> Mask2FormerDetector:
    made = detector(tiny, **({"score": 0.3, "counting": 0.9} | options))
    made.network = Answers(chances, masks)
    return made


def test_the_order_of_scores_is_the_networks(tiny_mask2former: Path) -> None:
    """Pairs a few bits apart, and all that lies between 0.3 and 0.3005."""
    rng = np.random.default_rng(0)
    chances = [*rng.uniform(0.3001, 0.3005, size=8), *(c + e for c in rng.uniform(0.4, 0.99, 8) for e in (0, 4e-7))]
    seen = answering(tiny_mask2former, chances)
    gray = torch.full((1, 3, 32, 32), 0.5)
    (found,) = seen.detect(gray)
    answer = seen.network(seen.pixels(gray))
    raw = find_instances(answer.class_queries_logits, answer.masks_queries_logits, (32, 32), score=0.3).score
    assert len(found) == len(chances)
    assert [d.score for d in found] == sorted(map(float, raw), reverse=True)
    assert len({d.score for d in found}) == len(set(raw.tolist())) > 22
    kept = keep(found, 0.3, 100)["person"]
    assert kept == found


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_other_images_change_nothing(tiny_mask2former: Path, batch: int) -> None:
    """Not a bit, though the network's answers vary with the batch: so no verdict at a threshold does either."""
    images = torch.linspace(0.1, 0.9, 5).view(5, 1, 1, 1).expand(-1, 3, 32, 32)
    chances = [float(np.nextafter(np.float32(0.3), np.float32(way))) for way in (0, 1)] * 4
    seen = answering(tiny_mask2former, chances, batch=batch)
    alone = [found for image in images for found in seen.detect(image[None])]
    assert seen.detect(images) == alone
    assert len({len(found) for found in alone}) > 1  # scores lie on both sides of the threshold
    asked = {"tag": "colors", "include": [{"class": "person", "count": 8}]}
    values = [
        evaluate(parse(Prompt("p", asked)), one, variant="geneval", thresholds=seen.thresholds).value for one in alone
    ]
    reward = GenEvalReward(GenEvalOptions(colors=None), device=CPU, detector=seen)
    assert reward.score(images, [Prompt("p", asked)] * 5).values.tolist() == torch.tensor(values).tolist()


def test_equal_scores_come_in_one_order(tiny_mask2former: Path) -> None:
    """By label, box and query, whatever order the network found them in."""
    masks = torch.full((6, 8, 8), -40.0)
    for query in range(6):
        masks[query, :, query % 3] = 40.0
        masks[query, query // 3 :, query % 3 + 1] = 40.0  # the same boxes, other masks
    gray = torch.full((1, 3, 32, 32), 0.0) + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # a mean of nothing
    (found,) = answering(tiny_mask2former, [0.9] * 6, masks).detect(gray)
    assert len({d.score for d in found}) < len(found) == 6
    assert found == sorted(found, key=lambda d: (-d.score, d.label, d.box))
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 4, 1, 5, 3]):
        (other,) = answering(tiny_mask2former, [0.9] * 6, masks[order]).detect(gray)
        assert other == found


def test_red_and_blue_can_be_exchanged(tiny_mask2former: Path) -> None:
    images = pictures()
    right, swapped = (detector(tiny_mask2former, channels=channels) for channels in ("rgb", "bgr"))
    assert torch.equal(swapped.pixels(images), right.pixels(images[:, [2, 1, 0]]))
    assert not torch.equal(swapped.pixels(images), right.pixels(images))
