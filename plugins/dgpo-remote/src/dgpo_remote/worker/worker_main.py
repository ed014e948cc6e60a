"""A worker process: `python -m dgpo_remote.worker.worker_main FD PARENT`, started by `process`.

It says which protocol it speaks before it imports anything heavy, loads the reward that it is told, and then answers
one request after the other until the other end of its socket closes. What the reward prints goes where errors go.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from dgpo_core import __version__
from dgpo_core.system.openmp import spin_briefly
from dgpo_remote.worker.channel import Channel
from dgpo_schemas.service import PROTOCOL, WORKERS
from dgpo_schemas.text import error_text

if TYPE_CHECKING:
    from dgpo_core.contracts import AnyReward

__all__ = ["main"]

WATCH = 1.0
"""Seconds between two looks at whether the run still lives."""


def main(arguments: list[str]) -> int:
    """Serve until there is nobody to serve; the exit status."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C belongs to the run, which ends us in its time
    spin_briefly()
    number, parent = int(arguments[0]), int(arguments[1])
    os.set_inheritable(number, False)
    threading.Thread(target=_watch, args=(parent,), name="watch", daemon=True).start()
    channel = Channel(socket.socket(fileno=number))
    channel.send(json.dumps({"protocol": WORKERS, "dgpo": __version__}).encode())
    try:
        asked, start = channel.receive()
        host = Host()
        channel.send(host.safely(lambda: host.load(json.loads(start))), number=asked)
        while not host.stopped:
            asked, request = channel.receive()
            channel.send(host.safely(lambda request=request: host.answer(request)), number=asked)
    except EOFError:
        _end()
    return 0


def _watch(parent: int) -> None:
    """End when the run has ended, even if the reward is at work; closing its socket only tells us between batches."""
    while os.getppid() == parent:
        time.sleep(WATCH)
    _end()


def _end() -> None:
    """At once, with every process that the reward has started."""
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(1)


class Host:
    """The reward, and answers to what is asked of it."""

    def __init__(self) -> None:
        self.reward: AnyReward | None = None
        self.stopped = False

    def safely(self, call: Any) -> bytes:
        """What the call returns, or its error as a message, whatever it is: some libraries exit where others raise,
        and Ctrl-C is none of ours."""
        from dgpo_core.plugins.isolation import no_exit
        from dgpo_core.training.memory import free
        from dgpo_remote.messages import pack

        try:
            with no_exit():
                made: bytes = call()
            return made
        except BaseException as error:
            with contextlib.suppress(BaseException):  # one whose text cannot be had
                traceback.print_exc()
            described = _described(error)
        if described["kind"] == "memory":  # outside of the `except`, which keeps the batch's tensors alive
            free()
        return pack({"protocol": PROTOCOL, "error": described})

    def load(self, start: dict[str, Any]) -> bytes:
        """Build the reward. Returns its description."""
        _adopt_settings(start["settings"])
        from dgpo_core.plugins.registry import get_registry
        from dgpo_core.plugins.surroundings import Guard
        from dgpo_core.system.hub import prepare_hub
        from dgpo_remote.describe import describe
        from dgpo_remote.messages import pack
        from dgpo_schemas.base import UseBlock

        self.guard = Guard()  # as in the run's own process: the scores are the same bits
        block = UseBlock(use=start["use"], options=start["options"])
        registry = get_registry()
        prepare_hub()
        with self.guard.around("the reward, when it was made,"):
            reward: AnyReward = registry.create("reward", block, device=_device(start["device"]))
        self.reward = reward
        return pack(describe(block.use, reward).model_dump(mode="json"))

    def answer(self, data: bytes) -> bytes:
        """One request, one answer."""
        import torch

        from dgpo_core.contracts import GroupReward
        from dgpo_core.training.scores import check_scores
        from dgpo_remote.messages import Blob, example_blob, pack, prompts_of, read_score_request, score_answer
        from dgpo_schemas.service import CheckRequest

        blob = Blob(data)
        assert self.reward is not None
        match blob.header.get("ask"):
            case "check":
                with self.guard.around("the reward, when it checked the prompts,"):
                    self.reward.check_prompts(prompts_of(CheckRequest(prompts=blob.header["prompts"]).prompts))
                return pack({"protocol": PROTOCOL})
            case "examples":
                return example_blob(self.reward.examples())
            case "stop":
                self.stopped = True
                self.reward.close()
                return pack({"protocol": PROTOCOL})
        request = read_score_request(blob)
        media = request.media.to(self.reward.device)
        with self.guard.around("the reward"), torch.no_grad():
            if isinstance(self.reward, GroupReward):
                assert request.keys is not None, "whole groups are sent"
                scores = self.reward.score_group(media, request.prompts[0], request.keys)
            else:
                scores = self.reward.score(media, request.prompts)
            return score_answer(check_scores(scores, len(request.prompts)))


def _described(error: BaseException) -> dict[str, str]:
    """An error as the other side needs it."""
    from dgpo_core.errors import PluginError, UserError
    from dgpo_core.training.memory import is_out_of_memory

    text = error_text(error)
    if is_out_of_memory(error):
        return {"kind": "memory", "message": text}
    if isinstance(error, UserError):
        kind = "plugin" if isinstance(error, PluginError) else "user"
        return {"kind": kind, "message": text.removeprefix(f"{type(error).__name__}: ")}
    return {"kind": "reward", "message": text}


def _adopt_settings(settings: dict[str, Any]) -> None:
    """Compute as the run computes: threads and reduced precision decide about the last bits."""
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
    """The run's device, or the one that the process's own CUDA_VISIBLE_DEVICES leaves. Raises UserError."""
    import torch

    from dgpo_core.errors import UserError

    wanted = torch.device(name)
    if wanted.type != "cuda" or torch.cuda.is_available():
        return wanted
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return torch.device("cpu")
    raise UserError(
        f"the run computes on {name}, but torch {torch.__version__} in the worker sees no CUDA device; set "
        'environment: {CUDA_VISIBLE_DEVICES: ""} to score on the CPU'
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
