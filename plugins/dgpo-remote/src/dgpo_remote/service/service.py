"""A reward behind HTTP: one or several servers started with `dgpo serve`, asked in turn and again when they fail."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import httpx
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.media.conditions import measured, name_of
from dgpo_core.system.stopping import check_signals
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.training.scores import check_scores, plain
from dgpo_core.types import Example, Prompt, SampleKey, Scores
from dgpo_remote.messages import (
    Blob,
    Malformed,
    OtherProtocol,
    Unfit,
    check_protocol,
    prompts_as_json,
    read_examples,
    read_score_answer,
    score_request,
    stretches,
)
from dgpo_remote.reward import RemoteReward, RewardLost, RewardRaised
from dgpo_remote.servers import LOOK, Closed, NoServer, Server, Servers
from dgpo_remote.service.http import Busy, Client, Down, Nonsense, Refused, Stranger, TooLarge
from dgpo_remote.splitting import TooMuch, halves, score_in_parts
from dgpo_remote.waiting import seconds, so_far
from dgpo_schemas.addresses import EXAMPLE, service_address, shown_address
from dgpo_schemas.service import SAFETENSORS, CheckAnswer, RewardDescription, ServiceLimits
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    import torch

    from dgpo_core.contracts import AnyReward
    from dgpo_schemas.run import RewardBlock, ServiceSection

__all__ = ["ServiceReward", "connect"]

log = logging.getLogger(__name__)

START = 30.0
"""Seconds that servers are given to be there when a run starts; one that says it is loading has its whole timeout."""
PROBE = 5.0
"""Seconds for the answer to whether a server is ready."""
SLOW = 30.0
"""Seconds without an answer after which it is said, where half of the time limit is not longer."""
MOST_PROMPTS = 1000
"""Prompts of a request, where a server does not say what it takes."""
T = TypeVar("T")


def connect(block: RewardBlock, *, device: torch.device, where: str) -> AnyReward:
    """The reward of a block with a `service`, ready to score (`dgpo_core.rewards.Connect`)."""
    assert block.service is not None
    return ServiceReward(block, block.service, device=device, where=where).face


class ServiceReward(RemoteReward):
    """Sends batches to servers, each to be scored by itself, so that the scores are the bits of other places. May be
    called from any thread."""

    def __init__(self, block: RewardBlock, section: ServiceSection, *, device: torch.device, where: str) -> None:
        """Meet the servers. Raises UserError if none is there, or if one is no such service, serves another reward or
        other options, or wants another token."""
        super().__init__(block.options, device=device)
        self._block = block
        self._section = section
        self._place = where
        self._where = f"{where}.service"
        urls = [_checked_url(url, self._where) for url in section.urls]
        connections = len(urls) * section.concurrency
        self._servers = Servers(urls, section.concurrency, self._where)
        self._under_way = threading.local()
        self._fit: set[str] = set()  # media of which is known that the servers read them, by digest
        self._client = Client(where, section.token_variable, connections + 1, urls, self._look)
        self._known: RewardDescription | None = None
        try:
            self._adopt(self._meet(), concurrency=connections)
        except BaseException:
            self._client.close()
            raise

    # -- the reward's face ------------------------------------------------------------------------------------------

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check them. Raises UserError, also if the reward or its servers fail at it, and for media that
        the servers would not read."""
        self._check_media(prompts)
        for part in self._parts(prompts):
            self._check(prompts[part])

    def _check_media(self, prompts: Sequence[Prompt]) -> None:
        limits = None if self._known is None else self._known.limits
        for medium in {m.digest: m for p in prompts for m in p.media if m.digest not in self._fit}.values():
            if limits is not None and (medium.path or medium.content is not None):
                frames, *sides = measured(medium, limits.max_frames)
                if max(sides) > limits.max_side or frames > limits.max_frames:
                    what = f"a side of {max(sides)} pixels" if frames <= limits.max_frames else "too many frames"
                    raise UserError(
                        f"media: {name_of(medium)}: has {what}; the servers of {self._where} take {limits.max_side} "
                        f"pixels (limits.max_side) and {limits.max_frames} frames (limits.max_frames)"
                    )
            self._fit.add(medium.digest)

    def _check(self, prompts: Sequence[Prompt]) -> None:
        data = {"prompts": prompts_as_json(prompts)}

        def check(server: Server) -> CheckAnswer:
            url = f"{server.url}/v1/check"
            answer = self._client.ask_json("POST", url, timeout=self._section.timeout, data=data)
            return CheckAnswer.model_validate(answer)

        try:
            answer = self._ask_in_peace(check)
        except TooMuch as error:
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

        def fetch(server: Server) -> list[Example]:
            url = f"{server.url}/v1/examples"
            return read_examples(Blob(self._client.ask("GET", url, timeout=self._section.timeout)))

        return self._ask_in_peace(fetch)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """The reward's scores. Raises RewardLost after all retries, RewardRaised with the reward's own message, and
        OutOfMemory."""
        prompts = list(prompts)
        parts = list(self._parts(prompts)) if len(media) == len(prompts) else []
        return score_in_parts(self._score, media, prompts, parts)

    def score_group(self, media: Tensor, prompt: Prompt, keys: Sequence[SampleKey]) -> Scores:
        """The same of a whole group, in one request: one that the servers do not take is lost."""
        return self._score(media, [prompt] * len(keys), keys)

    def _score(self, media: Tensor, prompts: Sequence[Prompt], keys: Sequence[SampleKey] | None = None) -> Scores:
        try:
            body = score_request(media, prompts, keys=keys)
        except Unfit as error:
            raise RewardLost(str(error)) from error
        headers = {"Content-Type": SAFETENSORS, "Accept": SAFETENSORS}

        def send(server: Server) -> Scores:
            url = f"{server.url}/v1/score"
            answer = self._client.ask("POST", url, timeout=self._section.timeout, content=body, headers=headers)
            scores = read_score_answer(Blob(answer))
            try:
                return check_scores(scores, len(prompts))
            except ValueError as error:
                raise Malformed(str(error)) from None

        return self._ask(send, "the samples of the request are missing")

    def _parts(self, prompts: Sequence[Prompt]) -> Iterator[slice]:
        """Stretches of the prompts that a request may hold."""
        limits = None if self._known is None else self._known.limits
        return stretches(prompts, min(limits.max_prompts, MOST_PROMPTS) if limits else MOST_PROMPTS)

    def close(self) -> None:
        """Close the connections; whoever waits for a server does so no longer."""
        self._servers.close()
        self._client.close()

    # -- asking -----------------------------------------------------------------------------------------------------

    def _ask_in_peace(self, send: Callable[[Server], T]) -> T:
        """Ask where no score is at stake: before a run, when whatever goes wrong is for a person to mend."""
        try:
            return self._ask(send, "the run is given up")
        except TooMuch:
            raise
        except (RewardLost, RewardRaised, OutOfMemory) as error:
            raise UserError(f"{self._where}: {error}") from error

    def _ask(self, send: Callable[[Server], T], otherwise: str) -> T:
        """An answer of whichever server gives one: failures count, being asked to wait only takes time."""
        timeout = self._section.timeout
        with self._servers.errand(time.monotonic() + timeout, self._section.retries + 1, otherwise) as errand:
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
                    errand.tries -= 1
                    errand.patience = time.monotonic() + timeout
                    self._servers.failed(server, str(error))
                    if errand.tries <= 0:
                        raise RewardLost(
                            f"the request failed {self._section.retries + 1} times; the last at {server.name}: {error}"
                        ) from error
                except Busy as error:
                    self._servers.busy(server, error.seconds, str(error))
                    if time.monotonic() > errand.patience:
                        raise RewardLost(self._nobody(f"{server.name}: {error}")) from error
                except Refused as error:
                    self._servers.released(server)
                    kind = TooMuch if isinstance(error, TooLarge) else RewardLost
                    raise kind(f"{server.name} refused the request: {error}") from error
                except BaseException:
                    self._servers.released(server)
                    raise
                else:
                    self._servers.succeeded(server)
                    return answer
                finally:
                    self._under_way.now = None

    def _look(self) -> None:
        """Called now and then by a thread that waits for an answer."""
        check_signals()
        if (now := getattr(self._under_way, "now", None)) is None:
            return
        server, errand, since = now
        waited, timeout = time.monotonic() - since, self._section.timeout
        if waited > max(SLOW, timeout / 2):
            self._servers.slow(server, errand, waited, timeout)

    def _nobody(self, why: str) -> str:
        return f"no server took the request within {self._section.timeout:g} s: {why}"

    def _from(self, server: Server, send: Callable[[Server], T]) -> T:
        """One server's answer; one that was out must first be ready and still serve the same."""
        if server.out:
            self._client.ask("GET", f"{server.url}/ready", timeout=min(PROBE, self._section.timeout))
            try:
                self._describe(server)
            except UserError as error:
                raise Down(str(error)) from error
        try:
            return send(server)
        except (Malformed, ValidationError) as error:
            raise Nonsense(f"answered nonsense: {_first(error)}") from error

    # -- meeting the servers ----------------------------------------------------------------------------------------

    def _meet(self) -> RewardDescription:
        """What the servers serve; those that are not there are left alone for now, if another one is."""
        began = time.monotonic()
        wait = 0.1
        while True:
            loading = False
            for server in self._servers.all:
                try:
                    self._known = self._describe(server)
                    server.out = False
                except (Down, Busy) as error:
                    server.out, server.why = True, str(error)
                    loading = loading or isinstance(error, Busy)
                except (Refused, RewardRaised, OutOfMemory) as error:
                    raise UserError(f"{self._where}.urls: {server.name} answers: {error}") from error
            if self._known is not None:
                break
            patience = max(START, self._section.timeout) if loading else START
            if time.monotonic() + wait > began + patience:
                self._nobody_is_there()
            self._pause(wait, began + patience)
            wait = min(2 * wait, 5.0)
        if self._servers.waiting.over():
            there = ", ".join(server.name for server in self._servers.all if not server.out)
            log.warning("%s: %s is there", self._where, there)
        for server in self._servers.all:
            if server.out:
                log.warning(
                    "%s: %s does not answer and is left alone for now: %s", self._where, server.name, server.why
                )
        return self._known

    def _pause(self, wait: float, deadline: float) -> None:
        """Wait between two rounds, and say so."""
        names = "; ".join(f"{server.name} ({server.why})" for server in self._servers.all)

        def line(waited: float) -> str:
            left = seconds(max(0.0, deadline - time.monotonic()))
            return f"{self._where}: waiting for {names}; {so_far(waited)}up to {left} more; then the run is given up"

        until = time.monotonic() + wait
        while (pause := until - time.monotonic()) > 0:
            check_signals()
            self._servers.waiting.tell(line)
            time.sleep(min(LOOK, pause))

    def _nobody_is_there(self) -> NoReturn:
        lines = "\n".join(f"  {s.name}: {s.why}" for s in self._servers.all)
        raise UserError(f"{self._where}.urls: no server answers; start one with `dgpo serve`:\n{lines}")

    def _describe(self, server: Server) -> RewardDescription:
        """What a server says of itself. Raises UserError if it is not what the block asks for."""
        where, url = f"{self._where}.urls", server.name
        try:
            data = self._client.ask_json("GET", f"{server.url}/v1/reward", timeout=min(PROBE, self._section.timeout))
        except Nonsense as error:
            raise UserError(f"{where}: {url} is no dgpo reward service: it {error}") from error
        except Stranger as error:
            raise UserError(f"{where}: {url} is no dgpo reward service: it answers with {error}") from error
        if isinstance(data.get("limits"), dict):  # a newer service may have more of them
            known = ServiceLimits.model_fields
            data = data | {"limits": {name: value for name, value in data["limits"].items() if name in known}}
        try:
            check_protocol(data)
            found = RewardDescription.model_validate(data)
        except OtherProtocol as error:
            version = clean(str(data.get("dgpo", "of unknown version")), 40)
            raise UserError(f"{where}: {url} (dgpo {version}) {error}") from error
        except ValidationError as error:
            raise UserError(f"{where}: {url} is no dgpo reward service: its description is not one") from error
        if found.use != self._block.use:
            raise UserError(
                f"{where}: {url} serves {clean(found.use, 100)}, but `use` of {self._place} is {self._block.use}"
            )
        for key, wanted, served in _differences(plain(self._block.options), found.options):
            raise UserError(
                f"{where}: {url} serves {found.use} with {key}: {clean(repr(served), 200)}, but `{key}` of "
                f"{self._place} is {wanted!r}"
            )
        if self._known is not None and _sameness(found) != _sameness(self._known):
            raise UserError(
                f"{where}: {url} serves {found.use} with other options than the other servers: "
                f"{clean(repr(found.options), 500)}"
            )
        return found


