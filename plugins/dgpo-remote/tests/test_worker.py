"""Rewards in worker processes: crashes do not affect the run, and no score is lost."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

import dgpo_remote.servers as servers
import dgpo_remote.worker.process as process_module
import dgpo_remote.worker.worker_main as worker_main
import dgpo_remote.worker.workers as workers
from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.training.memory import OutOfMemory, in_halves
from dgpo_core.training.reward_calls import Reward, checked_score
from dgpo_core.types import Prompt, Scores
from dgpo_remote.failures import RewardLost, RewardRaised
from dgpo_remote.worker.process import WorkerSpec
from dgpo_remote.worker.workers import WorkerReward
from tests.working import Make, Samples, _impatient, assert_same, here, moody, pid_of


def doing(prompts: list[Prompt], deed: str, **metadata: Any) -> list[Prompt]:
    """The same prompts, except that the third is a command for `moody`."""
    return [*prompts[:2], Prompt(deed, metadata), *prompts[3:]]


# -- the same as a local reward -------------------------------------------------------------------------------------
@pytest.mark.parametrize("shape", [(4, 3, 24, 20), (1, 3, 3, 9), (0, 3, 8, 8), (3, 2, 3, 9, 9), (2, 0, 3, 9, 9)])
def test_scores_are_bit_identical(
    moody: RewardModel, here: RewardModel, samples: Samples, shape: tuple[int, ...]
) -> None:
    media, prompts = samples(*shape)
    assert_same(moody.score(media, prompts), here.score(media, prompts))


def test_media_with_another_memory_format_score_the_same(
    moody: RewardModel, here: RewardModel, samples: Samples
) -> None:
    media, prompts = samples(6, 3, 31, 33)
    permuted = media.contiguous(memory_format=torch.channels_last)
    assert_same(moody.score(permuted, prompts), here.score(permuted, prompts))


def test_it_has_the_attributes_of_its_reward(moody: RewardModel, here: RewardModel) -> None:
    assert moody.range == (float("-inf"), float("inf"))
    assert moody.media == {"image", "video"}
    assert moody.group_by == "tag"
    assert moody.concurrency == 1
    assert moody.provenance() == {"model": "conv-0", "layers": [3, 16]}
    moody.check_prompts([Prompt("good")])
    with pytest.raises(UserError, match=r"^the prompt 'bad' is a bad one$"):
        moody.check_prompts([Prompt("good"), Prompt("bad")])
    with pytest.raises(UserError, match=r"^rewards.0: ZeroDivisionError: it is all too much$"):
        moody.check_prompts([Prompt("break")])
    for one, other in zip(moody.examples(), here.examples(), strict=True):
        assert (one.name, one.prompt, one.good) == (other.name, other.prompt, other.good)
        assert torch.equal(one.media, other.media)


def test_a_missing_sample_is_missing(moody: RewardModel, samples: Samples) -> None:
    media, prompts = samples(3)
    prompts = doing(prompts, "x", missing=True)
    assert moody.score(media, prompts).missing.tolist() == [False, False, True]


def test_the_device_is_the_run_s_unless_the_worker_sees_other_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def orders(device: str, **environment: str) -> dict[str, Any]:
        spec = WorkerSpec("rewards.0", sys.executable, environment, "conv", {}, torch.device(device), 1.0, 1.0)
        return spec.orders()

    assert orders("cuda:3")["device"] == "cuda:3"
    assert orders("cuda:3", CUDA_VISIBLE_DEVICES="5")["device"] == "cuda"
    assert orders("cpu")["settings"]["threads"] == torch.get_num_threads()
    assert orders("cpu", OMP_NUM_THREADS="4")["settings"]["threads"] is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert worker_main._device("cuda:3") == torch.device("cuda:3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert worker_main._device("cpu") == torch.device("cpu")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(UserError, match=r"the run uses cuda:3, but torch .* in the worker sees no CUDA device"):
        worker_main._device("cuda:3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert worker_main._device("cuda") == torch.device("cpu")


def test_launcher_variables_are_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("MASTER_ADDR", "here")
    spec = WorkerSpec("rewards.0", sys.executable, {"A": "b"}, "conv", {}, torch.device("cpu"), 1.0, 1.0)
    assert not {"RANK", "MASTER_ADDR"} & spec.variables.keys()
    assert spec.variables["A"] == "b"
    assert "PATH" in spec.variables


def test_python_paths_are_not_inherited_by_other_interpreters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/run")
    monkeypatch.setenv("PYTHONHOME", "/of/the/run")

    def variables(python: str, **environment: str) -> set[str]:
        spec = WorkerSpec("rewards.0", python, environment, "conv", {}, torch.device("cpu"), 1.0, 1.0)
        return {name for name in ("PYTHONPATH", "PYTHONHOME") if name in spec.variables}

    here, other = Path(sys.executable), tmp_path / "bin" / "python"
    other.parent.mkdir()
    other.symlink_to(here)  # as in a virtual environment of its own
    link = tmp_path / "link"
    link.symlink_to(here.parent)
    assert variables(sys.executable) == variables(str(link / here.name)) == {"PYTHONPATH", "PYTHONHOME"}
    assert variables(str(other)) == variables("/nowhere/python") == set()
    assert variables(str(other), PYTHONPATH="/its/own") == {"PYTHONPATH"}
    monkeypatch.setenv("PATH", str(here.parent))
    assert variables(here.name) == {"PYTHONPATH", "PYTHONHOME"}
    monkeypatch.setenv("PATH", str(other.parent))
    assert variables("python") == set()


# -- crashes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("deed", "reported"),
    [
        ("crash", "was .* by SIGSEGV"),
        ("hang", r"did not respond within 0.3 s \(worker.timeout\) and was killed"),
    ],
)
def test_a_lost_batch_is_scored_again(
    moody: RewardModel, here: RewardModel, samples: Samples, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    deed: str, reported: str,
) -> None:  # fmt: skip
    media, prompts = samples(4)
    before = pid_of(moody)
    mark = str(tmp_path / "done")
    if deed == "hang":
        process = moody._servers.all[0].end.process  # type: ignore[attr-defined]
        process.spec = replace(process.spec, timeout=0.3)
    scores = moody.score(media, doing(prompts, deed, once=mark))
    assert_same(scores, here.score(media, doing(prompts, deed, once=mark)))
    assert pid_of(moody) != before
    assert not psutil.pid_exists(before)
    caplog.set_level(logging.WARNING)
    (record,) = [r for r in caplog.records if r.name == servers.__name__]
    assert re.search(f"^rewards.0: the worker {reported}.*; restarting it$", record.getMessage())


def test_a_worker_that_sends_invalid_responses_is_restarted(
    moody: RewardModel, here: RewardModel, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    media, prompts = samples(4)
    moody.score(media, prompts)
    before, ask = pid_of(moody), process_module.WorkerProcess.ask

    def asked(process: process_module.WorkerProcess, path: str, body: bytes) -> bytes:
        answer = ask(process, path, body)
        return b"nonsense" if process.pid == before else answer

    monkeypatch.setattr(process_module.WorkerProcess, "ask", asked)
    assert_same(moody.score(media, prompts), here.score(media, prompts))
    assert pid_of(moody) != before
    assert not psutil.pid_exists(before)


def test_a_batch_that_is_always_lost_raises_an_error(moody: RewardModel, here: RewardModel, samples: Samples) -> None:
    media, prompts = samples(4)
    with pytest.raises(RewardLost, match=r"the worker was lost 2 times with this batch; the last one .* SIGKILL"):
        moody.score(media, doing(prompts, "kill"))
    assert_same(moody.score(media, prompts), here.score(media, prompts))


def test_the_reward_s_own_error_is_not_retried(
    moody: RewardModel, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    media, prompts = samples(3)
    before = pid_of(moody)
    with pytest.raises(RewardRaised, match=r"^RuntimeError: the lamp is broken$"):
        moody.score(media, doing(prompts, "raise"))
    with pytest.raises(RewardRaised, match=r"^SystemExit: no license$"):
        moody.score(media, doing(prompts, "leave"))
    with pytest.raises(RewardRaised, match=r"^Exited: os\._exit\(3\)"):
        moody.score(media, doing(prompts, "exit"))
    with pytest.raises(RewardRaised, match=r"^ValueError: returned values \(1,\) and missing \(1,\) for 3 samples$"):
        moody.score(media, doing(prompts, "short"))
    with pytest.raises(RewardLost, match=r"got torch.float64"):
        moody.score(media.double(), prompts)
    assert pid_of(moody) == before
    assert caplog.records == []


def test_output_of_the_reward_is_logged(
    moody: RewardModel, here: RewardModel, samples: Samples, caplog: pytest.LogCaptureFixture
) -> None:
    media, prompts = samples(3)
    caplog.set_level(logging.DEBUG, logger=process_module.__name__)
    before = pid_of(moody)
    assert moody.score(media, doing(prompts, "print")).missing.tolist() == [False] * 3
    assert_same(moody.score(media, prompts), here.score(media, prompts))
    assert pid_of(moody) == before
    for _ in range(2000):
        if "from a child" in caplog.text:
            break
        time.sleep(0.01)
    assert "from a child" in caplog.text
    assert "rubbish" in caplog.text


def test_out_of_memory_halves_the_batch(moody: RewardModel, samples: Samples) -> None:
    media, prompts = samples(7)
    before = pid_of(moody)
    starving = [Prompt("starve", dict(p.metadata)) for p in prompts]
    with pytest.raises(OutOfMemory, match="OutOfMemoryError: 7 are too many"):
        moody.score(media, starving)
    scores = checked_score(Reward("moody", 1.0, moody), media, starving)
    one_by_one = [moody.score(media[i : i + 1], starving[i : i + 1]) for i in range(7)]
    torch.testing.assert_close(scores.values, torch.cat([s.values for s in one_by_one]))
    assert [d["seen"] for d in scores.diagnostics] == [dict(p.metadata) for p in prompts]
    assert pid_of(moody) == before


@pytest.mark.parametrize("deed", ["leave", "raise", "odd", "mute", "interrupt", "generator", "short", "cycle", "large"])
def test_errors_and_diagnostics_equal_those_of_a_local_reward(
    make: Make, moody: RewardModel, samples: Samples, deed: str
) -> None:
    media, _ = samples(2)
    here = make("moody")
    found = [checked_score(Reward("moody", 1.0, model), media, [Prompt(deed)] * 2) for model in (here, moody)]
    assert found[0].missing.tolist() == found[1].missing.tolist()
    assert found[0].diagnostics == found[1].diagnostics
    assert found[0].diagnostics[0].get("reason") or "left out" in str(found[0].diagnostics[0])


def test_out_of_memory_with_one_sample_is_an_error(samples: Samples) -> None:
    def starve(media: Tensor, prompts: Any) -> Scores:
        raise MemoryError

    with pytest.raises(OutOfMemory, match="out of memory, with 1 sample"):
        in_halves(starve, *samples(3))
    with pytest.raises(ZeroDivisionError):
        in_halves(lambda media, prompts: 1 // 0, *samples(3))  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1])
def test_the_worker_leaves_stopping_to_the_run(moody: RewardModel, samples: Samples, number: int) -> None:
    before = pid_of(moody)
    os.kill(before, number)
    assert os.getpgid(before) == before  # its own process group, which the terminal does not signal
    assert moody.score(*samples(2)).missing.tolist() == [False, False]
    assert pid_of(moody) == before


# -- several workers, and shutdown ----------------------------------------------------------------------------------
@pytest.mark.usefixtures("tidy")
def test_two_workers_share_the_work_and_stop_at_close(make: Make, here: RewardModel, samples: Samples) -> None:
    pair = make("moody", worker={"count": 2})
    assert isinstance(pair, WorkerReward)
    assert pair.concurrency == 2
    batches = [samples(3, seed=seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda batch: pair.score(*batch), batches))
    for one, batch in zip(scores, batches, strict=True):
        assert_same(one, here.score(*batch))
    # A worker that is busy at close is killed, and the waiting thread gets an error.
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            pair.score(batches[0][0], doing(batches[0][1], "hang"))
        except RewardLost as error:
            failed.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not any(worker.end.busy.locked() for worker in pair._servers.all):
        time.sleep(0.01)
    pids = [worker.end.process.pid for worker in pair._servers.all if worker.end.process is not None]
    assert len(pids) == 2
    pair.close()
    thread.join(10)
    assert "closed during a request" in str(failed[0])
    assert not any(psutil.pid_exists(pid) for pid in pids)
    pair.close()
    with pytest.raises(RewardLost, match="closed"):
        pair.score(*batches[0])


def test_a_worker_exits_with_its_run(moody: RewardModel, tmp_path: Path) -> None:
    """Even during a request, and with its children."""
    program = f"""
import os, threading, torch
from dgpo_core.rewards import place
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt
from dgpo_remote import plugin
from dgpo_schemas.sections.rewards import RewardBlock
environment = {{"PYTHONPATH": {moody._servers.all[0].end.spec.environment["PYTHONPATH"]!r}}}
block = RewardBlock(use="moody", worker={{"environment": environment}})
registry = Registry(discover=False)
registry.register(plugin, distribution="dgpo-remote")
reward = place(block, registry, device=torch.device("cpu"))
threading.Thread(target=reward.score, args=(torch.zeros(1, 3, 8, 8), [Prompt("hang")]), daemon=True).start()
while not reward._servers.all[0].end.busy.locked():
    pass
print(reward._servers.all[0].end.process.pid, flush=True)
os.kill(os.getpid(), 9)
"""  # type: ignore[attr-defined]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout)
    for _ in range(1000):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.01)
    raise AssertionError("the worker is still running")
