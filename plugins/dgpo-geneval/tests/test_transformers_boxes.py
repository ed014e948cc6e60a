"""The detectors `detr`, `grounding-dino` and `owlv2` against transformers' processors, on tiny random weights, and
through networks whose answers are known."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import AutoImageProcessor, AutoTokenizer, GroundingDinoProcessor, Owlv2Processor

from dgpo_core.errors import UserError
from dgpo_core.types import Prompt
from dgpo_geneval.checkpoints import Checkpoint, origin
from dgpo_geneval.classes import CLASSES
from dgpo_geneval.contract import check_detector
from dgpo_geneval.detector import Detector
from dgpo_geneval.detectors.detr import DetrDetector, has_softmax
from dgpo_geneval.detectors.grounding_dino import GroundingDinoDetector, prompt_of, span_logits, token_spans
from dgpo_geneval.detectors.options import DetrOptions, GroundingDinoOptions, OwlOptions
from dgpo_geneval.detectors.owl import OwlDetector
from dgpo_geneval.detectors.testing import (
    make_tiny_detr,
    make_tiny_grounding_dino,
    make_tiny_owl,
    make_tiny_rt_detr,
)
from dgpo_geneval.options import GenEvalOptions
from dgpo_geneval.reward import GenEvalReward
from dgpo_geneval.testing import COCO, make_tiny_mask2former

CPU = torch.device("cpu")
SIZE = (60, 88)
Tiny = dict[str, Path]
KINDS: dict[str, tuple[type[Detector], Any]] = {
    "rt_detr": (DetrDetector, DetrOptions),
    "detr": (DetrDetector, DetrOptions),
    "grounding_dino": (GroundingDinoDetector, GroundingDinoOptions),
    "owl": (OwlDetector, OwlOptions),
}


def pictures(count: int = 3, size: tuple[int, int] = SIZE) -> Tensor:
    """Smooth colors of 8 bits."""
    coarse = torch.rand(count, 3, 3, 4, generator=torch.Generator().manual_seed(5))
    fine = functional.interpolate(coarse, size, mode="bicubic", align_corners=False).clamp(0, 1)
    return (fine * 255).round() / 255


def as_pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()) for image in images]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    home = tmp_path_factory.mktemp("tiny")
    makers = (make_tiny_rt_detr, make_tiny_detr, make_tiny_grounding_dino, make_tiny_owl)
    return {name: make(home / name) for name, make in zip(KINDS, makers, strict=True)}


def detector(tiny: Tiny, name: str, **options: Any) -> Any:
    kind, options_of = KINDS[name]
    values = {"checkpoint": str(tiny[name]), "score": 0.01, "counting": 0.01, "overlap": None} | options
    return kind(options_of(**values), device=CPU)


# -- for all of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_contract(tiny: Tiny, name: str) -> None:
    seen = detector(tiny, name)
    assert all(seen.detect(pictures()))
    assert seen.labels == CLASSES
    check_detector(seen, pictures())


@pytest.mark.parametrize("backend", ["torchvision", "pil"])
@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_the_processors(tiny: Tiny, name: str, backend: str) -> None:
    """Of the chosen backend: with Pillow the same bits; with torchvision up to its rounding to 8 bits, which floats
    escape."""
    seen = detector(tiny, name, processor=backend)
    image, (shown,) = pictures(1)[0], as_pil(pictures(1))
    processor = AutoImageProcessor.from_pretrained(tiny[name], backend=backend)
    expected = processor(images=[shown], return_tensors="pt")
    found = seen.pixels(image)
    assert found.keys() == expected.keys()
    step = 1.01 / 255 / min(getattr(processor, "image_std", None) or [1])
    atol = 0.0 if backend == "pil" else step
    torch.testing.assert_close(found["pixel_values"], expected["pixel_values"], atol=atol, rtol=0)
    assert seen.provenance()["processor"] == type(processor).__name__
    assert type(processor).__name__.endswith("Pil") == (backend == "pil")


@pytest.mark.parametrize("name", KINDS)
def test_the_weights_are_named(tiny: Tiny, name: str) -> None:
    seen = detector(tiny, name).provenance()
    digest = hashlib.sha256((tiny[name] / "model.safetensors").read_bytes()).hexdigest()
    assert (seen["checkpoint"], seen["weights"]) == (tiny[name].name, f"model.safetensors sha256:{digest}")


def test_the_commit_of_a_repository_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the Hub's cache, whatever the revision is called."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, entry = "0123456789abcdef" * 2 + "01234567", tmp_path / "models--owner--name"
    (entry / "snapshots" / commit).mkdir(parents=True)
    (entry / "snapshots" / commit / "config.json").write_text("{}")
    (entry / "refs").mkdir()
    (entry / "refs" / "main").write_text(commit)
    for revision in (None, "main", commit):
        found = origin(Checkpoint("here", "owner/name", "the Hub", revision, None))
        assert found == {"checkpoint": "owner/name", "revision": commit}
    assert origin(Checkpoint("here", "owner/other", "the Hub", None, None)) == {"checkpoint": "owner/other"}


def test_backends_differ(tiny: Tiny) -> None:
    one, other = (detector(tiny, "detr", processor=name).pixels(pictures()[0]) for name in ("torchvision", "pil"))
    assert not torch.equal(one["pixel_values"], other["pixel_values"])


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_runs(tiny: Tiny, name: str) -> None:
    seen = detector(tiny, name, dtype="bfloat16")
    assert len(seen.detect(pictures(2))) == 2


Edit = Callable[[Path], object]


def config(**changes: Any) -> Edit:
    def change(path: Path) -> None:
        found = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(found | changes))

    return change


@pytest.mark.parametrize("name", ["rt_detr", "grounding_dino", "owl"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "model.safetensors").unlink(), "has no weights"),
        (lambda path: (path / "preprocessor_config.json").unlink(), "cannot be loaded"),
        (config(architectures=["BertModel"]), r"contains BertModel; expected one of \w+"),
    ],
)
def test_mistakes_are_named(tiny: Tiny, tmp_path: Path, name: str, edit: Edit, words: str) -> None:
    copy = Path(shutil.copytree(tiny[name], tmp_path / "copy"))
    edit(copy)
    what = {"rt_detr": "detr", "grounding_dino": "grounding-dino", "owl": "owlv2"}[name]
    with pytest.raises(UserError, match=f"^detector {what}: checkpoint: .*copy.*{words}"):
        detector({name: copy}, name)


def test_another_kind_of_network_is_refused(tmp_path: Path) -> None:
    path = make_tiny_mask2former(tmp_path / "masks")
    with pytest.raises(UserError, match=r"contains Mask2FormerForUniversalSegmentation; expected one of .*RTDetr"):
        detector({"detr": path}, "detr")


def test_without_torchvision_it_says_so(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision", None)
    with pytest.raises(UserError, match=r"needs transformers and torchvision: pip install 'dgpo-geneval\[detectors\]'"):
        detector(tiny, "detr")


# -- detr -----------------------------------------------------------------------------------------------------------


def raw(seen: Any, image: Tensor, **more: Any) -> Any:
    with torch.no_grad():
        return seen.network(**seen.pixels(image), **more)


def test_softmax_is_transformers(tiny: Tiny) -> None:
    seen = detector(tiny, "detr")
    processor = AutoImageProcessor.from_pretrained(tiny["detr"])
    for image, found in zip(pictures(), seen.detect(pictures()), strict=True):
        (expected,) = processor.post_process_object_detection(raw(seen, image), threshold=0.01, target_sizes=[SIZE])
        order = expected["scores"].argsort(descending=True, stable=True)
        edge = torch.tensor([SIZE[1], SIZE[0]] * 2)
        boxes = expected["boxes"][order].clamp(min=0).minimum(edge)
        assert [one.score for one in found] == expected["scores"][order].tolist()
        torch.testing.assert_close(torch.tensor([one.box for one in found]), boxes, atol=1e-4, rtol=0)
        assert [CLASSES.index(one.label) for one in found] == expected["labels"][order].tolist()


def test_sigmoid_sees_no_ghosts(tiny: Tiny) -> None:
    """transformers lists a box under several labels; each of its boxes is here once, with the best of them."""
    seen = detector(tiny, "rt_detr")
    processor = AutoImageProcessor.from_pretrained(tiny["rt_detr"])
    ghosts = 0
    for image, found in zip(pictures(), seen.detect(pictures()), strict=True):
        (expected,) = processor.post_process_object_detection(raw(seen, image), threshold=0.01, target_sizes=[SIZE])
        best: dict[tuple[float, ...], float] = {}
        for score, box in zip(expected["scores"].tolist(), expected["boxes"].tolist(), strict=True):
            key = tuple(np.clip(box, 0, [SIZE[1], SIZE[0]] * 2).round(3).tolist())
            ghosts += key in best
            best[key] = max(score, best.get(key, 0.0))
        mine = {tuple(np.round(one.box, 3).tolist()): one.score for one in found}
        assert len(mine) == len(found) == 9
        assert {key: mine[key] for key in best} == pytest.approx(best)
    assert ghosts > 0


def test_the_number_of_logits_decides() -> None:
    assert not has_softmax(80, 80)
    assert has_softmax(92, 91)
    with pytest.raises(ValueError, match="3 logits per query, its configuration 4 classes"):
        has_softmax(3, 4)


def test_known_answers(tiny: Tiny) -> None:
    seen = detector(tiny, "rt_detr", score=0.3, counting=0.5)
    logits = torch.full((1, 3, 80), -9.0)
    logits[0, 0, CLASSES.index("couch")], logits[0, 0, CLASSES.index("bed")] = 2.0, 1.9
    logits[0, 1, CLASSES.index("tv remote")] = 0.0
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 1.0], [0.75, 0.25, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0]]])
    seen.network = lambda **inputs: SimpleNamespace(logits=logits, pred_boxes=boxes)
    (found,) = seen.detect(torch.zeros(1, 3, 40, 80))
    assert [(one.label, one.box) for one in found] == [("couch", (20, 0, 60, 40)), ("tv remote", (40, 0, 80, 20))]
    assert [one.score for one in found] == pytest.approx([1 / (1 + np.exp(-2.0)), 0.5])


def test_gaps_and_other_spellings(tmp_path: Path) -> None:
    """COCO's 91 numbers with DETR's name for gaps, and RT-DETR's spellings."""
    other = {"couch": "sofa", "tv": "tvmonitor", "airplane": "aeroplane", "motorcycle": "motorbike"}
    names = ["N/A", *(other.get(name, name) for name in COCO), "N/A", "LABEL_82"]
    seen = detector({"detr": make_tiny_detr(tmp_path / "gaps", classes=names)}, "detr")
    assert seen.labels == CLASSES
    assert [seen.names[i] for i in (0, 1, 81, 82)] == [None, "person", None, None]
    logits = torch.full((1, 1, 84), -9.0)
    logits[0, 0, 81] = 9.0
    seen.network = lambda **inputs: SimpleNamespace(logits=logits, pred_boxes=torch.tensor([[[0.5, 0.5, 0.5, 0.5]]]))
    assert seen.detect(torch.zeros(1, 3, 40, 80)) == [[]]


