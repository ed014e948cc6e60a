"""The rewards: what is scored, what is missing, and what a person is told."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import dgpo_core.plugins.registry as registry_module
from dgpo_core import hookimpl
from dgpo_core.errors import UserError
from dgpo_core.hookspecs import Component
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Example, Prompt
from dgpo_geneval import plugin
from dgpo_geneval.detector import Detection, Detector, Thresholds
from dgpo_geneval.options import GenEvalOptions
from dgpo_geneval.reward import GenEvalFlowGRPOReward, GenEvalOfficialReward, GenEvalReward
from dgpo_schemas.base import UseBlock

CPU = torch.device("cpu")
BOX = (0.0, 0.0, 4.0, 4.0)
TWO_DOGS = Prompt("two dogs", {"tag": "counting", "include": [{"class": "dog", "count": 2}]})
RED_DOG = Prompt("a red dog", {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]})

Fails = Callable[[Tensor], Exception | None]


class Scripted(Detector):
    """Sees as many dogs as an image's first pixel says (in tenths); its hooks make it fail."""

    labels: tuple[str, ...] = ("dog", "cat")
    thresholds = Thresholds(score=0.3, counting=0.5)

    def __init__(self, color: str | None = None, fails: Fails = lambda images: None) -> None:
        super().__init__(None, device=CPU)
        self.color, self.fails = color, fails
        self.batches: list[int] = []

    def detect(self, images: Tensor) -> list[list[Detection]]:
        self.batches.append(len(images))
        if error := self.fails(images):
            raise error
        return [[Detection("dog", 0.8, BOX, self.color)] * self.count(image) for image in images]

    @staticmethod
    def count(image: Tensor) -> int:
        return round(float(image[0, 0, 0]) * 10)


def images(*counts: int) -> Tensor:
    return torch.stack([torch.full((3, 4, 4), count / 10) for count in counts])


def reward(detector: Detector, kind: type[GenEvalReward] = GenEvalReward, **kw: Any) -> GenEvalReward:
    """Without a color classifier, unless one is given: whether open_clip is installed must not matter here."""
    return kind(GenEvalOptions(colors=None), device=CPU, detector=detector, **kw)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (GenEvalReward, [0, 0.5, 1, 1]),  # no `exclude`: more than asked is allowed
        (GenEvalOfficialReward, [0, 0, 1, 1]),
        (GenEvalFlowGRPOReward, [0, 0.5, 1, -1]),  # 1 - 4/2
    ],
)
def test_values(kind: type[GenEvalReward], expected: list[float]) -> None:
    scores = reward(Scripted(), kind).score(images(0, 1, 2, 6), [TWO_DOGS] * 4)
    assert scores.values.dtype == torch.float32
    assert scores.values.tolist() == expected
    assert scores.missing.tolist() == [False] * 4
    assert [d["value"] for d in scores.diagnostics] == expected
    assert scores.diagnostics[1]["wrong"].startswith("expected 2")
    assert scores.diagnostics[1]["reason"] is None
    assert scores.diagnostics[1]["tag"] == "counting"
    assert scores.diagnostics[1]["details"][0]["found"] == 1
    assert [d["correct"] for d in scores.diagnostics] == [v == 1 for v in expected]
    json.dumps(scores.diagnostics)


def test_declarations() -> None:
    assert GenEvalReward.range == GenEvalOfficialReward.range == (0.0, 1.0)
    assert GenEvalFlowGRPOReward.range == (-math.inf, 1.0)
    assert {k.group_by for k in (GenEvalReward, GenEvalOfficialReward, GenEvalFlowGRPOReward)} == {"tag"}
    assert GenEvalReward.media == {"image"}


def test_an_image_that_breaks_the_detector_is_missing_alone() -> None:
    def fails(batch: Tensor) -> Exception | None:
        return RuntimeError("cannot bear it") if any(Scripted.count(i) == 7 for i in batch) else None

    detector = Scripted(fails=fails)
    scores = reward(detector).score(images(2, 7, 1), [TWO_DOGS] * 3)
    assert scores.missing.tolist() == [False, True, False]
    assert scores.values[[0, 2]].tolist() == [1, 0.5]
    assert scores.values[1].isnan()
    assert detector.batches == [3, 1, 1, 1]
    assert scores.diagnostics[1] == {
        "correct": None,
        "value": None,
        "tag": "counting",
        "reason": "RuntimeError: cannot bear it",
        "wrong": "",
        "clauses": [],
        "marks": [],
        "details": [],
    }


def test_a_detector_that_always_fails_leaves_everything_missing() -> None:
    scores = reward(Scripted(fails=lambda images: OSError("no weights"))).score(images(1, 2), [TWO_DOGS] * 2)
    assert scores.missing.tolist() == [True, True]
    assert [d["reason"] for d in scores.diagnostics] == ["OSError: no weights"] * 2


