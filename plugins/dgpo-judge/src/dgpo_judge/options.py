"""Options of the judges. Does not import torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from dgpo_schemas.addresses import service_address, shown_address
from dgpo_schemas.base import ANYTIME, Float, Int, Options, StrictModel, Use
from dgpo_schemas.places import PathText

__all__ = ["Aspect", "JudgeOptions", "ListOptions", "PairsOptions", "PairwiseOptions", "ServerOptions"]

RESERVED = ("model", "messages", "stream", "n", "logprobs", "top_logprobs", "max_tokens", "response_format", "seed")
"""Fields of a request that other options or the form of the score set."""


def _address(text: str) -> str:
    service_address(text)
    if "@" in text:
        raise ValueError(
            f"'{shown_address(text)}' contains a user name or password, which run directories would keep; remove it "
            "and name the environment variable that holds the token in `token_variable`"
        )
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


Address = Annotated[str, AfterValidator(_address)]


class ServerOptions(Options):
    """The servers, what is sent to them, and what is kept of their answers."""

    urls: list[Address] = Field(
        min_length=1,
        json_schema_extra=ANYTIME,
        description="Addresses of OpenAI-compatible servers of the same model, such as http://gpu-7:8000; requests "
        "are balanced among them.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        description="Name of the served model, as in GET /v1/models; may be left out if the servers serve only one.",
    )
    token_variable: str | None = Field(
        default=None,
        min_length=1,
        json_schema_extra=ANYTIME,
        description="Name of the environment variable that holds the servers' token (API key).",
    )
    template: PathText | None = Field(
        default=None,
        description="A text file with the question, in place of the plugin's own; its placeholders are written "
        "{prompt}. docs/judge.md lists those of each form.",
    )
    frames: Int = Field(default=4, ge=1, le=64, description="Number of evenly spaced frames of a video that are sent.")
    max_pixels: Int = Field(
        default=1024 * 1024,
        ge=1024,
        le=2**24,
        description="Larger images are downscaled to this many pixels. Servers may downscale further.",
    )
    min_side: Int = Field(
        default=32,
        ge=1,
        le=1024,
        description="Images with a smaller shorter side are enlarged by an integer factor to at least this many "
        "pixels: models refuse images below one cell (28 or 32 pixels).",
    )
    seed: Int = Field(default=0, ge=0, le=2**31 - 1, description="The seed that is sent with every request.")
    request: dict[str, Any] = Field(
        default_factory=dict,
        description="Further fields of every request, such as chat_template_kwargs: {enable_thinking: false} or "
        "mm_processor_kwargs.",
    )
    concurrency: Int = Field(
        default=64, ge=1, le=1024, json_schema_extra=ANYTIME, description="Most requests in flight per server."
    )
    timeout: Float = Field(
        default=60.0, gt=0, le=1e5, json_schema_extra=ANYTIME, description="Timeout in seconds of one request."
    )
    patience: Float = Field(
        default=600.0,
        gt=0,
        le=1e6,
        json_schema_extra=ANYTIME,
        description="Longest time in seconds for the answer to a question, with all retries and waits, such as for a "
        "server that restarts; then the sample is missing.",
    )
    retries: Int = Field(
        default=5, ge=0, le=100, json_schema_extra=ANYTIME, description="Retries of a request that failed."
    )
    journal_mib: Int = Field(
        default=256,
        ge=1,
        le=10**6,
        json_schema_extra=ANYTIME,
        description="Size in MiB of the journal of answers in the run directory, from which a resumed run repeats "
        "unfinished iterations; the oldest answers are dropped.",
    )
    cache: PathText | None = Field(
        default=None,
        json_schema_extra=ANYTIME,
        description="A directory of answers that several runs and processes share; without it, each run asks anew.",
    )
    cache_mib: Int = Field(
        default=1024,
        ge=1,
        le=10**6,
        json_schema_extra=ANYTIME,
        description="Size of the cache in MiB; the oldest answers are dropped.",
    )

    @model_validator(mode="after")
    def _nothing_reserved(self) -> ServerOptions:
        taken = sorted(set(self.request) & set(RESERVED))
        if taken:
            raise ValueError(f"`request` must not contain {taken[0]}, which other options or the form determine")
        return self


class Aspect(StrictModel):
    """One aspect of a rubric."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,39}$", description="Name of the aspect in the answer.")
    description: str = Field(default="", max_length=2000, description="What it means, for the judge.")
    low: Float = Field(default=1.0, description="The worst value.")
    high: Float = Field(default=5.0, description="The best value.")
    weight: Float = Field(default=1.0, gt=0, le=1e6, description="Weight in the mean.")

    @model_validator(mode="after")
    def _ordered(self) -> Aspect:
        if self.low >= self.high:
            raise ValueError(f"`low` must be less than `high`, got {self.low:g} and {self.high:g}")
        return self


