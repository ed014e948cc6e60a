"""The client of a remote reward, for workers and services alike: requests, retries and validation of responses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError
from torch import Tensor

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.errors import UserError
from dgpo_core.system.stopping import check_signals
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.training.scores import check_scores, joined
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_remote.failures import Busy, Down, InvalidResponse, Refused, RewardLost, RewardRaised, TooLarge
from dgpo_remote.messages.blobs import Blob, Malformed, Unfit
from dgpo_remote.messages.prompts import prompts_as_json, stretches
from dgpo_remote.messages.scores import read_examples, read_score_answer, score_request
from dgpo_remote.servers import Closed, End, NoServerAvailable, Server, Servers
from dgpo_schemas.service import CheckAnswer
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    import torch

    from dgpo_schemas.sections.rewards import RewardBlock
    from dgpo_schemas.service import RewardDescription

__all__ = ["RemoteGroupReward", "RemoteReward", "halves"]

SLOW = 30.0
"""Seconds without a response after which a warning is logged; half of the timeout if that is longer."""
T = TypeVar("T")


class RemoteReward(RewardModel):
    """Sends batches to `servers`. Thread-safe.

    The server scores each request as a separate batch, so that the scores are bit-identical to a local reward's.
    """

    is_remote = True
    compares = False
    gave_up = "the request failed {times} times; the last at {name}: {error}"
    """Error message after the last retry."""

    def __init__(
        self, block: RewardBlock, servers: Servers, *, device: torch.device, where: str, timeout: float, retries: int
    ) -> None:
        """timeout: seconds to wait for a response, and (`_patience`) for a free server."""
        super().__init__(block.options, device=device)
        self._servers = servers
        self._where = where
        self._timeout = self._patience = timeout
        self._retries = retries
        self._under_way = threading.local()
        self._provenance: Mapping[str, Any] = {}

    @property
    def face(self) -> AnyReward:
        """The reward as an instance of the contract that the remote reward implements."""
        return RemoteGroupReward(self) if self.compares else self

    def _adopt(self, description: RewardDescription, concurrency: int) -> None:
        """Copy the remote reward's range, media, evaluation grouping, contract and provenance."""
        low, high = description.range
        self.range = (float("-inf") if low is None else low, float("inf") if high is None else high)  # type: ignore[misc]
        self.media = frozenset(description.media)  # type: ignore[misc]
        self.group_by = description.group_by  # type: ignore[misc]
        self.compares = description.compares == "group"
        self.concurrency = concurrency
        self._provenance = description.provenance

    def provenance(self) -> Mapping[str, Any]:
        """Return what the remote reward reports of itself."""
        return self._provenance

    def _parts(self, prompts: Sequence[Prompt]) -> Sequence[slice]:
        """Split the prompts into slices that fit into one request each."""
        return list(stretches(prompts, len(prompts)))

    def close(self) -> None:
        """Stop the workers or close the connections. Batches in progress are lost, and waiting threads return."""
        self._servers.close()

    # -- requests ---------------------------------------------------------------------------------------------------

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the remote reward check the prompts. Raises UserError, also if the reward or its server fails."""
        for part in self._parts(prompts):
            self._check(prompts[part])

    def _check(self, prompts: Sequence[Prompt]) -> None:
        body = json.dumps({"prompts": prompts_as_json(prompts)}).encode()
        try:
            answer = self._ask_before_run(lambda end: CheckAnswer.model_validate(end.ask_json("/v1/check", body)))
        except TooLarge as error:
            if len(prompts) <= 1:
                raise UserError(f"{self._where}: {error}") from error
            for part in halves(len(prompts)):
                self._check(prompts[part])
            return
        if not answer.ok:
            message = clean(answer.message or "", lines=True)
            raise UserError(message or f"{self._where}: the reward rejects the prompts")

    def examples(self) -> Sequence[Example]:
        """Return the remote reward's examples."""
        return self._ask_before_run(lambda end: read_examples(Blob(end.ask("/v1/examples"))))

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Return the remote reward's scores.

        Raises RewardLost after all retries, RewardRaised with the reward's own message, and OutOfMemory, upon which the
        caller halves the batch as with a local reward.
        """
        return self._score(media, list(prompts))

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Score a group in one request, as `contracts.GroupReward.score_group` does."""
        return self._send(media, [prompt] * len(keys), keys)

    def _score(self, media: Tensor, prompts: Sequence[Prompt], parts: Sequence[slice] = ()) -> Scores:
        """Score the given slices one after another, or everything at once without `parts`.

        A slice that is too large for the server is halved until it fits.
        """
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
                return check_scores(scores, len(prompts))  # as for a local reward
            except ValueError as error:
                raise Malformed(str(error)) from None

        return self._ask(score, "the samples of the request are marked as missing")

    # -- retries ----------------------------------------------------------------------------------------------------

    def _ask_before_run(self, send: Callable[[End], T]) -> T:
        """Send a request before the run starts, when every failure is a UserError."""
        try:
            return self._ask(send, "the run stops")
        except TooLarge:
            raise
        except (RewardLost, RewardRaised, OutOfMemory) as error:
            raise UserError(f"{self._where}: {error}") from error

    def _ask(self, send: Callable[[End], T], otherwise: str) -> T:
        """Send a request to any server until one responds.

        Failures use up the retries; a request to wait only takes time. otherwise: what happens after the last retry,
        for log messages.
        """
        with self._servers.pending(self._patience, self._retries + 1, otherwise) as pending:
            while True:
                try:
                    server = self._servers.acquire(pending)
                except Closed as error:
                    raise RewardLost(str(error)) from error
                except NoServerAvailable as error:
                    raise RewardLost(self._no_server_message(str(error))) from error
                self._under_way.now = (server, pending, time.monotonic())
                try:
                    answer = self._from(server, send)
                except Down as error:
                    if self._servers.closed:
                        self._servers.released(server)
                        raise RewardLost("the reward was closed during a request") from error
                    pending.failed(self._patience)
                    self._servers.failed(server, pending, str(error))
                    if pending.tries <= 0:
                        raise RewardLost(
                            self.gave_up.format(times=self._retries + 1, name=server.name, error=error)
                        ) from error
                except Busy as error:
                    self._servers.busy(server, error.seconds, str(error))
                    if time.monotonic() > pending.patience:
                        raise RewardLost(self._no_server_message(f"{server.name}: {error}")) from error
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
        """Send a request to one server, and reconnect first if it failed before."""
        if server.out:
            try:
                self._reconnect(server)
            except UserError as error:
                raise Down(str(error)) from error
        try:
            return send(server.end)
        except (Malformed, ValidationError) as error:
            raise InvalidResponse(f"sent an invalid response: {_summary(error)}") from error

    def _reconnect(self, server: Server) -> None:
        """Check that a failed server is ready and serves the same reward. Raises Down, Busy, Refused and UserError."""

    def _on_wait(self) -> None:
        """Check for signals and log slow responses. Called periodically by a thread that waits for a response."""
        check_signals()
        if (now := getattr(self._under_way, "now", None)) is None:
            return
        server, pending, since = now
        waited = time.monotonic() - since
        if waited > max(SLOW, self._timeout / 2):
            self._servers.slow(server, pending, waited, self._timeout)

    def _no_server_message(self, why: str) -> str:
        return f"no server accepted the request within {self._timeout:g} s: {why}"


