"""The three GenEval rewards: a detector looks, the evaluator judges."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt, Scores
from dgpo_geneval.detector import ColorClassifier, Detection, Detector
from dgpo_geneval.evaluator import Verdict, evaluate
from dgpo_geneval.metadata import check_against, parse
from dgpo_geneval.variants import VariantName

if TYPE_CHECKING:
    from dgpo_geneval.options import GenEvalOptions

__all__ = ["GenEvalFlowGRPOReward", "GenEvalOfficialReward", "GenEvalReward"]

log = logging.getLogger(__name__)


class GenEvalReward(RewardModel):
    """GenEval for training, in [0, 1]: the share of the prompt's demands that are met (`variants.bounded`)."""

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
        """`detector` and `color_classifier`, already built, stand in for those that the options name.

        Raises UserError if neither names a detector, listing the installed ones.
        """
        super().__init__(options, device=device)
        self.detector = detector or _build(options, self.variant, device)
        self.color_classifier = color_classifier

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Raise UserError, naming prompt and key, for metadata that is invalid or asks for what cannot be detected."""
        for prompt in prompts:
            check_against(prompt, self.detector.labels, self.detector.thresholds)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Images [B, 3, H, W], float in [0, 1], to values float32 [B] on the CPU.

        A sample whose detection, colour or metadata fails is missing (its value nan), with the reason in its
        diagnostics; if the detector fails on the batch it is asked again image by image, so that only the images that
        it cannot bear are lost. Diagnostics: correct, value, tag, clauses, reason.
        """
        values, diagnostics = [], []
        for index, (prompt, seen) in enumerate(zip(prompts, self._detect(media), strict=True)):
            try:
                verdict = self._judge(media[index : index + 1], prompt, seen)
            except Exception as error:
                log.debug("prompt %r: the sample is missing", prompt.text, exc_info=True)
                values.append(float("nan"))
                diagnostics.append(_diagnosis(prompt, None, f"{type(error).__name__}: {error}"))
            else:
                values.append(verdict.value)
                diagnostics.append(_diagnosis(prompt, verdict, verdict.reason))
        tensor = torch.tensor(values, dtype=torch.float32)
        return Scores(tensor, tensor.isnan(), tuple(diagnostics))

    def _detect(self, images: Tensor) -> list[list[Detection] | Exception]:
        """Detections of each image, or why there are none."""
        try:
            found = self.detector.detect(images)
            if len(found) != len(images):
                raise ValueError(f"the detector gave {len(found)} lists of detections for {len(images)} images")
            return list(found)
        except Exception as error:
            if len(images) == 1:
                return [error]
            log.warning("the detector failed on %d images, asking for each alone", len(images), exc_info=True)
            return [self._detect(images[index : index + 1])[0] for index in range(len(images))]

    def _judge(self, image: Tensor, prompt: Prompt, seen: list[Detection] | Exception) -> Verdict:
        """The verdict on one image [1, 3, H, W]; raises what the detector raised."""
        if isinstance(seen, Exception):
            raise seen
        strange = {detection.label for detection in seen} - set(self.detector.labels)
        if strange:
            raise ValueError(f"the detector gave the label {min(strange)!r}, which it does not declare")
        classifier = self.color_classifier
        return evaluate(
            parse(prompt),
            seen,
            variant=self.variant,
            thresholds=self.detector.thresholds,
            classify_color=None if classifier is None else lambda objects: classifier(image, [objects])[0],
        )


class GenEvalOfficialReward(GenEvalReward):
    """GenEval as the benchmark scores it: 0 or 1."""

    variant = "geneval-official"


class GenEvalFlowGRPOReward(GenEvalReward):
    """GenEval as Flow-GRPO and DGPO trained on it, defects included: at most 1, unbounded below."""

    variant = "geneval-flowgrpo"
    range = (float("-inf"), 1.0)


def _diagnosis(prompt: Prompt, verdict: Verdict | None, reason: str) -> dict[str, Any]:
    """JSON-able account of one sample; `correct` and `value` are None where it could not be scored."""
    return {
        "correct": None if verdict is None else verdict.correct,
        "value": None if verdict is None else verdict.value,
        "tag": prompt.metadata.get("tag"),
        "clauses": [] if verdict is None else verdict.clauses(),
        "reason": reason,
    }


def _build(options: GenEvalOptions, name: str, device: torch.device) -> Detector:
    """The detector that the options name. Raises UserError if they name none, or if it is not a Detector."""
    from dgpo_core.registry import get_registry

    registry = get_registry()
    if options.detector is None:
        installed = ", ".join(registry.parts("detector")) or "none is installed"
        raise UserError(
            f"reward {name!r}: `detector` is missing; write `options: {{detector: NAME}}` (installed: {installed})"
        )
    detector = registry.create("detector", options.detector, device=device)
    if not isinstance(detector, Detector):
        raise UserError(
            f"reward {name!r}: detector {options.detector.use!r} is a {type(detector).__name__}, "
            "not a dgpo_geneval.detector.Detector"
        )
    return detector