ASPECTS = (
    Aspect(name="alignment", description="everything that the text asks for is there, and as asked"),
    Aspect(name="coherence", description="objects, anatomy, space and written words are sound, without artifacts"),
    Aspect(name="style", description="composition, light and color are pleasing"),
)


OF_FORM = {
    "raw": "vqascore",
    "mean": "soft-tifa",
    "scale": "rating",
    "after": "rating",
    "aspects": "rubric",
    "answers": "rubric",
}
"""Options that only one form uses."""


class JudgeOptions(ServerOptions):
    """Options of `judge`: the form of the score."""

    form: Literal["vqascore", "soft-tifa", "rating", "rubric", "reading"] = Field(
        default="vqascore",
        description="`vqascore`: probability of Yes. `soft-tifa`: probability of the expected answers to the prompt's "
        "questions. `rating`: expected value of a digit. `rubric`: weighted mean of several aspects. `reading`: share "
        "of the words of the prompt's key `target` that the judge reads.",
    )
    raw: bool = Field(
        default=False, description="vqascore: P(Yes) as it is; otherwise divided by P(Yes) + P(No). Both in [0, 1]."
    )
    mean: Literal["geometric", "arithmetic"] = Field(
        default="geometric", description="soft-tifa: mean over the questions of a prompt."
    )
    scale: Literal["1-5", "0-9"] = Field(default="1-5", description="rating: the digits, and the range of the score.")
    after: str | None = Field(
        default=None,
        min_length=1,
        max_length=100,
        description="rating: the text behind which the digit stands in the answer, such as 'Score:'; by default the "
        "digit is the first token.",
    )
    aspects: list[Aspect] = Field(
        default=list(ASPECTS),
        min_length=1,
        max_length=32,
        description="rubric: the aspects, each with its range and weight. N/A leaves an aspect out of the mean.",
    )
    answers: Literal["json", "lines"] = Field(
        default="json",
        description="rubric: `json` demands a JSON object by a schema; `lines` a line `name: value` for each aspect.",
    )
    max_tokens: Int = Field(
        default=512,
        ge=1,
        le=32768,
        description="rubric, reading, and rating with `after`: most tokens of an answer; longer answers are missing.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> JudgeOptions:
        names = [aspect.name.lower() for aspect in self.aspects]
        if len(set(names)) < len(names):
            raise ValueError("`aspects` must have different names")
        return self

    @model_validator(mode="after")
    def _nothing_unused(self) -> JudgeOptions:
        for name, form in OF_FORM.items():
            if self.form != form and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`{name}` has no effect with `form: {self.form}`: it belongs to `form: {form}`")
        return self


class PairsOptions(ServerOptions):
    """Options of `judge-pairs`."""

    opponents: Annotated[Int, Field(ge=2, le=1024, multiple_of=2)] | None = Field(
        default=None,
        description="Number of other members that each is compared with, an even number; by default all of them.",
    )
    tie_band: Float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="A comparison whose probability is this close to 1/2 counts as a tie.",
    )
    combine: Literal["win-rate", "bradley-terry"] | None = Field(
        default=None,
        description="`win-rate`: mean over a member's comparisons. `bradley-terry`: win rate against all members "
        "under the strengths that explain the comparisons best. By default bradley-terry with `opponents`, else "
        "win-rate.",
    )


class ListOptions(ServerOptions):
    """Options of `judge-list`."""

    shuffles: Int = Field(default=2, ge=2, le=64, description="Number of orders in which the group is shown.")
    max_tokens: Int = Field(default=256, ge=16, le=32768, description="Most tokens of an answer.")


class PairwiseOptions(Options):
    """Options of `pairwise`."""

    reward: Use = Field(description="The reward whose values are compared: a name, or `use` with `options`.")
    tie_band: Float = Field(default=0.0, ge=0, le=1e9, description="Values that differ by no more than this are a tie.")