def _sameness(description: RewardDescription) -> tuple[Any, ...]:
    return (
        description.options, description.range, set(description.media), description.group_by, description.compares
    )  # fmt: skip


def _differences(wanted: Any, served: Any, key: str = "options") -> list[tuple[str, Any, Any]]:
    """(key, wanted, served) of every option that was given and is another one there."""
    if isinstance(wanted, Mapping) and isinstance(served, Mapping):
        return [
            found
            for name, value in wanted.items()
            for found in _differences(value, served.get(name, "nothing"), f"{key}.{name}")
        ]
    return [] if wanted == served else [(key, wanted, served)]


def _checked_url(url: str, where: str) -> str:
    """The address without a slash at its end. Raises UserError if it is none."""
    try:
        service_address(url)
    except ValueError as error:
        raise UserError(f"{where}.urls: {error}") from error
    try:
        httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"{where}.urls: {shown_address(url)!r} is no address; write it like {EXAMPLE}") from error
    return url.rstrip("/")


def _first(error: Exception) -> str:
    """What an answer lacks, on one line and without what it held."""
    if isinstance(error, ValidationError):
        detail = error.errors(include_input=False, include_url=False)[0]
        return clean(f"{'.'.join(map(str, detail['loc']))}: {detail['msg']}", 300)
    return clean(str(error), 300)
