"""The service's endpoints. /health, /ready and /metrics are for monitoring and need no token."""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import torch
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dgpo_core.contracts import AnyReward, GroupReward
from dgpo_core.media.kinds import Kind, plural
from dgpo_core.training.memory import is_out_of_memory
from dgpo_core.types import Scores
from dgpo_remote.answering import as_text, checked, describe, message_of
from dgpo_remote.messages.scores import example_blob, score_answer
from dgpo_remote.refusal import Refusal
from dgpo_remote.server.aside import Aside
from dgpo_remote.server.batcher import Batcher
from dgpo_remote.server.bodies import Samples, in_groups, read_images, read_tensors, with_media
from dgpo_remote.server.budget import Budget, Share, current_share
from dgpo_remote.server.counters import Counters
from dgpo_remote.server.descriptors import connections_that_fit
from dgpo_remote.server.doors import Doors, refusal_answer
from dgpo_remote.server.intake import Limit, read_body, read_prompts, reserve_tensors
from dgpo_remote.server.pool import Pool
from dgpo_remote.server.readers import Readers
from dgpo_schemas.serve import ServeConfig
from dgpo_schemas.service import (
    PROTOCOL,
    REQUEST,
    SAFETENSORS,
    ScoreAnswer,
    StatusAnswer,
)
from dgpo_schemas.text import error_text

__all__ = ["Service"]

log = logging.getLogger(__name__)

TENSORS = (SAFETENSORS, "application/x-safetensors")
FORM, JSON = "multipart/form-data", "application/json"
GONE = 499
"""Status under which requests are counted whose client disconnected."""
JSON_GROWTH = 8
"""Approximate bytes of memory per byte of JSON, for its strings and the objects created from it."""


