"""`RunConfig`: everything a `run.yaml` may say.

One class per section, in the order in which a run uses them. Cross-field rules stand in `rules.py`.
Times are flow-matching times sigma in [0, 1]: 1 is pure noise, 0 is data.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from dgpo_schemas.addresses import service_address
from dgpo_schemas.base import ANYTIME, FROM_THERE_ON, AnyOf, Float, Int, ShortForm, StrictModel, Use, UseBlock
from dgpo_schemas.places import PathOrName, PathText, Program
from dgpo_schemas.rules import check_run
from dgpo_schemas.sigma import Shift, SigmaExpression, resolve_sigma

__all__ = [
    "NAME",
    "STEP",
    "AdvantagesSection",
    "BackboneSection",
    "CheckpointsSection",
    "EmaSection",
    "EvaluationSection",
    "FastEmaSection",
    "FinerSection",
    "GuardsSection",
    "LoggingSection",
    "LoraSection",
    "ObjectiveSection",
    "OptimiserSection",
    "PrecisionSection",
    "PromptsBlock",
    "PromptsSection",
    "RewardBlock",
    "RolloutSection",
    "RunConfig",
    "RunSection",
    "ScoringSection",
    "ServiceSection",
    "SlowEmaSection",
    "SourceBlock",
    "StopSection",
    "TimestepsSection",
    "WorkerSection",
]

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Of runs, and of rewards in logs."""


def _address(text: str) -> str:
    try:
        return service_address(text)
    except ValueError as error:
        raise PydanticCustomError("address", "{message}", {"message": str(error)}) from None


Address = Annotated[str, AfterValidator(_address), Field(json_schema_extra={"pattern": r"^https?://[^/\s]+"})]


class RunSection(StrictModel):
    """What the run is called, where it writes and how long it lasts."""

    name: str = Field(
        pattern=NAME,
        max_length=100,
        json_schema_extra=ANYTIME,
        description="Name of the run and of its directory: letters, digits, dot, dash, underscore.",
    )
    output: PathText = Field(
        default="runs",
        min_length=1,
        json_schema_extra=ANYTIME,
        description="Directory in which the run's own directory is made.",
    )
    seed: Int = Field(default=0, ge=0, lt=2**63, description="Seed from which every random draw of the run is keyed.")
    iterations: Int = Field(
        ge=1,
        le=10**9,
        json_schema_extra=FROM_THERE_ON,
        description="Iterations to train: each rolls out, scores, weighs and optimises.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        json_schema_extra=FROM_THERE_ON,
        description="Where to compute; `auto` takes CUDA if there is a card, else the CPU.",
    )
    threads: Int | None = Field(
        default=None,
        ge=1,
        le=1024,
        json_schema_extra=FROM_THERE_ON,
        description="CPU threads for torch; by default torch decides. Part of bit-exact resume.",
    )
    process_timeout: Float = Field(
        default=1800.0,
        ge=0.001,
        le=1e7,
        json_schema_extra=ANYTIME,
        description="Seconds that a process waits for another one of the run before it takes it for lost; then the run "
        "ends.",
    )
    shard: bool = Field(
        default=False,
        json_schema_extra=ANYTIME,
        description="Spread the model's weights over the processes (FSDP2), for a model that does not fit one card; an "
        "adapter stays whole. Without effect with one process.",
    )


class LoraSection(StrictModel):
    """The low-rank adapter that is trained."""

    rank: Int = Field(default=64, ge=1, le=16384, description="Rank of the adapter.")
    alpha: Float = Field(
        default=128.0, gt=0, le=1e6, description="Scale numerator: the update is multiplied by alpha / rank."
    )
    targets: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Linear layers to adapt: names, or endings of names, in whole parts between dots. By default the "
        "backbone's own, for sd3 and wan every attention projection, which may be more than a published recipe adapts "
        "(sd3: `attn2` too; the sd35 examples list the published ones).",
    )


