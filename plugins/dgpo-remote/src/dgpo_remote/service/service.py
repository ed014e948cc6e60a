"""A reward behind HTTP: one or several `dgpo serve` servers, with load balancing and retries."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import httpx
from pydantic import ValidationError
from torch import Tensor

from dgpo_core.errors import UserError
from dgpo_core.media.conditions import measured, name_of
from dgpo_core.system.stopping import check_signals
from dgpo_core.training.memory import OutOfMemory
from dgpo_core.training.scores import plain
from dgpo_core.types import Prompt, Scores
from dgpo_remote.failures import Busy, Down, InvalidResponse, NotAService, Refused, RewardRaised
from dgpo_remote.messages.blobs import OtherProtocol, check_protocol
from dgpo_remote.messages.prompts import stretches
from dgpo_remote.reward import RemoteReward
from dgpo_remote.servers import LOOK, Server, Servers
from dgpo_remote.service.http import Client
from dgpo_remote.waiting import seconds, so_far
from dgpo_schemas.addresses import EXAMPLE, service_address, shown_address
from dgpo_schemas.service import SAFETENSORS, RewardDescription, ServiceLimits
from dgpo_schemas.text import clean

if TYPE_CHECKING:
    import torch

    from dgpo_core.contracts import AnyReward
    from dgpo_schemas.sections.rewards import RewardBlock, ServiceSection

__all__ = ["ServiceReward", "connect"]

log = logging.getLogger(__name__)

START = 30.0
"""Seconds to wait for servers when a run starts; a server that is still loading gets its whole timeout."""
PROBE = 5.0
"""Timeout in seconds for readiness and description requests."""
FIRST_WAIT = 0.5
"""Backoff in seconds after a server's first failure."""
MOST_PROMPTS = 1000
"""Prompts per request if the server does not report a limit."""


def connect(block: RewardBlock, *, device: torch.device, where: str) -> AnyReward:
    """The reward of a block with a `service`, ready to score (`dgpo_core.rewards.Connect`)."""
    assert block.service is not None
    return ServiceReward(block, block.service, device=device, where=where).face


