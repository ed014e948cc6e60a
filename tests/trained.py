"""What a LoRA adds to each weight, by its definition."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from dgpo_core.contracts import Backbone


def added_weights(backbone: Backbone) -> dict[str, Tensor]:
    """alpha / rank * B A of every layer in float64, from the trained parameters of a LoRA; by the names of weights."""
    scale = backbone.section.lora.alpha / backbone.section.lora.rank
    parameters = {name: p.detach().double() for name, p in backbone.trainable().items()}
    return {
        name.replace("lora_A.default.", ""): scale * parameters[name.replace("lora_A", "lora_B")] @ down
        for name, down in parameters.items()
        if "lora_A" in name
    }


def changed_weights(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was added to every weight that is not as before, in float64."""
    assert before.keys() == after.keys()
    found = {name: after[name].double() - before[name].double() for name in before}
    return {name: change for name, change in found.items() if bool(change.any())}