def test_a_batch_that_is_too_large_is_asked_for_image_by_image() -> None:
    detector = Scripted(fails=lambda images: MemoryError("too much") if len(images) > 1 else None)
    scores = reward(detector).score(images(1, 2), [TWO_DOGS] * 2)
    assert scores.values.tolist() == [0.5, 1]
    assert not scores.missing.any()


def test_too_few_answers_are_not_attributed() -> None:
    class Short(Scripted):
        def detect(self, images: Tensor) -> list[list[Detection]]:
            return []

    scores = reward(Short()).score(images(1, 2), [TWO_DOGS] * 2)
    assert scores.missing.all()
    assert "0 lists of detections for 1 images" in scores.diagnostics[0]["reason"]


def test_an_undeclared_label_is_missing() -> None:
    class Liar(Scripted):
        labels = ("cat",)

    scores = reward(Liar()).score(images(1, 0), [TWO_DOGS] * 2)
    assert scores.missing.tolist() == [True, False]
    assert "'dog', which it does not declare" in scores.diagnostics[0]["reason"]


def test_metadata_that_nobody_checked_is_missing() -> None:
    scores = reward(Scripted()).score(images(2, 2), [Prompt("bare"), TWO_DOGS])
    assert scores.missing.tolist() == [True, False]
    assert "prompt 'bare'" in scores.diagnostics[0]["reason"]
    assert scores.diagnostics[0]["tag"] is None


def test_colors_come_from_the_detector() -> None:
    assert reward(Scripted("red")).score(images(1), [RED_DOG]).values.tolist() == [1]
    assert reward(Scripted("blue")).score(images(1), [RED_DOG]).values.tolist() == [0.5]


def test_a_color_nobody_knows_is_missing() -> None:
    scores = reward(Scripted()).score(images(1, 0), [RED_DOG] * 2)
    assert scores.missing.tolist() == [True, False]  # without a dog the color does not matter
    assert scores.diagnostics[0]["reason"].startswith("ColorUnknown: the color of 'dog' is required")


def test_colors_come_from_the_classifier() -> None:
    seen: list[tuple[Tensor, Sequence[Sequence[Detection]]]] = []

    def classify(batch: Tensor, objects: Sequence[Sequence[Detection]]) -> list[list[str]]:
        seen.append((batch, objects))
        return [["red"] * len(o) for o in objects]

    media = images(0, 1)
    scores = reward(Scripted(), color_classifier=classify).score(media, [RED_DOG] * 2)
    assert scores.values.tolist() == [0, 1]
    ((batch, objects),) = seen
    assert torch.equal(batch, media[1:])
    assert objects == [[Detection("dog", 0.8, BOX)]]


def test_a_classifier_that_fails_leaves_the_sample_missing() -> None:
    def classify(batch: Tensor, objects: Sequence[Sequence[Detection]]) -> list[list[str]]:
        raise ValueError("no text encoder")

    scores = reward(Scripted(), color_classifier=classify).score(images(1, 0), [RED_DOG] * 2)
    assert scores.missing.tolist() == [True, False]
    assert scores.diagnostics[0]["reason"] == "ValueError: no text encoder"


def test_the_colors_of_all_images_are_named_in_one_call() -> None:
    """Each by what it shows; images without an object to name are not sent at all."""
    calls: list[list[int]] = []

    def classify(batch: Tensor, objects: Sequence[Sequence[Detection]]) -> list[list[str]]:
        calls.append([len(o) for o in objects])
        return [
            ["red" if Scripted.count(image) < 3 else "blue"] * len(o) for image, o in zip(batch, objects, strict=True)
        ]

    two_red = Prompt("two red dogs", {"tag": "colors", "include": [{"class": "dog", "count": 2, "color": "red"}]})
    prompts = [RED_DOG, RED_DOG, TWO_DOGS, two_red, two_red, RED_DOG]
    scores = reward(Scripted(), color_classifier=classify).score(images(1, 0, 2, 2, 3, 4), prompts)
    assert calls == [[1, 2, 2, 1]]
    assert scores.values.tolist() == [1, 0, 1, 1, 0.5, 0.5]
    assert [d["marks"][0]["text"] for d in scores.diagnostics if d["marks"]] == [
        "red dog 0.80", "dog 0.80", "red dog 0.80", "blue dog 0.80", "blue dog 0.80",
    ]  # fmt: skip