class Service:
    """The state of a service and its ASGI application, `app`."""

    def __init__(self, config: ServeConfig, batcher: Batcher, counters: Counters, token: str | None) -> None:
        self.config = config
        self.batcher = batcher
        self.counters = counters
        self.readers = Readers(config.readers, config.limits)
        self.budget = Budget(config.memory)
        self.pool = Pool(config.connections, connections_that_fit(config.most_connections), counters)
        self.draining = False
        self.inside = 0
        """Requests in progress, without monitoring requests."""
        self._aside = Aside()
        counters.watch(
            batcher.waiting, lambda: self.inside, lambda: self.budget.used, lambda: len(self.pool.connections)
        )
        routes = [
            Route("/health", self._health),
            Route("/ready", self._ready),
            Route("/metrics", self._metrics),
            Route("/v1/reward", self._reward),
            Route("/v1/examples", self._examples),
            Route("/v1/check", self._check, methods=["POST"]),
            Route("/v1/score", self._score, methods=["POST"]),
        ]
        handlers = {Refusal: self._refused, HTTPException: self._not_found, Exception: self._broken}
        starlette = Starlette(routes=routes, exception_handlers=handlers)
        starlette.router.redirect_slashes = False  # the redirect would go to whatever host the `Host` header names
        methods = {route.path: ", ".join(sorted({*(route.methods or ()), "OPTIONS"})) for route in routes}
        self.app: ASGIApp = _Counted(Doors(starlette, config, token, methods, counters), counters, set(methods))

    def close(self) -> None:
        """Stop the service's thread."""
        self._aside.close()

    # -- monitoring -------------------------------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        return _json(StatusAnswer(status="alive"))

    async def _ready(self, request: Request) -> Response:
        if (status := self._status()) == "ready":
            return _json(StatusAnswer(status="ready"))
        return _json(StatusAnswer.model_validate({"status": status}), 503, {"Retry-After": "1"})

    def _status(self) -> str:
        if self.draining:
            return "draining"
        if self.batcher.reward is None:
            return "loading"
        return "stuck" if self.batcher.stuck(2 * self.config.timeout) else "ready"

    async def _metrics(self, request: Request) -> Response:
        return Response(self.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # -- the reward -------------------------------------------------------------------------------------------------

    async def _reward(self, request: Request) -> Response:
        return _json(describe(self.config.reward.use, self._loaded(), self.config.limits))

    async def _examples(self, request: Request) -> Response:
        return await self._admitted(request, self._example_response)

    async def _example_response(self, request: Request, body: bytes) -> Response:
        blob = await asyncio.wrap_future(self.batcher.call(lambda reward: example_blob(reward.examples())))
        return Response(blob, media_type=SAFETENSORS)

    async def _check(self, request: Request) -> Response:
        if self._kind(request) != JSON:
            raise Refusal(415, "type", f"the body must be {JSON}")
        kib = self.config.limits.max_json_kib
        return await self._admitted(
            request, self._check_response, Limit(kib * 1024, f"{kib} KiB (limits.max_json_kib)")
        )

    async def _check_response(self, request: Request, body: bytes) -> Response:
        current().reserve(JSON_GROWTH * len(body))
        prompts = await self._aside(read_prompts, body, self.config.limits)
        return _json(await asyncio.wrap_future(self.batcher.call(lambda reward: checked(reward, prompts))))

    async def _score(self, request: Request) -> Response:
        if self._kind(request) is None:
            raise Refusal(
                415, "type", f"the body must be {SAFETENSORS} (tensors), {FORM} (image files) or {JSON} (base64)"
            )
        return await self._admitted(request, self._score_response)

    async def _score_response(self, request: Request, body: bytes) -> Response:
        samples = self._fitting(await self._samples(request, body))
        futures = [self.batcher.score(b.media, b.prompts, alone=b.alone, keys=b.keys) for b in samples.batches]
        try:
            scores = [await asyncio.wrap_future(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()  # no effect on completed futures
        self.counters.samples.inc(len(samples.lost))
        self.counters.missing.inc(len(samples.lost))
        return await self._aside(lambda: self._answer(request, _in_order(samples, scores)))

    def _fitting(self, samples: Samples) -> Samples:
        """Keep the samples of a kind that the reward scores; others are missing. Raises Refusal if none is left."""
        reward = self.batcher.reward
        assert reward is not None  # the request was admitted, so the reward is loaded, even if the service is draining
        fitting, lost = [], dict(samples.lost)
        for batch in samples.batches:
            medium: Kind = "video" if batch.media.dim() == 5 else "image"
            if medium in reward.media:
                fitting.append(batch)
                continue
            why = f"{self.config.reward.use} does not score {medium}s; it scores {plural(reward.media)}"
            lost |= dict.fromkeys(batch.places, why)
        if samples.batches and not fitting:
            raise Refusal(422, "request", why)
        fits = Samples(fitting, samples.count, lost, samples.notes)
        if isinstance(reward, GroupReward):
            return in_groups(fits)
        if any(batch.keys is not None for batch in fitting):
            raise Refusal(422, "request", f"{self.config.reward.use} scores each sample independently; omit `keys`")
        return fits

    @staticmethod
    def _kind(request: Request) -> str | None:
        """Return the body's media type, or None if it is not supported."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        return kind if kind in (*TENSORS, FORM, JSON) else None

    async def _samples(self, request: Request, body: bytes) -> Samples:
        """Read the samples of a request after reserving memory for them."""
        limits, share = self.config.limits, current()
        if self._kind(request) in TENSORS:
            reserve_tensors(body, share, limits)
            samples = await self._aside(read_tensors, body, limits)
            return await with_media(self.readers, samples, limits, share.reserve)
        return await read_images(self.readers, body, request.headers["content-type"], limits, share.reserve)

    def _answer(self, request: Request, scores: Scores) -> Response:
        """Respond with safetensors to tensors and with JSON to image files, unless `Accept` requests otherwise."""
        accept = request.headers.get("accept", "")
        tensors = self._kind(request) in TENSORS
        if JSON in accept or not (tensors or any(kind in accept for kind in TENSORS)):
            return _json(_as_json(scores))
        return Response(score_answer(scores), media_type=SAFETENSORS)

    # -- admission --------------------------------------------------------------------------------------------------

    def _loaded(self) -> AnyReward:
        """Return the reward. Raises Refusal while it is loading or the service is draining."""
        reward = self.batcher.reward
        if reward is None or self.draining:
            raise Refusal(503, "busy", f"the service is {self._status()}", {"Retry-After": "1"})
        return reward

    async def _admitted(
        self, request: Request, handle: Callable[[Request, bytes], Awaitable[Response]], limit: Limit | None = None
    ) -> Response:
        """Read the body and handle the request, within the limits on requests, memory and time.

        A client that disconnects cancels this task.
        """
        self._loaded()
        if self.inside >= self.config.queue:
            raise Refusal(503, "busy", f"{self.inside} requests are already in progress (queue)", {"Retry-After": "1"})
        mib = self.config.limits.max_body_mib
        limit = limit or Limit(mib * 2**20, f"{mib} MiB (limits.max_body_mib)")
        read = False
        self.inside += 1
        share = self.budget.share()
        try:
            async with asyncio.timeout(self.config.timeout) as timer:
                body = await read_body(request, share, limit, self.config.connections.body_seconds)
                read = True
                return await handle(request, body)
        except TimeoutError:
            if not timer.expired():
                raise
            what = "the request was not completed" if read else "the body was not received"
            message = f"{what} within {self.config.timeout:g} s (timeout)"
            raise Refusal(504 if read else 408, "timeout", message) from None
        except Exception as error:
            if isinstance(error, Refusal) or not is_out_of_memory(error):
                raise
            message = f"the service ran out of memory while reading the request: {message_of(error)}"
            raise Refusal(507, "memory", message) from None
        finally:
            self.inside -= 1
            share.release()

    # -- errors -----------------------------------------------------------------------------------------------------

    async def _refused(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        self.counters.refuse(error.kind)
        return refusal_answer(error)

    async def _not_found(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.scope['path']}: {error.detail}"
        return refusal_answer(Refusal(error.status_code, "request", message, dict(error.headers or {})))

    async def _broken(self, request: Request, error: Exception) -> Response:
        """Respond to an internal error."""
        return refusal_answer(Refusal(500, "internal", f"internal error of the service: {error_text(error)}"))


def _in_order(samples: Samples, scores: Sequence[Scores]) -> Scores:
    """Return the scores in the order of the request, with the notes from reading its files."""
    if len(samples.batches) == 1 and not samples.lost and not samples.notes:
        return scores[0]
    values, missing = torch.zeros(samples.count), torch.ones(samples.count, dtype=torch.bool)
    diagnostics: list[Mapping[str, Any]] = [{}] * samples.count
    for batch, part in zip(samples.batches, scores, strict=True):
        values[batch.places], missing[batch.places] = part.values.float(), part.missing.bool()
        for place, reported in zip(batch.places, part.diagnostics, strict=True):
            diagnostics[place] = reported
    for place, reason in samples.lost.items():
        diagnostics[place] = {"reason": reason}
    for place, notes in samples.notes.items():
        reported = diagnostics[place]
        own = reported.get("notes", [])  # the reward may report notes too
        diagnostics[place] = {**reported, "notes": [*notes, *(own if isinstance(own, list) else [own])]}
    return Scores(values, missing, tuple(diagnostics))


def _as_json(scores: Scores) -> ScoreAnswer:
    missing = (scores.missing.bool() | ~scores.values.isfinite()).tolist()
    values = [None if lost else float(value) for value, lost in zip(scores.values.tolist(), missing, strict=True)]
    diagnostics = [dict(one) for one in scores.diagnostics]
    return ScoreAnswer(protocol=PROTOCOL, values=values, missing=missing, diagnostics=diagnostics)


# -- responses ----------------------------------------------------------------------------------------------------


def _json(message: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(as_text(message), status, headers, JSON)


def current() -> Share:
    """Return the memory share of the current request."""
    share = current_share()
    assert share is not None
    return share


class _Counted:
    """Counts requests by path and status, measures their duration, and echoes the request ID in the response."""

    def __init__(self, app: ASGIApp, counters: Counters, paths: set[str]) -> None:
        self._app = app
        self._counters = counters
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        number = Headers(scope=scope).get(REQUEST, "")
        started, status = time.perf_counter(), GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if 0 < len(number) <= 200:
                    MutableHeaders(scope=message)[REQUEST] = number
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:  # the response was already sent
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.error("%s: %s (%s, line %d)", path, error_text(error), where.filename, where.lineno)
            self._counters.refuse("internal")
        finally:
            self._counters.requests.labels(path, str(status)).inc()
            self._counters.seconds.labels(path).observe(time.perf_counter() - started)
