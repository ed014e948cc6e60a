"""A test plugin for workers and servers, rewards with each transport, and servers in this process."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

import dgpo_core.plugins.registry as registry_module
from dgpo_cli.main import main
from dgpo_core.builtin import plugin as builtin
from dgpo_core.contracts import AnyReward
from dgpo_core.plugins.registry import Registry
from dgpo_core.rewards import place
from dgpo_core.types import Prompt
from dgpo_kit.toy import plugin as toy
from dgpo_remote import plugin as remote
from dgpo_remote.server.server import Server, bind, load
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.serve import ServeConfig

NAME = "dgpo_placement_parts"
CPU = torch.device("cpu")


def path_with(directory: Path) -> str:
    """PYTHONPATH with `directory` first."""
    return os.pathsep.join(filter(None, (str(directory), os.environ.get("PYTHONPATH"))))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Use one thread: it is faster for small tensors, and several tests may run in parallel."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the plugin and the toy's components, as after `pip install --target`."""
    directory = tmp_path_factory.mktemp("installed")
    shutil.copy(Path(__file__).with_name("parts.py"), directory / f"{NAME}.py")
    metadata = directory / f"{NAME}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1.0\n")
    entry_points = f"[dgpo]\nparts = {NAME}\ntoy = dgpo_kit.toy:plugin\n"
    (metadata / "entry_points.txt").write_text(entry_points)
    return directory


@pytest.fixture(scope="session")
def python_path(installed: Path) -> str:
    """PYTHONPATH with which a process finds the plugin."""
    return path_with(installed)


@pytest.fixture(scope="session")
def parts(installed: Path) -> ModuleType:
    """The plugin's module, in this process."""
    spec = importlib.util.spec_from_file_location(NAME, installed / f"{NAME}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def rewards(parts: ModuleType) -> Registry:
    """A registry with the plugin."""
    registry = Registry(discover=False)
    registry.register(builtin, distribution="dgpo")
    registry.register(parts, distribution=NAME)
    registry.register(toy, distribution="toy")
    registry.register(remote, distribution="dgpo-remote")
    return registry


Make = Callable[..., AnyReward]


@pytest.fixture(scope="module")
def make(rewards: Registry, installed: Path) -> Iterator[Make]:
    """`make("conv", worker={...})`: a reward with a transport, closed at the end of the module."""
    made: list[AnyReward] = []

    def make_reward(use: str, *, where: str | None = "rewards.0", **block: Any) -> AnyReward:
        if block.get("worker") is not None:
            environment = {"PYTHONPATH": path_with(installed)} | block["worker"].get("environment", {})
            block["worker"] = block["worker"] | {"environment": environment}
        made.append(place(RewardBlock(use=use, **block), rewards, device=CPU, where=where))
        return made[-1]

    yield make_reward
    for reward in made:
        if reward.is_remote:
            reward.close()


@pytest.fixture(scope="session")
def samples() -> Callable[..., tuple[Tensor, list[Prompt]]]:
    """`samples(4, 3, 8, 8)`: media [4, 3, 8, 8] in [0, 1] and their prompts."""

    def make_samples(count: int, *shape: int, seed: int = 0) -> tuple[Tensor, list[Prompt]]:
        media = torch.rand(count, *(shape or (3, 24, 20)), generator=torch.Generator().manual_seed(seed))
        return media, [Prompt(f"image {i}" * (i + 1), {"tag": "ab"[i % 2], "number": i / 3}) for i in range(count)]

    return make_samples


class Running:
    """A server in a thread of this process."""

    def __init__(self, config: ServeConfig, registry: Registry, token: str | None = None) -> None:
        self.lines: list[str] = []
        listening = bind(config.host, config.port)
        self.server = Server(config, load(config, registry, CPU), token, listening, self.lines.append)
        self.url = self.server.url
        self.service = self.server.service
        self.batcher = self.server.batcher
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()

    def wait_until_ready(self) -> None:
        """Wait until the reward is loaded."""
        waited = threading.Event()
        for _ in range(1000):
            if self.batcher.reward is not None or self.batcher.failure is not None:
                return
            waited.wait(0.01)
        raise AssertionError("the server did not become ready")

    def end(self) -> None:
        """Drain and join."""
        self.server.drain()
        self.thread.join(20)
        assert not self.thread.is_alive()


Serve = Callable[..., Running]


@contextmanager
def servers(registry: Registry) -> Iterator[Serve]:
    made: list[Running] = []

    def serve(use: str = "conv", *, token: str | None = None, ready: bool = True, **changes: Any) -> Running:
        data = {"reward": {"use": use}, "port": 0, "device": "cpu"} | changes
        made.append(Running(ServeConfig.model_validate(data), registry, token))
        if ready:
            made[-1].wait_until_ready()
        return made[-1]

    try:
        yield serve
    finally:
        for running in made:
            running.end()


@pytest.fixture
def serve(rewards: Registry) -> Iterator[Serve]:
    """`serve("conv", queue=2)`: a server in this process until the test ends."""
    with servers(rewards) as made:
        yield made


@pytest.fixture(scope="module")
def serve_all_along(rewards: Registry) -> Iterator[Serve]:
    """The same until the module ends."""
    with servers(rewards) as made:
        yield made


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that returns an unused port."""

    def find() -> int:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port: int = held.getsockname()[1]
            return port

    return find


@pytest.fixture
def tidy() -> Iterator[None]:
    """Assert that the test leaves no file descriptor, thread or process behind."""
    this, threads = psutil.Process(), set(threading.enumerate())  # one of them may be about to end
    before = this.num_fds(), {c.pid for c in this.children()}
    yield
    assert (this.num_fds(), {c.pid for c in this.children()}) == before
    assert set(threading.enumerate()) <= threads


@dataclass(frozen=True)
class Outcome:
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def dgpo(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`dgpo("serve", path)`, in this process, with the toy's components."""
    known = Registry(discover=False)
    for name, plugin in (("dgpo", builtin), ("toy", toy), ("dgpo-remote", remote)):
        known.register(plugin, distribution=name)
    monkeypatch.setattr(registry_module, "get_registry", lambda: known)

    def run(*arguments: object) -> Outcome:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert isinstance(caught.value.code, int)
        return Outcome(caught.value.code, captured.out, captured.err)

    return run


@pytest.fixture
def command(installed: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`command("serve", file)`: `dgpo` in a separate process, with its stderr as a pipe."""
    made: list[subprocess.Popen[str]] = []

    def start(*arguments: object, **environment: str) -> subprocess.Popen[str]:
        variables = os.environ | {"PYTHONPATH": path_with(installed), "PYTHONUNBUFFERED": "1"} | environment
        line = [sys.executable, "-m", "dgpo_cli", *map(str, arguments)]
        made.append(subprocess.Popen(line, stderr=subprocess.PIPE, text=True, env=variables))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()