def test_an_image_that_breaks_the_classifier_is_missing_alone() -> None:
    calls: list[int] = []

    def classify(batch: Tensor, objects: Sequence[Sequence[Detection]]) -> list[list[str]]:
        calls.append(len(batch))
        if any(Scripted.count(image) == 3 for image in batch):
            raise RuntimeError("cannot bear it")
        return [["red"] * len(o) for o in objects]

    scores = reward(Scripted(), color_classifier=classify).score(images(1, 3, 2), [RED_DOG] * 3)
    assert scores.missing.tolist() == [False, True, False]
    assert scores.diagnostics[1]["reason"] == "RuntimeError: cannot bear it"
    assert calls == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("answer", "words"),
    [([["red", "red"]], "returned 2 colors for 1 objects"), ([], "returned 0 lists of colors for 1 images")],
)
def test_colors_that_do_not_fit_are_not_attributed(answer: list[list[str]], words: str) -> None:
    scores = reward(Scripted(), color_classifier=lambda batch, objects: answer).score(images(1), [RED_DOG])
    assert scores.missing.all()
    assert words in scores.diagnostics[0]["reason"]


@pytest.fixture
def no_open_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)


@pytest.mark.usefixtures("no_open_clip")
def test_prompts_with_colors_want_someone_who_names_them() -> None:
    for _ in range(2):  # the check is repeated, on fewer prompts, to find the first that is refused
        judge = GenEvalReward(GenEvalOptions(), device=CPU, detector=Scripted())
        with pytest.raises(
            UserError, match=r"'geneval': prompt 'a red dog' requires a color: .*pip install 'dgpo-geneval\[color\]'"
        ):
            judge.check_prompts([TWO_DOGS, RED_DOG])
    judge.check_prompts([TWO_DOGS])
    scores = judge.score(images(1, 2), [RED_DOG, TWO_DOGS])
    assert scores.missing.tolist() == [True, False]
    assert "pip install 'dgpo-geneval[color]'" in scores.diagnostics[0]["reason"]
    with pytest.raises(UserError, match="the option `colors` is null"):
        reward(Scripted()).check_prompts([RED_DOG])
    reward(Scripted(), color_classifier=lambda batch, objects: [["red"]]).check_prompts([RED_DOG])


@pytest.mark.usefixtures("no_open_clip")
def test_a_detector_may_name_colors_itself() -> None:
    detector = Scripted("red")
    detector.colors = ("red", "blue")
    judge = GenEvalReward(GenEvalOptions(), device=CPU, detector=detector)
    judge.check_prompts([RED_DOG])
    green = Prompt("a green dog", {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "green"}]})
    with pytest.raises(UserError, match=r"'a green dog'.*'include\[0\].color': unknown color 'green'.*red, blue"):
        judge.check_prompts([RED_DOG, green])


def test_examples_are_the_detectors() -> None:
    class Shown(Scripted):
        def examples(self) -> list[Example]:
            return [Example("a dog", RED_DOG, images(1)[0], good=True)]

    assert reward(Scripted()).examples() == ()
    assert [e.name for e in reward(Shown()).examples()] == ["a dog"]


def test_a_score_does_not_depend_on_the_batch() -> None:
    media, prompts = images(0, 1, 2, 3), [TWO_DOGS, TWO_DOGS, RED_DOG, TWO_DOGS]
    judge = reward(Scripted("red"))
    alone = [judge.score(media[i : i + 1], [p]).values.item() for i, p in enumerate(prompts)]
    assert judge.score(media, prompts).values.tolist() == alone


def test_check_prompts() -> None:
    judge = reward(Scripted())
    judge.check_prompts([TWO_DOGS])
    with pytest.raises(UserError, match=r"prompt 'a dgo'.*unknown class 'dgo'; did you mean 'dog'"):
        judge.check_prompts([TWO_DOGS, Prompt("a dgo", {"tag": "colors", "include": [{"class": "dgo", "count": 1}]})])
    with pytest.raises(UserError, match=r"17 is more than the 16 detections"):
        judge.check_prompts([Prompt("many", {"tag": "counting", "include": [{"class": "dog", "count": 17}]})])


RED_AND_BLUE = [{"class": "dog", "count": 1, "color": "red"}, {"class": "dog", "count": 1, "color": "blue"}]


@pytest.mark.parametrize(
    ("include", "exclude", "words"),
    [
        (
            [{"class": "dog", "count": 10}, {"class": "dog", "count": 7, "color": "red"}],
            [],
            r"key 'include\[1\].count': 2 clauses require 17 'dog' in total; the detector keeps at most 16 per class",
        ),
        (
            RED_AND_BLUE,
            [{"class": "dog", "count": 2}],
            r"key 'exclude\[0\].count': allows fewer than 2 'dog', but .* require 2 .* in total; must be at least 3",
        ),
        (
            [{"class": "dog", "count": 1, **({"position": ["above", i - 1]} if i else {})} for i in range(8)],
            [],
            r"key 'include': there are more than 5040 ways to assign the objects of 'dog'",
        ),
    ],
)
def test_what_different_objects_cannot_satisfy_is_refused(include: Any, exclude: Any, words: str) -> None:
    prompt = Prompt("dogs", {"tag": "color_attr", "include": include, "exclude": exclude})
    with pytest.raises(UserError, match=f"^prompt 'dogs': GenEval metadata, {words}"):
        reward(Scripted("red"), color_classifier=lambda batch, objects: []).check_prompts([TWO_DOGS, prompt])