class BackboneSection(UseBlock):
    """The model that is trained."""

    checkpoint: PathOrName = Field(
        min_length=1,
        description="Directory, Hub repository, or `package:NAME/path` for weights inside an installed package.",
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit, for a Hub repository.")
    train: Literal["lora", "full"] = Field(default="lora", description="Train a LoRA adapter, or every weight.")
    lora: LoraSection = Field(default_factory=LoraSection, description="The adapter, when `train` is `lora`.")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Precision of the frozen weights; trained weights are always float32. float16 is not offered: the "
        "loss's gradients are smaller than it can hold.",
    )
    gradient_checkpointing: bool = Field(
        default=False, json_schema_extra=ANYTIME, description="Recompute activations to save memory."
    )
    compile: bool = Field(
        default=False, json_schema_extra=FROM_THERE_ON, description="Compile the model with torch.compile."
    )

    @model_serializer(mode="wrap")
    def _without_idle_lora(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A written run file must be readable again, and `lora` beside `train: full` is refused."""
        data: dict[str, Any] = dump(self)
        if self.train == "full":
            data.pop("lora", None)
        return data


class PromptsBlock(StrictModel):
    """Prompts from a file or from a plugin's generator: exactly one of `file` and `use`."""

    file: PathText | None = Field(
        default=None, description="A .txt file (one prompt a line) or .jsonl file (objects with `prompt` and metadata)."
    )
    use: str | None = Field(default=None, description="Name of a prompt source.")
    options: dict[str, Any] = Field(default_factory=dict, description="The prompt source's own options.")
    limit: Int | None = Field(default=None, ge=1, le=10**9, description="Take only the first so many prompts.")

    @model_validator(mode="after")
    def _one_origin(self) -> PromptsBlock:
        if (self.file is None) == (self.use is None):
            raise ValueError("give exactly one of `file` (a .txt or .jsonl file) and `use` (a prompt source)")
        if self.file is not None and self.options:
            raise ValueError("`options` belong to a prompt source (`use`), a file has none")
        return self


def _prompts_shorthand(value: Any) -> Any:
    """Accept the short form `train: prompts.txt`."""
    return {"file": value} if isinstance(value, str) else value


Prompts = Annotated[PromptsBlock, BeforeValidator(_prompts_shorthand), ShortForm("A .txt or .jsonl file.")]


STEP = 1000
"""Weights of sources are whole numbers of 1 / STEP: shares of groups are then exact, however long a run is."""


def _in_steps(weight: float) -> float:
    if abs(weight * STEP - round(weight * STEP)) > 1e-6:
        raise ValueError(f"must be in steps of {1 / STEP:g}; the nearest is {round(weight * STEP) / STEP:g}")
    return weight


class SourceBlock(PromptsBlock):
    """One of several sources of prompts, each with rewards of its own."""

    source: str = Field(
        pattern=NAME,
        max_length=100,
        description="Name in logs and reports: letters, digits, dot, dash, underscore.",
    )
    weight: Annotated[Float, AfterValidator(_in_steps)] = Field(
        default=1.0,
        ge=1 / STEP,
        le=1000,
        description="Its share of an iteration's groups, or of the prompts of an evaluation, among those of all "
        "sources.",
    )
    rewards: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Labels of the rewards that its samples are scored with; by default all. Guards score all sources.",
    )


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list) else "one"


PromptsOrSources = Annotated[
    Annotated[Prompts, Tag("one")] | Annotated[Annotated[list[SourceBlock], Field(min_length=1)], Tag("several")],
    Discriminator(_one_or_several),
    AnyOf(),
]


class PromptsSection(StrictModel):
    """Prompts to train on and prompts held out for evaluation: a file or a generator, or a list of them, called
    sources, each with a name."""

    train: PromptsOrSources = Field(description="Prompts to train on.")
    heldout: PromptsOrSources | None = Field(default=None, description="Prompts for evaluation, never trained on.")

    def blocks(self, split: Literal["train", "heldout"]) -> list[PromptsBlock] | list[SourceBlock]:
        """Those of a split; of several sources a SourceBlock each."""
        found = self.train if split == "train" else self.heldout
        return found if isinstance(found, list) else [] if found is None else [found]

    def sources(self, split: Literal["train", "heldout"]) -> list[SourceBlock]:
        """Those of a split; none where it is no list."""
        return [block for block in self.blocks(split) if isinstance(block, SourceBlock)]


