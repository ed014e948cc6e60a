"""The three GenEval rewards: a detector finds objects, the evaluator scores them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Example, Prompt, Scores
from dgpo_geneval.assignment import check_apart, shared_classes
from dgpo_geneval.detector import ColorClassifier, Detection, Detector
from dgpo_geneval.diagnosis import diagnose
from dgpo_geneval.evaluator import Verdict, colorless, evaluate
from dgpo_geneval.metadata import Metadata, check_against, parse
from dgpo_geneval.variants import VARIANTS, VariantName

if TYPE_CHECKING:
    from dgpo_geneval.options import GenEvalOptions

__all__ = ["GenEvalFlowGRPOReward", "GenEvalOfficialReward", "GenEvalReward"]

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Case:
    """State of one sample: its detections, those without a color, and the error if one occurred."""

    prompt: Prompt
    metadata: Metadata | None = None
    seen: Sequence[Detection] = ()
    colorless: Sequence[Detection] = ()
    named: Sequence[str] | None = None
    error: Exception | None = None


class GenEvalReward(RewardModel):
    """GenEval for training: the fraction of the prompt's requirements that are met, in [0, 1] (`variants.bounded`)."""

    variant: ClassVar[VariantName] = "geneval"
    range = (0.0, 1.0)
    group_by = "tag"

    def __init__(
        self,
        options: GenEvalOptions,
        *,
        device: torch.device,
        detector: Detector | None = None,
        color_classifier: ColorClassifier | None = None,
    ) -> None:
        """Build the detector. `detector` and `color_classifier` replace those of the options.

        Raises UserError, listing the installed detectors, if there is none.
        """
        super().__init__(options, device=device)
        self.detector = detector or _build(options, self.variant, device)
        self._color_classifier = color_classifier
        self._names_classifier = color_classifier is None and options.colors is not None
        self._no_color_classifier: UserError | None = None

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError, naming prompt and key, for metadata that is invalid or requires what cannot be detected.

        If several clauses name one class, `geneval` also rejects prompts that distinct objects cannot satisfy; the
        other variants, which evaluate such clauses on the same objects, log a warning.

        If a prompt requires a color and the detector does not name colors, this loads the color classifier, so that
        errors appear before a run starts.
        """
        detector = self.detector
        required = [check_against(p, detector.labels, detector.thresholds, detector.colors) for p in prompts]
        self._check_shared(prompts, required)
        colored = [p.text for p, r in zip(prompts, required, strict=True) if any(clause.color for clause in r.include)]
        if colored and not self.detector.colors:
            try:
                self.color_classifier()
            except UserError as error:
                raise UserError(f"reward {self.variant!r}: prompt {colored[0]!r} requires a color: {error}") from error

    def _check_shared(self, prompts: Sequence[Prompt], required: Sequence[Metadata]) -> None:
        """Check prompts in which several clauses name one class. required: the metadata of each prompt."""
        shared = [(p, r) for p, r in zip(prompts, required, strict=True) if shared_classes(r.include)]
        if shared and not VARIANTS[self.variant].apart:
            log.warning(
                "%s: %d of %d prompts name a class in several clauses, the first is %r; like the program it "
                "reproduces, this variant evaluates them on the same objects; `geneval` assigns distinct objects",
                *(self.variant, len(shared), len(prompts), shared[0][0].text),
            )
            return
        for prompt, metadata in shared:
            try:
                check_apart(metadata, self.detector.thresholds.per_class)
            except ValueError as error:
                raise UserError(f"prompt {prompt.text!r}: GenEval metadata, {error}") from error

    def color_classifier(self) -> ColorClassifier:
        """Return the color classifier, loaded on first use. Raises UserError on every call if loading fails."""
        if self._color_classifier is None:
            if self._no_color_classifier is not None:
                raise self._no_color_classifier
            try:
                self._color_classifier = _build_color_classifier(self.options, self.device)
            except UserError as error:
                self._no_color_classifier = error
                raise
        return self._color_classifier

    def provenance(self) -> Mapping[str, Any]:
        """Return the detector's: its thresholds, and what else its detections depend on besides the options; and which
        classifier names colors, if the detector does not."""
        found = dict(self.detector.provenance())
        if self._names_classifier and not self.detector.colors:
            found["colors"] = self._color_classifier_described
        return found

    @cached_property
    def _color_classifier_described(self) -> str:
        """The color classifier of the options, loaded or not, so that the provenance never changes."""
        from dgpo_geneval.colors import described

        return described(self.options.colors)

    def examples(self) -> Sequence[Example]:
        """Return the detector's examples."""
        return self.detector.examples()

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score images [B, 3, H, W], float in [0, 1]; returns values float32 [B] on the CPU.

        Runs the detector on all images, classifies the required colors in one call, then evaluates. A sample whose
        detection, color or metadata fails is missing (value nan), with the reason in its diagnostics. If the detector
        or the classifier fails on the batch, it is retried image by image, so that only failing images are missing.
        Diagnostics: see `diagnosis.diagnose`.
        """
        cases = [self._case(prompt, seen) for prompt, seen in zip(prompts, self._detect(media), strict=True)]
        self._name_colors(media, cases)
        values, diagnostics = [], []
        for case in cases:
            verdict, reason = None, None
            try:
                verdict = self._judge(case)
            except Exception as error:
                log.debug("prompt %r: the sample is missing", case.prompt.text, exc_info=True)
                reason = f"{type(error).__name__}: {error}"
            values.append(float("nan") if verdict is None else verdict.value)
            diagnostics.append(diagnose(case.prompt, self.variant, verdict, reason))
        tensor = torch.tensor(values, dtype=torch.float32)
        return Scores(tensor, tensor.isnan(), tuple(diagnostics))

    def _detect(self, images: Tensor) -> list[list[Detection] | Exception]:
        """Return the detections of each image, or the exception that it raised."""
        try:
            found = self.detector.detect(images)
            if len(found) != len(images):
                raise ValueError(f"the detector returned {len(found)} lists of detections for {len(images)} images")
            return list(found)
        except Exception as error:
            if len(images) == 1:
                return [error]
            log.warning("the detector failed on %d images, retrying one by one", len(images), exc_info=True)
            return [self._detect(images[index : index + 1])[0] for index in range(len(images))]

    def _case(self, prompt: Prompt, seen: list[Detection] | Exception) -> _Case:
        """Prepare a sample: its metadata, and the detections that need a color."""
        if isinstance(seen, Exception):
            return _Case(prompt, error=seen)
        try:
            strange = {detection.label for detection in seen} - set(self.detector.labels)
            if strange:
                raise ValueError(f"the detector returned the label {min(strange)!r}, which it does not declare")
            metadata = parse(prompt)
            unknown = colorless(metadata, seen, variant=self.variant, thresholds=self.detector.thresholds)
        except Exception as error:
            return _Case(prompt, error=error)
        return _Case(prompt, metadata, seen, unknown)

    def _name_colors(self, media: Tensor, cases: Sequence[_Case]) -> None:
        """Classify all required colors of all images in one call."""
        asking = [(index, case) for index, case in enumerate(cases) if case.colorless]
        if not asking or (self._color_classifier is None and self.options.colors is None):
            return
        try:
            classifier = self.color_classifier()
        except UserError as error:
            for _, case in asking:
                case.error = error
            return
        images = media[[index for index, _ in asking]]
        answers = _ask(classifier, images, [case.colorless for _, case in asking])
        for (_, case), answer in zip(asking, answers, strict=True):
            if isinstance(answer, Exception):
                case.error = answer
            else:
                case.named = answer

    def _judge(self, case: _Case) -> Verdict:
        """Evaluate one sample; raise its exception if it failed."""
        if case.error is not None:
            raise case.error
        assert case.metadata is not None
        names = None if case.named is None else iter(case.named)
        return evaluate(
            case.metadata,
            case.seen,
            variant=self.variant,
            thresholds=self.detector.thresholds,
            # `evaluate` requests them in the order in which `colorless` lists them.
            classify_color=None if names is None else lambda objects: list(islice(names, len(objects))),
        )


class GenEvalOfficialReward(GenEvalReward):
    """GenEval as the benchmark scores it: 0 or 1."""

    variant = "geneval-official"


class GenEvalFlowGRPOReward(GenEvalReward):
    """GenEval as Flow-GRPO and DGPO trained on it, defects included: at most 1, unbounded below."""

    variant = "geneval-flowgrpo"
    range = (float("-inf"), 1.0)


def _ask(
    classifier: ColorClassifier, images: Tensor, objects: list[Sequence[Detection]]
) -> list[Sequence[str] | Exception]:
    """Return the colors of each image's objects, or the exception that they raised."""
    try:
        answers = list(classifier(images, objects))
        if len(answers) != len(objects):
            raise ValueError(f"the color classifier returned {len(answers)} lists of colors for {len(objects)} images")
        for answer, detections in zip(answers, objects, strict=True):
            if len(answer) != len(detections):
                raise ValueError(f"the color classifier returned {len(answer)} colors for {len(detections)} objects")
        return list(answers)
    except Exception as error:
        if len(objects) == 1:
            return [error]
        log.warning("the color classifier failed on %d images, retrying one by one", len(objects), exc_info=True)
        return [_ask(classifier, images[i : i + 1], [one])[0] for i, one in enumerate(objects)]


def _build_color_classifier(options: GenEvalOptions, device: torch.device) -> ColorClassifier:
    """Build the classifier of the options. Raises UserError if `colors` is null, if open_clip is not installed, or if
    its weights cannot be loaded."""
    if options.colors is None:
        raise UserError(
            "the detector does not name colors, and the option `colors` is null; remove it to enable the classifier"
        )
    from dgpo_geneval.colors import OpenClipColors

    return OpenClipColors(options.colors, device=device)


def _build(options: GenEvalOptions, name: str, device: torch.device) -> Detector:
    """Build the detector of the options. Raises UserError if it is not set."""
    from dgpo_core.plugins.registry import get_registry

    registry = get_registry()
    if options.detector is None:
        installed = ", ".join(registry.components("detector"))
        raise UserError(
            f"reward {name!r}: `detector` is missing; set `options: {{detector: NAME}}` (installed: {installed})"
        )
    detector: Detector = registry.create("detector", options.detector, device=device)
    return detector
