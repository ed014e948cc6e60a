"""A reward behind HTTP: one or several servers started with `dgpo serve`, asked in turn and again when they fail."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import httpx
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.placement.http import Busy, Client, Down, Nonsense, Refused, Stranger
from dgpo_core.placement.messages import (
    Blob,
    Malformed,
    OtherProtocol,
    Unfit,
    check_protocol,
    plain,
    prompts_as_json,
    read_examples,
    read_score_answer,
    score_request,
)
from dgpo_core.placement.remote import OutOfMemory, RemoteReward, RewardLost, RewardRaised, check_scores
from dgpo_core.placement.servers import NoServer, Server, Servers
from dgpo_core.types import Example, Prompt, Scores
from dgpo_schemas.service import SAFETENSORS, CheckAnswer, RewardDescription

if TYPE_CHECKING:
    import torch

    from dgpo_schemas.run import RewardBlock, ServiceSection

__all__ = ["ServiceReward"]

log = logging.getLogger(__name__)

START = 30.0
"""Seconds that servers are given to be there when a run starts; one that says it is loading has its whole timeout."""
PROBE = 5.0
"""Seconds for the answer to whether a server is ready."""
T = TypeVar("T")


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
        self._servers = Servers(urls, section.concurrency)
        self._client = Client(where, section.token_variable, connections + 1)
        self._known: RewardDescription | None = None
        try:
            self._adopt(self._meet(), concurrency=connections)
        except BaseException:
            self._client.close()
            raise

    # -- the reward's face ------------------------------------------------------------------------------------------

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the reward check them. Raises UserError, also if the reward or its servers fail at it."""
        data = {"prompts": prompts_as_json(prompts)}

        def check(server: Server) -> CheckAnswer:
            url = f"{server.url}/v1/check"
            answer = self._client.ask_json("POST", url, timeout=self._section.timeout, data=data)
            return CheckAnswer.model_validate(answer)

        answer = self._ask_in_peace(check)
        if not answer.ok:
            raise UserError(answer.message or f"{self._where}: the reward refuses the prompts")

    def examples(self) -> Sequence[Example]:
        """The reward's own."""

        def fetch(server: Server) -> list[Example]:
            url = f"{server.url}/v1/examples"
            return read_examples(Blob(self._client.ask("GET", url, timeout=self._section.timeout)))

        return self._ask_in_peace(fetch)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """The reward's scores. Raises RewardLost after all retries, RewardRaised with the reward's own message, and
        OutOfMemory."""
        try:
            body = score_request(media, prompts)
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

        return self._ask(send)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # -- asking -----------------------------------------------------------------------------------------------------

    def _ask_in_peace(self, send: Callable[[Server], T]) -> T:
        """Ask where no score is at stake: before a run, when whatever goes wrong is for a person to mend."""
        try:
            return self._ask(send)
        except (RewardLost, RewardRaised, OutOfMemory) as error:
            raise UserError(f"{self._where}: {error}") from error

    def _ask(self, send: Callable[[Server], T]) -> T:
        """An answer of whichever server gives one: failures count, being asked to wait only takes time."""
        patience = time.monotonic() + self._section.timeout
        failures = 0
        while True:
            try:
                server = self._servers.acquire(patience)
            except NoServer as error:
                raise RewardLost(self._nobody(str(error))) from error
            try:
                answer = self._from(server, send)
            except Down as error:
                failures += 1
                patience = time.monotonic() + self._section.timeout
                self._servers.failed(server, str(error))
                if failures > self._section.retries:
                    raise RewardLost(
                        f"the request failed {failures} times; the last at {server.name}: {error}"
                    ) from error
            except Busy as error:
                self._servers.busy(server, error.seconds, str(error))
                if time.monotonic() > patience:
                    raise RewardLost(self._nobody(f"{server.name}: {error}")) from error
            except Refused as error:
                self._servers.released(server)
                raise RewardLost(f"{server.name} refused the request: {error}") from error
            except BaseException:
                self._servers.released(server)
                raise
            else:
                self._servers.succeeded(server)
                return answer

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
            raise Nonsense(f"answered nonsense: {error}") from error

    # -- meeting the servers ----------------------------------------------------------------------------------------

    def _meet(self) -> RewardDescription:
        """What the servers serve; those that are not there are left alone for now, if another one is."""
        began = time.monotonic()
        wait = 0.1
        told: set[float] = set()
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
            if patience not in told:  # else a run would seem to hang
                told.add(patience)
                names = ", ".join(f"{server.name} ({server.why})" for server in self._servers.all)
                log.warning("%s: waiting for %s, up to %g s", self._where, names, patience)
            time.sleep(wait)
            wait = min(2 * wait, 5.0)
        for server in self._servers.all:
            if server.out:
                log.warning(
                    "%s: %s does not answer and is left alone for now: %s", self._where, server.name, server.why
                )
        return self._known

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
        try:
            check_protocol(data)
            found = RewardDescription.model_validate(data)
        except OtherProtocol as error:
            raise UserError(f"{where}: {url} (dgpo {data.get('dgpo', 'of unknown version')}) {error}") from error
        except ValidationError as error:
            raise UserError(f"{where}: {url} is no dgpo reward service: its description is not one") from error
        if found.use != self._block.use:
            raise UserError(f"{where}: {url} serves {found.use}, but `use` of {self._place} is {self._block.use}")
        for key, wanted, served in _differences(plain(self._block.options), found.options):
            raise UserError(
                f"{where}: {url} serves {found.use} with {key}: {served!r}, but `{key}` of {self._place} is {wanted!r}"
            )
        if self._known is not None and _sameness(found) != _sameness(self._known):
            raise UserError(
                f"{where}: {url} serves {found.use} with other options than the other servers: {found.options}"
            )
        return found


def _sameness(description: RewardDescription) -> tuple[Any, ...]:
    return description.options, description.range, set(description.media), description.group_by


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
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"{where}.urls: {url!r} is no address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or (parsed.port or 1) > 65535:
        raise UserError(f"{where}.urls: {url!r} is no address; write it like http://gpu-7:8500")
    return url.rstrip("/")