class RolloutSection(StrictModel):
    """How groups of samples are drawn."""

    sampler: Use = Field(default=UseBlock(use="flow-dpmpp"), description="Sampler: a name, or `use` with `options`.")
    steps: Int = Field(default=10, ge=1, le=1000, description="Solver steps a sample.")
    shift: Shift = Field(
        default="auto",
        description="Time shift k: sigma becomes k*sigma / (1 + (k-1)*sigma). `auto` is the model's own, which may "
        "depend on the resolution and the number of steps; a number takes its place.",
    )
    guidance: Float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Classifier-free guidance scale of the rollouts; 1 means none, at no cost.",
    )
    group_size: Int = Field(
        default=24, le=10_000, description="G: samples of one prompt that are compared with each other."
    )
    groups: Int = Field(default=24, ge=1, le=100_000, description="Groups (prompts) an iteration.")
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Samples drawn at once; by default all. Any size gives the same samples.",
    )
    merge_adapter: bool = Field(
        default=False,
        description="Sample with the adapter added into the weights, at the cost of the base model. The same up to "
        "rounding, which in bfloat16 weights swallows small changes: then samples are a little nearer to the base.",
    )
    resolution: Int | Annotated[list[Int], Field(min_length=2, max_length=2)] = Field(
        default=512, description="Side in pixels, or [height, width]. Prompts may have a size of their own instead."
    )

    @property
    def height_width(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        if isinstance(self.resolution, int):
            return self.resolution, self.resolution
        return self.resolution[0], self.resolution[1]


class WorkerSection(StrictModel):
    """A reward in a process of its own: its own interpreter and packages, restarted when it crashes or hangs."""

    python: Program | None = Field(
        default=None,
        min_length=1,
        description="Interpreter that has dgpo and the reward's plugin installed; by default the one that trains.",
    )
    count: Int = Field(default=1, ge=1, le=64, description="Processes; micro-batches are shared out among them.")
    environment: dict[str, str] = Field(
        default_factory=dict, description="Variables set for the process, such as CUDA_VISIBLE_DEVICES."
    )
    start_timeout: Float = Field(default=300.0, gt=0, le=1e7, description="Seconds to start and load the reward.")
    timeout: Float = Field(
        default=120.0, gt=0, le=1e7, description="Seconds for one micro-batch; then it counts as hung."
    )
    retries: Int = Field(default=3, ge=0, le=1000, description="Times that a lost micro-batch is scored again.")


class ServiceSection(StrictModel):
    """A reward behind HTTP: one or several servers started with `dgpo serve`."""

    urls: list[Address] = Field(min_length=1, description="Addresses, such as http://gpu-7:8500; work is balanced.")
    token_variable: str | None = Field(
        default=None, min_length=1, description="Environment variable that holds the servers' token."
    )
    concurrency: Int = Field(default=2, ge=1, le=64, description="Micro-batches under way at each server.")
    timeout: Float = Field(default=120.0, gt=0, le=1e7, description="Seconds for one micro-batch.")
    retries: Int = Field(default=5, ge=0, le=1000, description="Times that a failed micro-batch is sent again.")


class RewardBlock(UseBlock):
    """One reward model, its share of the total, and where it runs: here, in a `worker` or behind a `service`."""

    weight: Float = Field(default=1.0, ge=-1e9, le=1e9, description="Factor of this reward in the weighted sum.")
    name: str | None = Field(
        default=None,
        pattern=NAME,
        description="Name in logs and reports; by default the name in `use`.",
    )
    worker: WorkerSection | None = Field(
        default=None, json_schema_extra=ANYTIME, description="Run it in a process of its own."
    )
    service: ServiceSection | None = Field(
        default=None, json_schema_extra=ANYTIME, description="Ask a server that runs it."
    )

    @model_validator(mode="after")
    def _one_place(self) -> RewardBlock:
        if self.worker is not None and self.service is not None:
            raise ValueError("give `worker` or `service`, not both: a reward runs in one place")
        return self

    @property
    def label(self) -> str:
        """Name in metrics and reports."""
        return self.name or self.use


class ScoringSection(StrictModel):
    """How several rewards become one, and how many scores may be missing."""

    aggregation: Literal["weighted-sum", "group-normalised"] = Field(
        default="weighted-sum",
        description="Sum of weight * value; or each reward first normalised within its group, then summed (GDPO, which "
        "goes with advantages.std: batch).",
    )
    max_missing: Float = Field(
        default=0.2,
        ge=0,
        le=1,
        json_schema_extra=ANYTIME,
        description="Share of an iteration's samples that may lack a score; above it the run stops, its state saved.",
    )
    in_flight: Int = Field(
        default=2,
        ge=0,
        le=10_000,
        json_schema_extra=ANYTIME,
        description="Decoded micro-batches that may wait for each reward, beside those at work, before drawing waits "
        "too. It bounds memory; the numbers are the same.",
    )


class AdvantagesSection(StrictModel):
    """How rewards become group-relative advantages: (reward - group mean) / (std + epsilon)."""

    std: Literal["group", "batch", "none"] = Field(
        default="group", description="Population std of each group, of the whole iteration, or no division."
    )
    epsilon: Float = Field(default=1e-4, gt=0, le=1e6, description="Added to the std.")
    clamp: Float = Field(default=5.0, gt=0, le=1e6, description="Advantages are clamped to [-clamp, clamp].")
    balance: bool = Field(
        default=False,
        description="Scale the weights of a group's two sides to the same sum: the partition function then cancels for "
        "every weighting.",
    )


class FastEmaSection(StrictModel):
    """Fast EMA (`old`): old <- d*old + (1-d)*policy after each update, d = min(max_decay, ramp*k), k the number of
    updates before that one: d = 0 at the first (the authors' code)."""

    max_decay: Float = Field(default=0.3, ge=0, lt=1, description="Largest decay.")
    ramp: Float = Field(default=0.001, ge=0, le=1, description="Growth of the decay an optimiser update.")


class SlowEmaSection(StrictModel):
    """Slow EMA, used for evaluation, pictures and export: slow <- d*slow + (1-d)*policy when the number k of updates
    done is every - 1, 2 * every - 1, ..., with d = min((1 + k) / (10 + k), decay) (the authors' code).

    Before its first move it has learnt nothing: the policy is then taken in its place, and that is said.
    """

    decay: Float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="Largest decay of a move; at the k-th update min((1 + k) / (10 + k), decay).",
    )
    every: Int = Field(
        default=8, ge=1, le=10**9, description="Optimiser updates between two moves; the first is one earlier."
    )
    repeats: Int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Times that a move is applied, with the same weights: decay^repeats in effect. The authors' loop "
        "applies it once a micro-batch of a card: 2 in their configurations of GenEval and OCR, 4 of PickScore.",
    )

    @property
    def first_move(self) -> int:
        """Optimiser updates after which the average moves for the first time."""
        return max(self.every - 1, 1)


