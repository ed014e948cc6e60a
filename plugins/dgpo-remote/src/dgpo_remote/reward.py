"""A reward that runs elsewhere, wherever that is: what it is asked, how often, and what is made of the answers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError
from torch import Tensor

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.errors import UserError
from dgpo_core.system.stopping import check_signals
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.training.scores import check_scores, joined
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_remote.failures import Busy, Down, Nonsense, Refused, RewardLost, RewardRaised, TooLarge
from dgpo_remote.messages.blobs import Blob, Malformed, Unfit
from dgpo_remote.messages.prompts import prompts_as_json, stretches
from dgpo_remote.messages.scores import read_examples, read_score_answer, score_request
from dgpo_remote.servers import Closed, End, NoServer, Server, Servers
from dgpo_schemas.service import CheckAnswer
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    import torch

    from dgpo_schemas.sections.rewards import RewardBlock
    from dgpo_schemas.service import RewardDescription

__all__ = ["RemoteGroupReward", "RemoteReward", "halves"]

SLOW = 30.0
"""Seconds without an answer after which it is said, where half of the time limit is not longer."""
T = TypeVar("T")


class RemoteReward(RewardModel):
    """Sends batches to `servers`, each to be scored by itself, so that the scores are the bits of other places. May be
    called from any thread."""

    is_remote = True
    compares = False
    gave_up = "the request failed {times} times; the last at {name}: {error}"
    """What is said of a request that failed as often as it may."""

    def __init__(
        self, block: RewardBlock, servers: Servers, *, device: torch.device, where: str, timeout: float, retries: int
    ) -> None:
        """timeout: seconds for an answer, and (`_patience`) for which a free server is waited for."""
        super().__init__(block.options, device=device)
        self._servers = servers
        self._where = where
        self._timeout = self._patience = timeout
        self._retries = retries
        self._under_way = threading.local()

    @property
    def face(self) -> AnyReward:
        """The reward by the contract that it keeps there."""
        return RemoteGroupReward(self) if self.compares else self

    def _adopt(self, description: RewardDescription, concurrency: int) -> None:
        """Take on its range, what media it takes, and how evaluation splits its scores."""
        low, high = description.range
        self.range = (float("-inf") if low is None else low, float("inf") if high is None else high)  # type: ignore[misc]
        self.media = frozenset(description.media)  # type: ignore[misc]
        self.group_by = description.group_by  # type: ignore[misc]
        self.compares = description.compares == "group"
        self.concurrency = concurrency

    def _parts(self, prompts: Sequence[Prompt]) -> Sequence[slice]:
        """Stretches of the prompts that a request may hold."""
        return list(stretches(prompts, len(prompts)))

    def close(self) -> None:
        """End what runs there for it; a batch that is at work is lost, and whoever waits does so no longer."""
        self._servers.close()

    # -- what it is asked -------------------------------------------------------------------------------------------

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check them. Raises UserError, also if the reward or its place fails at it."""
        for part in self._parts(prompts):
            self._check(prompts[part])

    def _check(self, prompts: Sequence[Prompt]) -> None:
        body = json.dumps({"prompts": prompts_as_json(prompts)}).encode()
        try:
            answer = self._ask_in_peace(lambda end: CheckAnswer.model_validate(end.ask_json("/v1/check", body)))
        except TooLarge as error:
            if len(prompts) <= 1:
                raise UserError(f"{self._where}: {error}") from error
            for part in halves(len(prompts)):
                self._check(prompts[part])
            return
        if not answer.ok:
            said = clean(answer.message or "", lines=True)
            raise UserError(said or f"{self._where}: the reward refuses the prompts")

    def examples(self) -> Sequence[Example]:
        """The reward's own."""
        return self._ask_in_peace(lambda end: read_examples(Blob(end.ask("/v1/examples"))))

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """The reward's scores. Raises RewardLost after all retries, RewardRaised with the reward's own message, and
        OutOfMemory: whoever asks halves the batch, as with a reward in its own process."""
        return self._score(media, list(prompts))

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """As `contracts.GroupReward`, where the reward compares: the group in one request."""
        return self._send(media, [prompt] * len(keys), keys)

    def _score(self, media: Tensor, prompts: Sequence[Prompt], parts: Sequence[slice] = ()) -> Scores:
        """The same part by part, each in halves as often as a server does not take it. No parts: all at once."""
        if len(parts) <= 1:
            try:
                return self._send(media, prompts)
            except TooLarge:
                if len(prompts) <= 1:
                    raise
                parts = halves(len(prompts))
        return joined([self._score(media[part], prompts[part]) for part in parts])

    def _send(self, media: Tensor, prompts: Sequence[Prompt], keys: Sequence[SampleKey] | None = None) -> Scores:
        try:
            body = score_request(media, prompts, keys=keys)
        except Unfit as error:
            raise RewardLost(str(error)) from error

        def score(end: End) -> Scores:
            scores = read_score_answer(Blob(end.ask("/v1/score", body)))
            try:
                return check_scores(scores, len(prompts))  # as those of a reward in this process
            except ValueError as error:
                raise Malformed(str(error)) from None

        return self._ask(score, "the samples of the request are missing")

    # -- asking -----------------------------------------------------------------------------------------------------

    def _ask_in_peace(self, send: Callable[[End], T]) -> T:
        """Ask where no score is at stake: before a run, when whatever goes wrong is for a person to mend."""
        try:
            return self._ask(send, "the run is given up")
        except TooLarge:
            raise
        except (RewardLost, RewardRaised, OutOfMemory) as error:
            raise UserError(f"{self._where}: {error}") from error

    def _ask(self, send: Callable[[End], T], otherwise: str) -> T:
        """An answer of whichever server gives one: failures count, being asked to wait only takes time."""
        with self._servers.errand(self._patience, self._retries + 1, otherwise) as errand:
            while True:
                try:
                    server = self._servers.acquire(errand)
                except Closed as error:
                    raise RewardLost(str(error)) from error
                except NoServer as error:
                    raise RewardLost(self._nobody(str(error))) from error
                self._under_way.now = (server, errand, time.monotonic())
                try:
                    answer = self._from(server, send)
                except Down as error:
                    if self._servers.closed:
                        self._servers.released(server)
                        raise RewardLost("the reward was closed while it was at work") from error
                    errand.failed(self._patience)
                    self._servers.failed(server, errand, str(error))
                    if errand.tries <= 0:
                        raise RewardLost(
                            self.gave_up.format(times=self._retries + 1, name=server.name, error=error)
                        ) from error
                except Busy as error:
                    self._servers.busy(server, error.seconds, str(error))
                    if time.monotonic() > errand.patience:
                        raise RewardLost(self._nobody(f"{server.name}: {error}")) from error
                except Refused as error:
                    self._servers.released(server)
                    kind = TooLarge if isinstance(error, TooLarge) else RewardLost
                    raise kind(f"{server.name} refused the request: {error}") from error
                except BaseException:
                    self._servers.released(server)
                    raise
                else:
                    self._servers.succeeded(server)
                    return answer
                finally:
                    self._under_way.now = None

    def _from(self, server: Server, send: Callable[[End], T]) -> T:
        """One server's answer; one that was out is met again first."""
        if server.out:
            try:
                self._meet_again(server)
            except UserError as error:
                raise Down(str(error)) from error
        try:
            return send(server.end)
        except (Malformed, ValidationError) as error:
            raise Nonsense(f"answered nonsense: {_first(error)}") from error

    def _meet_again(self, server: Server) -> None:
        """See that one that failed is there and serves what it did. Raises Down, Busy, Refused and UserError."""

    def _look(self) -> None:
        """To be called now and then by a thread that waits for an answer."""
        check_signals()
        if (now := getattr(self._under_way, "now", None)) is None:
            return
        server, errand, since = now
        waited = time.monotonic() - since
        if waited > max(SLOW, self._timeout / 2):
            self._servers.slow(server, errand, waited, self._timeout)

    def _nobody(self, why: str) -> str:
        return f"no server took the request within {self._timeout:g} s: {why}"


class RemoteGroupReward(GroupReward):
    """One that compares."""

    is_remote = True

    def __init__(self, remote: RemoteReward) -> None:
        super().__init__(remote.options, device=remote.device)
        self.remote = remote
        self.range = remote.range  # type: ignore[misc]
        self.media = remote.media  # type: ignore[misc]
        self.group_by = remote.group_by  # type: ignore[misc]
        self.concurrency = remote.concurrency

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check them."""
        self.remote.check_prompts(prompts)

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """The group in one request."""
        return self.remote.score_group(media, prompt, keys)

    def examples(self) -> Sequence[Example]:
        """The reward's own."""
        return self.remote.examples()

    def close(self) -> None:
        """End what runs there for it."""
        self.remote.close()


def halves(count: int) -> list[slice]:
    """The two halves of so many, the first not smaller."""
    middle = (count + 1) // 2
    return [slice(0, middle), slice(middle, count)]


def _first(error: Exception) -> str:
    """What an answer lacks, on one line and without what it held."""
    if isinstance(error, ValidationError):
        detail = error.errors(include_input=False, include_url=False)[0]
        return clean(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}", 300)
    return clean(str(error), 300)