class RemoteGroupReward(GroupReward):
    """A remote group reward."""

    is_remote = True

    def __init__(self, remote: RemoteReward) -> None:
        super().__init__(remote.options, device=remote.device)
        self.remote = remote
        self.range = remote.range  # type: ignore[misc]
        self.media = remote.media  # type: ignore[misc]
        self.group_by = remote.group_by  # type: ignore[misc]
        self.concurrency = remote.concurrency

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the remote reward check the prompts."""
        self.remote.check_prompts(prompts)

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Score a group in one request."""
        return self.remote.score_group(media, prompt, keys)

    def provenance(self) -> Mapping[str, Any]:
        """Return what the remote reward reports of itself."""
        return self.remote.provenance()

    def examples(self) -> Sequence[Example]:
        """Return the remote reward's examples."""
        return self.remote.examples()

    def close(self) -> None:
        """Close the remote reward."""
        self.remote.close()


def halves(count: int) -> list[slice]:
    """Return the slices of the two halves of `count` elements, the first at least as long as the second."""
    middle = (count + 1) // 2
    return [slice(0, middle), slice(middle, count)]


def _summary(error: Exception) -> str:
    """Describe the first problem of a response in one line, without the response's content."""
    if isinstance(error, ValidationError):
        detail = error.errors(include_input=False, include_url=False)[0]
        return clean(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}", 300)
    return clean(str(error), 300)