class EmaSection(StrictModel):
    """The two moving averages of the policy."""

    fast: FastEmaSection = Field(default_factory=FastEmaSection, description="Old policy: clip, rollouts, reference.")
    slow: SlowEmaSection = Field(default_factory=SlowEmaSection, description="Evaluated and saved policy.")


class ObjectiveSection(UseBlock):
    """The loss. The defaults are the paper's Direct Group Preference Optimization."""

    use: str = Field(default="dgpo", min_length=1, description="Name of the objective.")
    beta: Float = Field(default=100.0, gt=0, le=1e9, description="Scale of the group preference in its sigmoid.")
    kl: Float = Field(default=1e-3, ge=0, le=1e6, description="Weight of mean (v - v_base)^2; 0 leaves the term out.")
    kl_cfg: Float = Field(
        default=1.0,
        ge=1,
        le=1000,
        description="Guidance scale of the frozen base model: in the KL term, and in the dsm of a frozen reference.",
    )
    clip: Float | None = Field(
        default=1e-2, gt=0, lt=1, description="PPO-style clip range of exp(dsm_old - dsm); null leaves it out."
    )
    clip_kl: bool = Field(default=False, description="Let clipped members also drop out of the KL term.")
    reference: Literal["frozen", "ema"] = Field(
        default="frozen",
        description="What the group preference is relative to: the frozen base model, or the fast EMA of the policy. "
        "The KL term compares with the base either way.",
    )
    ema: EmaSection = Field(default_factory=EmaSection, description="Decays of the two moving averages.")
    switch: Int | None = Field(
        default=200,
        ge=0,
        le=10**12,
        description="Rollouts come from the fast EMA once more optimiser updates than these are done; null: never.",
    )


class TimestepsSection(UseBlock):
    """Which times the loss is taken at."""

    use: str = Field(default="uniform", min_length=1, description="Timestep policy.")
    count: Int = Field(default=4, ge=1, le=1000, description="Training timesteps an iteration.")
    t_min: SigmaExpression = Field(
        default="shift(0.3)", description="Smallest sigma: a number in [0, 1], or `shift(0.3)` for a shifted time."
    )
    t_max: SigmaExpression | None = Field(
        default=None,
        description="Largest sigma, written like t_min; by default the largest that the model knows, which is 1 for "
        "flow models.",
    )
    shared_noise: bool = Field(
        default=True, description="All members of a group share their noise at each timestep (fresh per timestep)."
    )


