"""Components of dgpo-geneval. This module must not import heavy dependencies."""

from __future__ import annotations

from collections.abc import Sequence

from dgpo_core import hookimpl
from dgpo_core.hookspecs import Command, Component, Kind

__all__ = ["dgpo_commands", "dgpo_detectors", "dgpo_kinds", "dgpo_prompt_sources", "dgpo_rewards", "dgpo_suites"]

dgpo_contract = 3

BOXES = "dgpo_geneval.detectors"


@hookimpl
def dgpo_kinds() -> Sequence[Kind]:
    """Declare the component kind `detector`: the rewards accept any installed detector."""
    return [
        Kind(
            name="detector",
            hook="dgpo_detectors",
            contracts=("dgpo_geneval.detector:Detector",),
            checks="dgpo_geneval.contract:detector_checks",
            template="dgpo_geneval:templates/detector",
        )
    ]


@hookimpl
def dgpo_commands() -> Sequence[Command]:
    """Provide `dgpo detector-thresholds`."""
    summary = "Choose a detector's thresholds from labeled pictures."
    target = "dgpo_geneval.commands.detector_thresholds:detector_thresholds"
    return [Command("detector-thresholds", summary, target, 140)]


@hookimpl
def dgpo_rewards() -> Sequence[Component]:
    """Declare one reward per variant."""
    return [
        Component(
            name="geneval",
            summary="GenEval for training: fraction of the prompt's requirements that are met, in [0, 1]",
            implementation="dgpo_geneval.reward:GenEvalReward",
            options="dgpo_geneval.options:GenEvalOptions",
        ),
        Component(
            name="geneval-official",
            summary="GenEval as the benchmark scores it: 0 or 1",
            implementation="dgpo_geneval.reward:GenEvalOfficialReward",
            options="dgpo_geneval.options:GenEvalOptions",
        ),
        Component(
            name="geneval-flowgrpo",
            summary="GenEval as Flow-GRPO and DGPO trained on it, known defects included, to reproduce their curves",
            implementation="dgpo_geneval.reward:GenEvalFlowGRPOReward",
            options="dgpo_geneval.options:GenEvalOptions",
        ),
    ]


@hookimpl
def dgpo_detectors() -> Sequence[Component]:
    """Declare the detectors. Each has its own scale of scores, so each makes another score of GenEval."""
    mask2former = (
        "Mask2Former from transformers with Facebook's COCO weights, not the benchmark's mmdet weights: "
        "GenEval with Mask2Former (HF), with adjustable thresholds"
    )
    detr = "Any object detector of transformers with COCO's classes (RT-DETR, D-FINE, DETR, ...): boxes, no masks"
    dino = "Grounding DINO from transformers, told in words what to look for: open vocabulary, boxes, no masks"
    owl = "OWLv2 from transformers, told in words what to look for: open vocabulary, boxes, no masks"
    yolox = "YOLOX from your ONNX file through onnxruntime, on the CPU: boxes, no masks; small and fast"
    return [
        Component(
            "mask2former",
            mask2former,
            "dgpo_geneval.mask2former:Mask2FormerDetector",
            "dgpo_geneval.options:Mask2FormerOptions",
        ),
        Component("detr", detr, f"{BOXES}.detr:DetrDetector", f"{BOXES}.options:DetrOptions"),
        Component(
            "grounding-dino",
            dino,
            f"{BOXES}.grounding_dino:GroundingDinoDetector",
            f"{BOXES}.options:GroundingDinoOptions",
        ),
        Component("owlv2", owl, f"{BOXES}.owl:OwlDetector", f"{BOXES}.options:OwlOptions"),
        Component("yolox", yolox, f"{BOXES}.yolox:YoloxDetector", f"{BOXES}.options:YoloxOptions"),
    ]


@hookimpl
def dgpo_prompt_sources() -> Sequence[Component]:
    """Declare the prompt source `geneval`."""
    summary = "GenEval prompts: generated for training, with a held-out split or the benchmark's own 553 prompts"
    return [
        Component(
            "geneval", summary, "dgpo_geneval.prompts:GenEvalPrompts", "dgpo_geneval.options:GenEvalPromptsOptions"
        )
    ]


@hookimpl
def dgpo_suites() -> Sequence[Component]:
    """Declare the benchmark itself."""
    summary = "GenEval: 553 prompts x 4 samples, a detector; the unweighted mean of its six tasks"
    return [
        Component("geneval", summary, "dgpo_geneval.benchmark:GenEvalSuite", "dgpo_geneval.options:GenEvalSuiteOptions")
    ]
