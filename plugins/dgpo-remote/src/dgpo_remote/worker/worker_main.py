"""A worker process: `python -m dgpo_remote.worker.worker_main FD PARENT`, started by `process`.

It sends its protocol version before it imports anything heavy, loads the requested reward, and then handles one request
at a time until the socket closes. The reward's stdout goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from typing import TYPE_CHECKING, Any

from dgpo_core import __version__
from dgpo_core.system.openmp import spin_briefly
from dgpo_core.system.portable import EARLY
from dgpo_core.system.supervising import end_with_parent
from dgpo_remote.worker.channel import Channel
from dgpo_schemas.service import WORKERS

if TYPE_CHECKING:
    from dgpo_core.contracts import AnyReward

__all__ = ["main"]

WATCH = 1.0
"""Seconds between two checks of whether the run is alive."""


def main(arguments: list[str]) -> int:
    """Handle requests until the run closes the socket. Returns the exit status."""
    for number in (signal.SIGINT, EARLY):  # of a terminal or a cluster to all processes; the run stops this one
        if number is not None:
            signal.signal(number, signal.SIG_IGN)
    spin_briefly()
    descriptor, parent = int(arguments[0]), int(arguments[1])
    os.set_inheritable(descriptor, False)
    end_with_parent(parent, _end, WATCH)  # even while the reward is running
    channel = Channel(socket.socket(fileno=descriptor))
    channel.send(json.dumps({"protocol": WORKERS, "dgpo": __version__}).encode())
    host = Host()
    with contextlib.suppress(EOFError):
        while not host.stopped:
            number, path, body = channel.receive()
            status, answer = host.answer(path, body)
            channel.send(answer, number=number, about=status)
        return 0
    _end()
    return 0


def _end() -> None:
    """Exit immediately and kill every process that the reward has started."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


class Host:
    """Holds the reward and handles requests to it."""

    def __init__(self) -> None:
        self.reward: AnyReward | None = None
        self.stopped = False

    def answer(self, path: str, body: bytes) -> tuple[str, bytes]:
        """Handle a request and return (status, payload).

        Every exception becomes an error response, including SystemExit, which some libraries raise.
        """
        from dgpo_core.plugins.isolation import no_exit
        from dgpo_core.training.memory import free
        from dgpo_remote.answering import as_text, error_message, refusal_of

        try:
            with no_exit():
                return "200", self._load(json.loads(body)) if path == "/load" else self._answer(path, body)
        except BaseException as error:
            with contextlib.suppress(BaseException):  # the exception's `__str__` may raise
                traceback.print_exc()
            refusal = refusal_of(error)
        if refusal.kind == "memory":  # outside of `except`, whose traceback keeps the batch's tensors alive
            free()
        return str(refusal.status), as_text(error_message(refusal.kind, str(refusal), lines=True)).encode()

    def _load(self, start: dict[str, Any]) -> bytes:
        """Build the reward and return its description."""
        _adopt_settings(start["settings"])
        from dgpo_core.plugins.process_state import ProcessState
        from dgpo_core.plugins.registry import get_registry
        from dgpo_core.system.hub import prepare_hub
        from dgpo_remote.answering import as_text, describe
        from dgpo_schemas.base import UseBlock

        self.process_state = ProcessState()  # as for a local reward, so that the scores are bit-identical
        block = UseBlock(use=start["use"], options=start["options"])
        registry = get_registry()
        prepare_hub()
        with self.process_state.around("the reward, when it was made,"):
            reward: AnyReward = registry.create("reward", block, device=_device(start["device"]))
        self.reward = reward
        return as_text(describe(block.use, reward)).encode()

    def _answer(self, path: str, body: bytes) -> bytes:
        """Handle a request to the loaded reward and return the payload."""
        from dgpo_core.training.scores import check_scores
        from dgpo_remote.answering import as_text, checked, scored
        from dgpo_remote.messages.blobs import Blob
        from dgpo_remote.messages.prompts import prompts_of
        from dgpo_remote.messages.scores import example_blob, read_score_request, score_answer
        from dgpo_schemas.service import CheckRequest

        assert self.reward is not None
        match path:
            case "/v1/check":
                prompts = prompts_of(CheckRequest.model_validate_json(body).prompts)
                with self.process_state.around("the reward, when it checked the prompts,"):
                    return as_text(checked(self.reward, prompts)).encode()
            case "/v1/examples":
                return example_blob(self.reward.examples())
            case "/stop":
                self.stopped = True
                self.reward.close()
                return b""
        request = read_score_request(Blob(body))
        scores = scored(self.reward, request.media, request.prompts, request.keys, self.process_state)
        return score_answer(check_scores(scores, len(request.prompts)))


def _adopt_settings(settings: dict[str, Any]) -> None:
    """Copy the run's torch settings: thread count and reduced precision affect the last bits of results."""
    import torch

    if settings["threads"] is not None:
        torch.set_num_threads(settings["threads"])
    torch.backends.cuda.matmul.allow_tf32 = settings["matmul_tf32"]
    torch.backends.cudnn.allow_tf32 = settings["cudnn_tf32"]
    torch.backends.cudnn.benchmark = settings["cudnn_benchmark"]
    torch.backends.cudnn.deterministic = settings["cudnn_deterministic"]
    if settings["deterministic"]:
        torch.use_deterministic_algorithms(True, warn_only=settings["deterministic"] == "warn")


def _device(name: str) -> Any:
    """Return the run's device, or the CPU if this process's CUDA_VISIBLE_DEVICES hides all GPUs. Raises UserError."""
    import torch

    from dgpo_core.errors import UserError

    device = torch.device(name)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"the run uses MPS, but torch {torch.__version__} in the worker does not have it")
    if device.type != "cuda" or torch.cuda.is_available():
        return device
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return torch.device("cpu")
    raise UserError(
        f"the run uses {name}, but torch {torch.__version__} in the worker sees no CUDA device; set "
        'environment: {CUDA_VISIBLE_DEVICES: ""} to score on the CPU'
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