class OptimiserSection(StrictModel):
    """AdamW and how an iteration's groups become updates."""

    learning_rate: Float = Field(
        default=3e-4, gt=0, le=1000, json_schema_extra=FROM_THERE_ON, description="Peak learning rate."
    )
    betas: Annotated[list[Annotated[Float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = Field(
        default=[0.9, 0.999], description="AdamW betas."
    )
    epsilon: Float = Field(default=1e-8, gt=0, le=1, description="AdamW epsilon.")
    weight_decay: Float = Field(
        default=1e-4, ge=0, le=1000, json_schema_extra=FROM_THERE_ON, description="AdamW weight decay."
    )
    bits: Literal[8, 32] = Field(
        default=32,
        description="Bits of AdamW's moments; 8 takes a quarter of their memory (bitsandbytes, block-wise), which "
        "matters when all weights are trained, and is not the same arithmetic.",
    )
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="constant",
        json_schema_extra=FROM_THERE_ON,
        description="Learning rate after the warm-up: constant, or falling to 0.",
    )
    warmup: Int = Field(
        default=0, ge=0, le=10**9, json_schema_extra=FROM_THERE_ON, description="Updates of linear warm-up."
    )
    max_grad_norm: Float | None = Field(
        default=1.0, gt=0, json_schema_extra=FROM_THERE_ON, description="Gradient-norm clip; null: none."
    )
    updates: Int = Field(
        default=1, ge=1, le=100_000, description="Optimiser updates an iteration: its groups are split evenly."
    )
    micro_batch: Int | None = Field(
        default=None,
        ge=1,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Samples a forward pass; by default one group. Any size gives the same gradient.",
    )
    max_skipped: Int = Field(
        default=10,
        ge=0,
        le=10**9,
        json_schema_extra=ANYTIME,
        description="Updates in a row that may be skipped for non-finite values before the run stops.",
    )


class GuardsSection(StrictModel):
    """What must not get worse while the target rises: statistics of the media, always, and rewards not trained on."""

    rewards: list[RewardBlock] = Field(
        default_factory=list, description="Out-of-domain rewards, scored at every evaluation and never trained on."
    )
    alarm: Literal["log", "stop", "off"] = Field(
        default="log",
        json_schema_extra=ANYTIME,
        description="When the target has risen and a guard has left its band since the first evaluation: say so, or "
        "stop the run with its state saved.",
    )
    bands: dict[str, Annotated[Float, Field(ge=0)]] = Field(
        default_factory=dict,
        json_schema_extra=ANYTIME,
        description="Change of a guard, in its own units, that is let pass; by default none for a reward and a share "
        "of its first value for a statistic (diversity, saturation, edge_density, dark_pixels, step_disagreement, "
        "finer_sharpness). Only changes beyond the 95 % intervals count.",
    )


class FinerSection(StrictModel):
    """Some samples of an evaluation again, from the same noise, in many steps: shows artefacts of few steps."""

    steps: Int = Field(ge=2, le=1000, description="Solver steps, many more than those of evaluation.")
    prompts: Int = Field(default=32, ge=1, le=10**9, description="Prompts, one sample of each.")


class EvaluationSection(StrictModel):
    """Evaluation on the held-out prompts."""

    every: Int = Field(
        default=0, ge=0, le=10**9, description="Iterations between evaluations; 0: only when the run ends."
    )
    at_start: bool = Field(default=True, description="Also evaluate the base model before training.")
    prompts: Int = Field(
        default=300,
        ge=1,
        le=10**9,
        description="Held-out prompts to use, at most; of several sources one each at least.",
    )
    samples_per_prompt: Int = Field(default=1, ge=1, le=10_000, description="Samples of each prompt.")
    steps: Int | None = Field(default=None, ge=1, le=1000, description="Solver steps; by default the rollouts'.")
    guidance: Float | None = Field(
        default=None, ge=1, le=1000, description="Guidance scale; by default that of the rollouts."
    )
    sampler: Use | None = Field(
        default=None,
        description="Sampler; by default the rollouts'. Rollouts that are random on purpose want a deterministic one.",
    )
    rewards: list[RewardBlock] | None = Field(
        default=None, min_length=1, description="Rewards to evaluate with; by default those trained on."
    )
    view: Literal["policy", "old", "slow"] = Field(
        default="slow",
        description="Weights to evaluate: the policy, its fast EMA (old) or its slow EMA, before whose first move the "
        "policy is evaluated.",
    )
    guards: GuardsSection = Field(default_factory=GuardsSection, description="Signs of reward hacking.")
    finer: FinerSection | None = Field(
        default=None,
        description="Also measure `step_disagreement` (distance of samples to the same noise solved in many steps) and "
        "`finer_sharpness` (of the latter).",
    )
    pictures: Int = Field(
        default=12,
        ge=0,
        le=10**6,
        json_schema_extra=ANYTIME,
        description="Pictures kept of each evaluation, always of the same noise.",
    )


class StopSection(StrictModel):
    """Ends of a run before `run.iterations`, which stays what schedules are measured on.

    They are looked at when an iteration ends; the last iteration is then evaluated and saved like any last one.
    """

    seconds: Float | None = Field(
        default=None, gt=0, description="Training seconds, without evaluations and checkpoints."
    )
    samples: Int | None = Field(default=None, ge=1, le=10**15, description="Samples rolled out.")
    target: Float | None = Field(
        default=None, description="Held-out score that is enough; looked at after each evaluation."
    )
    reward: str | None = Field(
        default=None, min_length=1, description="Evaluated reward that `target` is about; by default the first."
    )


class CheckpointsSection(StrictModel):
    """When to save and what to keep."""

    every: Int = Field(
        default=10, ge=1, le=10**9, description="Iterations between checkpoints; the last is always saved."
    )
    keep: Int = Field(
        default=2,
        ge=1,
        le=10**9,
        description="Newest checkpoints to keep; the one before stays until samples have been drawn with the newest.",
    )
    best: bool = Field(default=True, description="Also keep the one with the best evaluation.")


class LoggingSection(StrictModel):
    """Where numbers go besides metrics.jsonl, which is always written."""

    console: bool = Field(default=True, description="Progress on the terminal.")
    trackers: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="Trackers, through accelerate."
    )
    project: str = Field(default="dgpo", min_length=1, description="Project name for trackers that want one.")


class PrecisionSection(StrictModel):
    """Arithmetic of the forward and backward passes."""

    autocast: Literal["no", "bf16"] = Field(default="no", description="Mixed precision of the passes.")
    tf32: bool = Field(default=True, description="Allow TF32 matrix products on CUDA.")
    attention: Literal["auto", "flash", "cudnn", "efficient", "math"] = Field(
        default="auto",
        description="Kernel of torch's scaled_dot_product_attention, for what it can take; by default torch chooses "
        "among all of them. Only `math` and `auto` work everywhere.",
    )


class RunConfig(StrictModel):
    """A run file."""

    run: RunSection = Field(description="Name, directory, seed, length.")
    backbone: BackboneSection = Field(description="The model.")
    prompts: PromptsSection = Field(description="What to draw.")
    rollout: RolloutSection = Field(default_factory=RolloutSection, description="How groups are drawn.")
    rewards: list[RewardBlock] = Field(min_length=1, description="What is rewarded.")
    scoring: ScoringSection = Field(default_factory=ScoringSection, description="Several rewards to one.")
    weighting: Use = Field(
        default=UseBlock(use="abs-advantage"), description="Advantages to weights: a name, or `use` with `options`."
    )
    advantages: AdvantagesSection = Field(default_factory=AdvantagesSection, description="Rewards to advantages.")
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection, description="The loss.")
    timesteps: TimestepsSection = Field(default_factory=TimestepsSection, description="Training times.")
    optimiser: OptimiserSection = Field(default_factory=OptimiserSection, description="AdamW.")
    evaluation: EvaluationSection = Field(
        default_factory=EvaluationSection, json_schema_extra=FROM_THERE_ON, description="Held-out evaluation."
    )
    stop: StopSection = Field(
        default_factory=StopSection, json_schema_extra=ANYTIME, description="Ends before run.iterations."
    )
    checkpoints: CheckpointsSection = Field(
        default_factory=CheckpointsSection, json_schema_extra=ANYTIME, description="Saving."
    )
    logging: LoggingSection = Field(default_factory=LoggingSection, json_schema_extra=ANYTIME, description="Trackers.")
    precision: PrecisionSection = Field(
        default_factory=PrecisionSection, json_schema_extra=FROM_THERE_ON, description="Arithmetic."
    )

    @model_validator(mode="after")
    def _cross_field_rules(self) -> RunConfig:
        check_run(self)
        return self

    def training_range(self, shift: float, highest: float = 1.0) -> tuple[float, float]:
        """(t_min, t_max) as sigmas in [0, 1], `shift(...)` resolved with this shift, which is that of the rollouts'
        schedule; highest: the largest time that the model knows."""
        section = self.timesteps
        return (
            resolve_sigma(section.t_min, shift),
            highest if section.t_max is None else resolve_sigma(section.t_max, shift),
        )