@pytest.mark.parametrize("kind", [GenEvalOfficialReward, GenEvalFlowGRPOReward])
def test_variants_that_look_at_the_same_objects_say_so(
    kind: type[GenEvalReward], caplog: pytest.LogCaptureFixture
) -> None:
    judge = reward(Scripted("red"), kind, color_classifier=lambda batch, objects: [])
    judge.check_prompts([TWO_DOGS, RED_DOG])
    assert not caplog.records
    judge.check_prompts([TWO_DOGS, Prompt("a red dog and a blue dog", {"tag": "colors", "include": RED_AND_BLUE})])
    assert [record.getMessage() for record in caplog.records] == [
        f"{kind.variant}: 1 of 2 prompts name a class in several clauses, the first is 'a red dog and a blue dog'; "
        "like the program it reproduces, this variant evaluates them on the same objects; `geneval` assigns "
        "distinct objects"
    ]


def test_a_red_dog_and_a_blue_dog() -> None:
    class Both(Scripted):
        def detect(self, images: Tensor) -> list[list[Detection]]:
            return [[Detection("dog", 0.8, BOX, "blue"), Detection("dog", 0.7, BOX, "red")] for _ in images]

    prompt = Prompt("a red dog and a blue dog", {"tag": "color_attr", "include": RED_AND_BLUE})
    assert reward(Both()).score(images(0), [prompt]).values.tolist() == [1]
    assert reward(Both(), GenEvalOfficialReward).score(images(0), [prompt]).values.tolist() == [0]


class ByName(Scripted):
    """A detector as the registry builds it."""

    def __init__(self, options: Any, *, device: torch.device) -> None:
        super().__init__("red")
        self.options, self.device = options, device


class NotADetector:
    """Takes what a detector takes."""

    def __init__(self, options: Any, *, device: torch.device) -> None: ...


class Detectors:
    """A plugin that declares them."""

    @hookimpl
    def dgpo_detectors(self) -> list[Component]:
        return [
            Component("scripted", "Sees dogs", f"{__name__}:ByName"),
            Component("odd", "Sees nothing", f"{__name__}:NotADetector"),
        ]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A registry of this plugin's rewards and nothing else, in the place of the installed one."""
    made = Registry(discover=False)
    made.register(plugin, distribution="dgpo-geneval")
    monkeypatch.setattr(registry_module, "get_registry", lambda: made)
    return made


def test_the_detector_is_required(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"'geneval-official': `detector` is missing.*\(installed: detr, .*, yolox\)"):
        registry.create("reward", "geneval-official", device=CPU)
    registry.register(Detectors(), distribution="dogs")
    with pytest.raises(UserError, match=r"'geneval': `detector` is missing.*\(.*, odd, .*, scripted, yolox\)"):
        registry.create("reward", "geneval", device=CPU)


@pytest.mark.parametrize("name", ["geneval", "geneval-official", "geneval-flowgrpo"])
@pytest.mark.parametrize("detector", ["scripted", {"use": "scripted"}])
def test_a_run_builds_reward_and_detector_by_name(registry: Registry, name: str, detector: Any) -> None:
    registry.register(Detectors(), distribution="dogs")
    built = registry.create("reward", UseBlock(use=name, options={"detector": detector}), device=CPU)
    assert built.variant == name
    assert isinstance(built.detector, ByName)
    assert built.detector.device is CPU
    assert built.score(images(1), [RED_DOG]).values.tolist() == [1]


def test_an_unknown_detector_names_the_nearest(registry: Registry) -> None:
    registry.register(Detectors(), distribution="dogs")
    with pytest.raises(UserError, match=r"unknown detector 'scriptd'; did you mean scripted\?"):
        GenEvalReward(GenEvalOptions.model_validate({"detector": "scriptd"}), device=CPU)


def test_what_is_not_a_detector_is_refused(registry: Registry) -> None:
    registry.register(Detectors(), distribution="dogs")
    with pytest.raises(UserError, match=r"detector odd of dogs 0: .*:NotADetector is not a subclass of Detector"):
        GenEvalReward(GenEvalOptions.model_validate({"detector": {"use": "odd"}}), device=CPU)
