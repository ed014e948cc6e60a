"""Rewards on some of a run's ranks (`run.reward_ranks`), which score the samples of the others too.

A rank without rewards sends each batch to a rank that has them, which scores it as a batch of its own: scores do not
depend on the number of these ranks. The messages are those of workers, over the run's own processes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from dgpo_core.contracts import AnyReward, GroupReward, RewardModel
from dgpo_core.errors import ProcessLostError
from dgpo_core.training.handover import own_stream
from dgpo_remote.answering import as_text, describe
from dgpo_remote.failures import Down, InvalidResponse, as_object, raise_reward_error, reported_error
from dgpo_remote.reward import RemoteReward
from dgpo_remote.servers import Servers
from dgpo_remote.worker.worker_main import Host
from dgpo_schemas.service import RewardDescription

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dgpo_core.distributed.channels import Channel
    from dgpo_core.distributed.processes import Processes
    from dgpo_core.plugins.process_state import ProcessState
    from dgpo_core.types import Example, Prompt, SampleKey, Scores
    from dgpo_schemas.sections.rewards import RewardBlock

__all__ = ["connect"]

PATIENCE = 5.0
"""Seconds that a closing rank waits for a call in progress, or for the other ranks to say that they need no more."""
END = b""
"""The request that ends a conversation."""


def connect(
    block: RewardBlock,
    make: Callable[[], AnyReward],
    process_state: ProcessState,
    processes: Processes,
    ranks: int,
    *,
    device: torch.device,
    where: str,
    timeout: float,
) -> AnyReward:
    """Return the reward of a block on each rank of a run; all ranks must call this together.

    make: creates the reward, on the first `ranks` ranks; timeout: seconds that the others wait for a batch.
    """
    channel = processes.channel
    tag, rank = channel.new_tag(), processes.rank
    if rank >= ranks:
        return _Asked(block, _RankEnd(channel, rank % ranks, tag, timeout), device=device, where=where).face
    others = [other for other in range(ranks, processes.count) if other % ranks == rank]
    return _Served(block.use, make(), process_state, channel, tag, others).face


# -- the rank that has the reward -------------------------------------------------------------------------------------


class _Served(RewardModel):
    """A reward that several threads call, at most as many at a time as it allows."""

    def __init__(
        self,
        use: str,
        reward: AnyReward,
        process_state: ProcessState,
        channel: Channel,
        tag: int,
        ranks: Sequence[int],
    ) -> None:
        super().__init__(reward.options, device=reward.device)
        self.reward = reward
        self.media = reward.media  # type: ignore[misc]
        self.range = reward.range  # type: ignore[misc]
        self.group_by = reward.group_by  # type: ignore[misc]
        self.concurrency = reward.concurrency
        self._channel, self._tag = channel, tag
        self._free = threading.BoundedSemaphore(max(1, reward.concurrency))
        self._host = Host()
        self._host.reward, self._host.process_state = self.face, process_state
        description = as_text(describe(use, reward)).encode()
        self._threads = [
            threading.Thread(target=self._answer, args=(rank, description), name="reward rank", daemon=True)
            for rank in ranks
        ]
        for thread in self._threads:
            thread.start()

    @property
    def face(self) -> AnyReward:
        """The reward as an instance of its own contract."""
        return _ServedGroups(self) if isinstance(self.reward, GroupReward) else self

    def _answer(self, rank: int, description: bytes) -> None:
        """Answer the requests of a rank until it sends none."""
        with suppress(RuntimeError):  # the rank is gone, which the run notices where it meets
            self._channel.send(description, rank, self._tag)
            while request := self._channel.receive(rank, self._tag):
                path, _, body = request.partition(b"\n")
                with own_stream(self.device):
                    status, answer = self._host.answer(path.decode(), body)
                self._channel.send(status.encode() + b"\n" + answer, rank, self._tag)

    def limited(self, call: Callable[[], Scores]) -> Scores:
        """Run a call once the reward is free."""
        with self._free:
            return call()

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """Score a batch of this rank."""
        assert isinstance(self.reward, RewardModel)
        model = self.reward
        return self.limited(lambda: model.score(media, prompts))

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check the prompts."""
        self.reward.check_prompts(prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return what the reward reports of itself."""
        return self.reward.provenance()

    def examples(self) -> Sequence[Example]:
        """Return the reward's examples."""
        return self.reward.examples()

    def close(self) -> None:
        """Close the reward once the other ranks need it no more."""
        for thread in self._threads:
            thread.join(PATIENCE)
        self.reward.close()


class _ServedGroups(GroupReward):
    """A served reward that compares the samples of a group."""

    def __init__(self, served: _Served) -> None:
        super().__init__(served.options, device=served.device)
        self.served = served
        self.media = served.media  # type: ignore[misc]
        self.range = served.range  # type: ignore[misc]
        self.group_by = served.group_by  # type: ignore[misc]
        self.concurrency = served.concurrency

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """Score a group of this rank."""
        model = self.served.reward
        assert isinstance(model, GroupReward)
        return self.served.limited(lambda: model.score_group(media, prompt, keys))

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check the prompts."""
        self.served.check_prompts(prompts)

    def provenance(self) -> Mapping[str, Any]:
        """Return what the reward reports of itself."""
        return self.served.provenance()

    def examples(self) -> Sequence[Example]:
        """Return the reward's examples."""
        return self.served.examples()

    def close(self) -> None:
        """Close the reward once the other ranks need it no more."""
        self.served.close()


# -- a rank without it ------------------------------------------------------------------------------------------------


class _RankEnd:
    """The connection to the rank that scores (`servers.End`)."""

    def __init__(self, channel: Channel, rank: int, tag: int, timeout: float) -> None:
        self._channel, self._rank, self._tag, self._timeout = channel, rank, tag, timeout
        self._busy = threading.Lock()
        self._closed = False
        try:
            self.description = RewardDescription.model_validate_json(channel.receive(rank, tag, timeout))
        except RuntimeError as error:
            raise ProcessLostError(f"process {rank}, which scores for this one, did not get ready: {error}") from error

    @property
    def name(self) -> str:
        """Name for messages."""
        return f"process {self._rank}"

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Send a request and return the payload of the response. Raises Down, RewardRaised and OutOfMemory."""
        with self._busy:
            if self._closed:
                raise Down("was closed")
            try:
                self._channel.send(path.encode() + b"\n" + (body or b""), self._rank, self._tag)
            except RuntimeError as error:
                raise Down(f"is gone: {error}") from error
            status, _, answer = self._received().partition(b"\n")
        if status == b"200":
            return answer
        raise_reward_error(*(reported_error(answer) or ("", "")))
        raise InvalidResponse("sent an invalid response")

    def ask_json(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """The same with JSON bodies."""
        answer = as_object(self.ask(path, body))
        if answer is None:
            raise InvalidResponse("did not respond with a JSON object")
        return answer

    def _received(self) -> bytes:
        try:
            return self._channel.receive(self._rank, self._tag, self._timeout)
        except RuntimeError as error:
            raise Down(f"is gone, or timed out: {error}") from error

    def close(self) -> None:
        """Say that no more requests follow."""
        if self._closed or not self._busy.acquire(timeout=PATIENCE):
            return
        try:
            self._closed = True
            with suppress(RuntimeError):
                self._channel.send(END, self._rank, self._tag)
        finally:
            self._busy.release()


class _Asked(RemoteReward):
    """A reward that another rank scores."""

    gave_up = "{name}, which scores for this one, {error}"

    def __init__(self, block: RewardBlock, end: _RankEnd, *, device: torch.device, where: str) -> None:
        servers = Servers([end], 1, where, first_wait=0.0)
        super().__init__(block, servers, device=device, where=where, timeout=end._timeout, retries=0)
        self._adopt(end.description, concurrency=1)

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Nothing: the rank that scores has the same prompts, and checks them."""