class Address:
    """The HTTP connection to one server (`servers.End`)."""

    def __init__(self, url: str, client: Client, timeout: float) -> None:
        self.url = url
        self.name = shown_address(url)
        self._client = client
        self._timeout = timeout

    def ask(self, path: str, body: bytes | None = None) -> bytes:
        """Send a safetensors body or none, and return the safetensors response."""
        headers = {"Accept": SAFETENSORS} if body is None else {"Content-Type": SAFETENSORS, "Accept": SAFETENSORS}
        return self._client.ask(
            _method(body), f"{self.url}{path}", timeout=self._timeout, content=body, headers=headers
        )

    def ask_json(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        """Send a JSON body or none, and return the JSON response."""
        return self._client.ask_json(_method(body), f"{self.url}{path}", timeout=self._timeout, content=body)

    def probe(self, path: str) -> dict[str, Any]:
        """Send a GET request with a short timeout, and return the JSON response."""
        return self._client.ask_json("GET", f"{self.url}{path}", timeout=min(PROBE, self._timeout))

    def close(self) -> None:
        """Do nothing: the connections belong to the client."""


def _method(body: bytes | None) -> str:
    return "GET" if body is None else "POST"


class ServiceReward(RemoteReward):
    """A reward that HTTP servers score."""

    def __init__(self, block: RewardBlock, section: ServiceSection, *, device: torch.device, where: str) -> None:
        """Connect to the servers.

        Raises UserError if none responds, or if one is not a reward service, serves another reward or other options, or
        rejects the token.
        """
        self._block = block
        self._place = where
        where = f"{where}.service"
        urls = [_checked_url(url, where) for url in section.urls]
        connections = len(urls) * section.concurrency
        self._client = Client(self._place, section.token_variable, connections + 1, urls, self._on_wait)
        ends = [Address(url, self._client, section.timeout) for url in urls]
        servers = Servers(ends, section.concurrency, where, first_wait=FIRST_WAIT)
        super().__init__(block, servers, device=device, where=where, timeout=section.timeout, retries=section.retries)
        self._fit: set[str] = set()  # digests of media that are within the servers' limits
        self._known: RewardDescription | None = None
        try:
            self._adopt(self._connect_all(), concurrency=connections)
        except BaseException:
            self._client.close()
            raise

    @property
    def _limits(self) -> ServiceLimits | None:
        return None if self._known is None else self._known.limits

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        """Let the remote reward check the prompts.

        Raises UserError, also if the reward or its servers fail, and for media beyond the servers' limits.
        """
        limits = self._limits
        for medium in {m.digest: m for p in prompts for m in p.media if m.digest not in self._fit}.values():
            if limits is not None and (medium.path or medium.content is not None):
                frames, *sides = measured(medium, limits.max_frames)
                if max(sides) > limits.max_side or frames > limits.max_frames:
                    what = f"a side of {max(sides)} pixels" if frames <= limits.max_frames else "too many frames"
                    raise UserError(
                        f"media: {name_of(medium)}: has {what}; the servers of {self._where} accept up to "
                        f"{limits.max_side} pixels (limits.max_side) and {limits.max_frames} frames (limits.max_frames)"
                    )
            self._fit.add(medium.digest)
        super().check_prompts(prompts)

    def score(self, media: Tensor, prompts: Sequence[Prompt]) -> Scores:
        """As `RemoteReward.score`, split into requests of at most `limits.max_prompts` prompts."""
        prompts = list(prompts)
        return self._score(media, prompts, self._parts(prompts) if len(media) == len(prompts) else ())

    def _parts(self, prompts: Sequence[Prompt]) -> Sequence[slice]:
        limits = self._limits
        return list(stretches(prompts, min(limits.max_prompts, MOST_PROMPTS) if limits else MOST_PROMPTS))

    def close(self) -> None:
        """Close the connections and wake up all waiting threads."""
        super().close()
        self._client.close()

    def _reconnect(self, server: Server) -> None:
        """Check that a failed server is ready and still serves the same reward."""
        _address(server).probe("/ready")
        self._describe(server)

    # -- connecting -------------------------------------------------------------------------------------------------

    def _connect_all(self) -> RewardDescription:
        """Return the description of the servers' reward. Unavailable ones are retried later if another responds."""
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
                    raise UserError(f"{self._where}.urls: {server.name} responds: {error}") from error
            if self._known is not None:
                break
            patience = max(START, self._timeout) if loading else START
            if time.monotonic() + wait > began + patience:
                self._raise_no_server()
            self._pause(wait, began + patience)
            wait = min(2 * wait, 5.0)
        if self._servers.waiting.over():
            available = ", ".join(server.name for server in self._servers.all if not server.out)
            log.warning("%s: %s is available", self._where, available)
        for server in self._servers.all:
            if server.out:
                log.warning("%s: %s does not respond and is retried later: %s", self._where, server.name, server.why)
        return self._known

    def _pause(self, wait: float, deadline: float) -> None:
        """Wait between two connection attempts, with log messages."""
        names = "; ".join(f"{server.name} ({server.why})" for server in self._servers.all)

        def line(waited: float) -> str:
            left = seconds(max(0.0, deadline - time.monotonic()))
            return f"{self._where}: waiting for {names}; {so_far(waited)}up to {left} more; then the run stops"

        until = time.monotonic() + wait
        while (pause := until - time.monotonic()) > 0:
            check_signals()
            self._servers.waiting.on_message(line)
            time.sleep(min(LOOK, pause))

    def _raise_no_server(self) -> NoReturn:
        lines = "\n".join(f"  {s.name}: {s.why}" for s in self._servers.all)
        raise UserError(f"{self._where}.urls: no server responds; start one with `dgpo serve`:\n{lines}")

    def _describe(self, server: Server) -> RewardDescription:
        """Request a server's description. Raises UserError if it does not match the run file."""
        where, url = f"{self._where}.urls", server.name
        try:
            data = _address(server).probe("/v1/reward")
        except InvalidResponse as error:
            raise UserError(f"{where}: {url} is not a dgpo reward service: it {error}") from error
        except NotAService as error:
            raise UserError(f"{where}: {url} is not a dgpo reward service: it responds with {error}") from error
        if isinstance(data.get("limits"), dict):  # a newer service may report more limits
            known = ServiceLimits.model_fields
            data = data | {"limits": {name: value for name, value in data["limits"].items() if name in known}}
        try:
            check_protocol(data)
            found = RewardDescription.model_validate(data)
        except OtherProtocol as error:
            version = clean(str(data.get("dgpo", "of unknown version")), 40)
            raise UserError(f"{where}: {url} (dgpo {version}) {error}") from error
        except ValidationError as error:
            raise UserError(f"{where}: {url} is not a dgpo reward service: its description is invalid") from error
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
        if self._known is not None and found.provenance != self._known.provenance:
            raise UserError(
                f"{where}: {url} serves {found.use} with {clean(repr(found.provenance), 300)}, the other servers with "
                f"{clean(repr(self._known.provenance), 300)}"
            )
        return found


def _address(server: Server) -> Address:
    assert isinstance(server.end, Address)
    return server.end


def _sameness(description: RewardDescription) -> tuple[Any, ...]:
    return (
        description.options, description.range, set(description.media), description.group_by, description.compares
    )  # fmt: skip


def _differences(wanted: Any, served: Any, key: str = "options") -> list[tuple[str, Any, Any]]:
    """Return (key, requested value, served value) for every given option that differs on the server."""
    if isinstance(wanted, Mapping) and isinstance(served, Mapping):
        return [
            found
            for name, value in wanted.items()
            for found in _differences(value, served.get(name, "nothing"), f"{key}.{name}")
        ]
    return [] if wanted == served else [(key, wanted, served)]


def _checked_url(url: str, where: str) -> str:
    """Return the URL without a trailing slash. Raises UserError if it is invalid."""
    try:
        service_address(url)
    except ValueError as error:
        raise UserError(f"{where}.urls: {error}") from error
    try:
        httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UserError(f"{where}.urls: {shown_address(url)!r} is not a valid URL; write it like {EXAMPLE}") from error
    return url.rstrip("/")
