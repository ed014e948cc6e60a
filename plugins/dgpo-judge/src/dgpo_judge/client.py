"""Ask many questions at once: one client in one long-lived thread, for any number of calling threads."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from dgpo_core.errors import DgpoError, UserError
from dgpo_judge.answers import Answer, Malformed, as_json, hidden_values, read_answer
from dgpo_judge.costs import Costs
from dgpo_judge.endpoints import Endpoint, Endpoints
from dgpo_judge.failures import Broken, Busy, Refused, Unreachable
from dgpo_judge.transport import Transport
from dgpo_schemas.text import clean

__all__ = ["Client", "Failure"]

log = logging.getLogger(__name__)
T = TypeVar("T")

START = 30.0
"""Seconds to wait for a first server when the reward is built."""
PATIENT = 2.0
"""Seconds of this wait after which it is told."""
PROBE = 10.0
"""Timeout in seconds of GET /v1/models."""
LOOK = 0.5
"""Seconds between two checks for Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Failure:
    """No answer. refused: whether the server rejected the request, so that a retry would not help."""

    reason: str
    refused: bool = False


class Client:
    """Sends requests to all servers, and retries them. Thread-safe."""

    def __init__(
        self,
        urls: Sequence[str],
        token: str | None,
        *,
        concurrency: int,
        timeout: float,
        patience: float,
        retries: int,
        where: str,
    ) -> None:
        """The arguments are the options of the same name; where: prefix of messages. Raises UserError."""
        self.costs = Costs()
        self._where, self._timeout, self._patience, self._retries = where, timeout, patience, retries
        self._most = concurrency * len(urls)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()
        self._closed = False
        try:
            self.endpoints, self._transport = self._call(self._made(urls, token, concurrency))
        except BaseException:
            self._stop()
            raise

    async def _made(self, urls: Sequence[str], token: str | None, concurrency: int) -> tuple[Endpoints, Transport]:
        transport = Transport(urls, token, concurrency * len(urls) + len(urls), self._where)
        return Endpoints(urls, concurrency), transport

    # -- questions ----------------------------------------------------------------------------------------------

    def ask(self, bodies: Sequence[Callable[[], bytes]], done: Callable[[int, Answer], None]) -> list[Answer | Failure]:
        """Send one request for each body and return the answers in their order.

        bodies: make the bodies, each called when its request is sent, so that few are in memory; done: called in the
        client's thread with the number and the answer of each request, at once. Never raises for a request.
        """
        return self._call(self._ask_all(bodies, done))

    async def _ask_all(
        self, bodies: Sequence[Callable[[], bytes]], done: Callable[[int, Answer], None]
    ) -> list[Answer | Failure]:
        found: list[Answer | Failure] = [Failure("was not asked")] * len(bodies)
        numbers = iter(range(len(bodies)))

        async def work() -> None:
            for number in numbers:  # shared: each worker takes the next question
                found[number] = answer = await self._ask(bodies[number])
                if isinstance(answer, Answer):
                    done(number, answer)

        # As many workers as requests may be in flight; a task for each question would wait in one long queue.
        await asyncio.gather(*(work() for _ in range(min(len(bodies), self._most))))
        return found

    async def _ask(self, make: Callable[[], bytes]) -> Answer | Failure:
        """Send a request until it is answered, refused, or has failed too often or for too long."""
        deadline, failures, why = time.monotonic() + self._patience, 0, ""
        while (endpoint := await self.endpoints.acquire(deadline)) is not None:
            try:
                return await self._tried(endpoint, make, deadline)
            except Refused as error:
                return Failure(f"{endpoint.url}: {error}", refused=True)
            except Broken as error:
                why = f"{endpoint.url}: {error}"
                failures += 1
                if failures > self._retries:
                    return Failure(f"failed {failures} times, at last {why}")
                await self.endpoints.rest(failures, deadline)
            except (Unreachable, Busy):
                pass  # the endpoint waits, and any other may answer meanwhile
            self.costs.count(retries=1)
        return Failure(f"no answer within {self._patience:g} s ({why or self.endpoints.why()})")

    async def _tried(self, endpoint: Endpoint, make: Callable[[], bytes], deadline: float) -> Answer:
        """Send a request once, and record at the endpoint how it went. Raises what `Transport.send` raises."""
        started = time.monotonic()
        self.costs.count(requests=1)
        try:
            left = max(0.001, min(self._timeout, deadline - started))
            body = await self._transport.send("POST", f"{endpoint.url}/v1/chat/completions", make(), left)
            answer = read_answer(body, self._transport.hide)
        except Unreachable as error:
            await self.endpoints.unreachable(endpoint, str(error))
            raise
        except Busy as error:
            await self.endpoints.paused(endpoint, error.seconds, str(error))
            raise
        except Malformed as error:
            await self.endpoints.release(endpoint)
            raise Broken(str(error)) from error
        except BaseException:
            await self.endpoints.release(endpoint)
            raise
        await self.endpoints.succeeded(endpoint)
        self.costs.answered(time.monotonic() - started, answer.prompt_tokens, answer.completion_tokens)
        return answer

    # -- models -------------------------------------------------------------------------------------------------

    def served(self, model: str | None) -> tuple[str, dict[str, Any]]:
        """Return the name of the model to ask for, and what the first server says of it (GET /v1/models).

        Waits for a first server. Raises UserError if none can be reached, if one rejects the token or is no such
        server, if it does not serve `model`, or serves several and `model` is None.
        """
        started = time.monotonic()
        until, told = started + START, False
        known: tuple[str, dict[str, Any]] | None = None
        while known is None:
            for endpoint in self.endpoints.all:
                found = self._models(endpoint)
                if found is not None:
                    chosen = self._chosen(endpoint.url, found, model if known is None else known[0])
                    known = known or chosen
            if known is None and time.monotonic() > until:
                raise UserError(
                    f"{self._where}: urls: no server can be reached ({self.endpoints.why()}); is it started?"
                )
            if known is None and not told and time.monotonic() > started + PATIENT:
                told = True
                log.warning("%s: waits up to %.0f s for a server: %s", self._where, START, self.endpoints.why())
            if known is None:
                time.sleep(LOOK)
        for endpoint in self.endpoints.all:
            if endpoint.why:
                log.warning("%s: %s cannot be reached and is tried again: %s", self._where, endpoint.url, endpoint.why)
        return known

    def _models(self, endpoint: Endpoint) -> list[dict[str, Any]] | None:
        """Return the models of a server; None if it cannot be reached."""
        url = f"{endpoint.url}/v1/models"
        try:
            data = as_json(self._call(self._transport.send("GET", url, None, PROBE)))
        except (Unreachable, Broken, Busy) as error:
            endpoint.why, endpoint.down = str(error), True
            return None
        except Refused as error:
            hint = ""
            if str(error).startswith(("status 401", "status 403")):
                hint = "; name the environment variable with the server's token in `token_variable`"
            raise UserError(f"{self._where}: urls: {url} answers {error}{hint}") from error
        except ValueError:
            data = None
        endpoint.why, endpoint.down = "", False
        entries = data.get("data") if isinstance(data, dict) else None
        if not isinstance(entries, list) or not all(
            isinstance(e, dict) and isinstance(e.get("id"), str) for e in entries
        ):
            raise UserError(f"{self._where}: urls: {url} does not list models: not an OpenAI-compatible server")
        # What is kept of a model must not repeat the token; its name is needed as it is.
        return [{**hidden_values(entry, self._transport.hide), "id": entry["id"]} for entry in entries]

    def _chosen(self, url: str, entries: Sequence[dict[str, Any]], model: str | None) -> tuple[str, dict[str, Any]]:
        names = [entry["id"] for entry in entries]
        shown = ", ".join(clean(self._transport.hide(name), 100) for name in names[:10]) or "none"
        if model is None and len(names) == 1:
            model = names[0]
        if model is None:
            raise UserError(f"{self._where}: model: {url} serves several models, name one: {shown}")
        if model not in names:
            raise UserError(f"{self._where}: model: {url} does not serve {clean(model, 100)!r}; it serves {shown}")
        return model, next(entry for entry in entries if entry["id"] == model)

    # -- the thread ---------------------------------------------------------------------------------------------

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the client's thread and wait for its result; Ctrl-C cancels it."""
        if self._closed:
            work.close()
            raise DgpoError("the judge was closed")
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            while True:
                try:
                    return future.result(LOOK)
                except TimeoutError:
                    if future.done():  # it ended just after the wait, or its own error is a TimeoutError
                        return future.result()
                    if self._closed:
                        raise DgpoError("the judge was closed") from None
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Close the connections and end the thread; pending calls raise. Idempotent."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(TimeoutError):  # a connection that cannot be closed ends with the process
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(LOOK * 10)
        self._stop()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._transport.close()

    def _stop(self) -> None:
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LOOK * 10)
        if not self._thread.is_alive():
            self._loop.close()