OBJECTS365 = ["Person", "Sneakers", "Chair", "Potted Plant", "Moniter/TV", "Wild Bird", "Cup"]


def test_other_classes_are_refused(tmp_path: Path) -> None:
    path = {"rt_detr": make_tiny_rt_detr(tmp_path / "other", classes=OBJECTS365)}
    with pytest.raises(UserError, match=r"lacks 76 of GenEval's 80 classes: bicycle, .*, toothbrush.*`subset: true`"):
        detector(path, "rt_detr")
    seen = detector(path, "rt_detr", subset=True)
    reward = GenEvalReward(GenEvalOptions(colors=None), device=CPU, detector=seen)
    for label, known in (("cup", True), ("dog", False)):
        prompt = Prompt("p", {"tag": "single_object", "include": [{"class": label, "count": 1}]})
        if known:
            reward.check_prompts([prompt])
            continue
        with pytest.raises(UserError, match="unknown class 'dog'"):
            reward.check_prompts([prompt])


# -- grounding-dino -------------------------------------------------------------------------------------------------


def test_spans_are_those_of_the_words(tiny: Tiny) -> None:
    classes = ("potted plant", "cat", "skateboard", "hot dog", "zyx")
    text, spans = prompt_of(classes)
    assert text == "potted plant. cat. skateboard. hot dog. zyx."
    assert [text[a:b] for a, b in spans] == list(classes)
    tokenizer = AutoTokenizer.from_pretrained(tiny["grounding_dino"])
    encoded = tokenizer(text, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    found = token_spans(encoded["offset_mapping"], spans)
    assert [[tokens[i] for i in span] for span in found] == [
        ["pot", "##ted", "plant"],
        ["cat"],
        ["skate", "##board"],
        ["hot", "dog"],
        ["z", "##y", "##x"],
    ]


def test_the_score_of_a_class_is_its_best_token() -> None:
    logits = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logits[:, 9:] = float("-inf")
    spans = ((1, 2, 3), (5,), (7, 8))
    expected = [[max(1 / (1 + np.exp(-logits[q, t].item())) for t in span) for span in spans] for q in range(5)]
    torch.testing.assert_close(
        span_logits(logits, spans).sigmoid(), torch.tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_queries_are_transformers(tiny: Tiny) -> None:
    """The text of the library's own processor, and the boxes of its post-processing."""
    classes = ["potted plant", "cat", "hot dog"]
    seen = detector(tiny, "grounding_dino", classes=classes)
    path = tiny["grounding_dino"]
    processor = GroundingDinoProcessor(AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    for image, found in zip(pictures(), seen.detect(pictures()), strict=True):
        inputs = processor(images=image * 255, text=[classes], input_data_format="channels_first", return_tensors="pt")
        assert inputs["input_ids"].tolist() == seen.text["input_ids"].tolist()
        with torch.no_grad():
            output = seen.network(**inputs)
        (expected,) = processor.post_process_grounded_object_detection(output, threshold=-1.0, target_sizes=[SIZE])
        chances = output.logits[0].sigmoid()
        best = [max((chances[q, list(span)].max().item(), -c) for c, span in enumerate(seen.tokens)) for q in range(9)]
        edge = torch.tensor([SIZE[1], SIZE[0]] * 2)
        boxes = expected["boxes"].clamp(min=0).minimum(edge).tolist()
        pairs = sorted(((score, classes[-c], *box) for (score, c), box in zip(best, boxes, strict=True)), reverse=True)
        mine = sorted(((one.score, one.label, *one.box) for one in found), reverse=True)
        assert [one[1] for one in mine] == [one[1] for one in pairs]
        for one, other in zip(mine, pairs, strict=True):
            assert [one[0], *one[2:]] == pytest.approx([other[0], *other[2:]], abs=1e-3)


def test_all_of_genevals_classes_fit_and_more_do_not(tiny: Tiny) -> None:
    assert detector(tiny, "grounding_dino").text["input_ids"].shape[1] < 256
    many = [f"{a} {b}" for a in CLASSES[:10] for b in CLASSES[:10]]
    with pytest.raises(UserError, match=r"classes: the 100 names are \d+ tokens, and the network reads 256"):
        detector(tiny, "grounding_dino", classes=many)


def test_a_word_that_cannot_be_read_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="the tokenizer of the checkpoint cannot read '猫'"):
        detector(tiny, "grounding_dino", classes=["cat", "猫"])


# -- owlv2 ----------------------------------------------------------------------------------------------------------


def test_patches_are_transformers(tiny: Tiny) -> None:
    """The whole forward pass of the library, its text tower included, and its post-processing."""
    classes = ["cat", "dog", "hot dog"]
    seen = detector(tiny, "owl", classes=classes)
    path = tiny["owl"]
    processor = Owlv2Processor(AutoImageProcessor.from_pretrained(path), AutoTokenizer.from_pretrained(path))
    texts = [[f"a photo of a {name}" for name in classes]]
    for image in pictures():
        inputs = processor(
            images=image * 255, text=texts, input_data_format="channels_first", return_tensors="pt", max_length=64
        )
        with torch.no_grad():
            output = seen.network(**inputs)
        (expected,) = processor.image_processor.post_process_object_detection(
            output, threshold=-1.0, target_sizes=[SIZE]
        )
        found = seen.find(image)
        assert found.label.tolist() == expected["labels"].tolist()
        np.testing.assert_allclose(found.score, expected["scores"].numpy(), atol=1e-5)
        np.testing.assert_allclose(found.box, expected["boxes"].numpy(), atol=1e-3)


def test_boxes_are_fractions_of_the_longer_side(tiny: Tiny) -> None:
    seen = detector(tiny, "owl", classes=["cat"], score=0.3)
    seen.network.box_predictor = lambda *inputs: torch.tensor([0.25, 0.25, 0.5, 0.25]).expand(1, 16, 4)
    seen.network.class_predictor = lambda *inputs: (torch.zeros(1, 16, 1), None)
    ((one, *copies),) = seen.detect(torch.zeros(1, 3, 100, 40))
    assert (one.box, one.score, len(copies)) == ((0, 12.5, 40, 37.5), 0.5, 15)
    seen.options = OwlOptions(classes=["cat"])
    assert len(seen.detect(torch.zeros(1, 3, 100, 40))[0]) == 1


def test_the_template_matters_and_long_queries_are_refused(tiny: Tiny) -> None:
    one, other = (detector(tiny, "owl", template=words).queries for words in ("a photo of a {}", "the {}"))
    assert one.shape == (1, 80, 16)
    assert not torch.equal(one, other)
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(1, 80))
    with pytest.raises(UserError, match=r"classes: the query of 'x{60}' is 7\d tokens, and the network reads 64"):
        detector(tiny, "owl", classes=["x" * 60])
