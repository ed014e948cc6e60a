"""`dgpo train`: what it does, what it says in a log and on a terminal, and how it ends."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from dgpo_cli.console import RichProgress
from dgpo_kit.toy import BrightnessReward, ToyBackbone
from dgpo_schemas.metrics import MetricsRecord, RewardStatistics, TimingRecord, VerbTiming

Run = Callable[..., Any]
Write = Callable[..., Path]

TOY = Path("runs/toy")
VERBS = r"roll out \S+s  score \S+s  weigh \S+s  optimise \S+s"
LINE = rf"\[(\d)/4\] reward (\S+) ± (\S+)  kl (\S+)  σ\(S\) (\S+)  {VERBS}  left \S+s"


def logs(name: str = "metrics.jsonl", run: Path = TOY) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / name).read_text().splitlines()]


def scores() -> list[dict[str, Any]]:
    """Records of evaluations, without those of the media's statistics."""
    return [record for record in logs("evaluations.jsonl") if record["role"] != "statistic"]


def media(iteration: int, names: Sequence[str] = ("saturation", "edge_density", "dark_pixels")) -> str:
    """The line on the media of an evaluation."""
    records = [r for r in logs("evaluations.jsonl") if (r["iteration"], r["role"]) == (iteration, "statistic")]
    found = {record["reward"]: record["value"] for record in records}
    assert list(found) == list(names)
    return "  media: " + ", ".join(f"{name.replace('_', ' ')} {found[name]:.3f}" for name in names)


def tree(directory: Path) -> dict[str, bytes]:
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


def result(run: Path = TOY) -> dict[str, bytes]:
    """What a run computed: logs without clocks, and the last weights and optimiser state."""
    kept = ("metrics.jsonl", "evaluations.jsonl")
    newest = max((run / "checkpoints").iterdir())
    return {name: (run / name).read_bytes() for name in kept} | {
        path.name: path.read_bytes() for path in newest.glob("*.safetensors")
    }


@pytest.fixture
def reference(dgpo: Run, write_run: Write) -> dict[str, bytes]:
    """The result of the same run, never stopped."""
    assert dgpo("train", write_run(), "--quiet", "--set", "run.name=reference").code == 0
    return result(Path("runs/reference"))


# -- what it does ----------------------------------------------------------------------------------------------------


def test_a_new_run(dgpo: Run, write_run: Write) -> None:
    done = dgpo("train", write_run())
    assert (done.code, done.out) == (0, "")
    lines = done.err.splitlines()
    assert lines[0] == "training runs/toy for 4 iterations on cpu"
    # Two layers, 37 -> 48 -> 32 with biases: 3392 weights; adapters of rank 4 on both: 660.
    assert lines[1] == "  660 of 4,052 parameters, 6 prompts to train on, 4 held out"
    assert lines[-2].startswith("finished in ")
    assert lines[-1] == "look at it: dgpo report runs/toy"
    found = [match for line in lines if (match := re.fullmatch(LINE, line))]
    assert len(found) == 4
    for match, metrics in zip(found, logs(), strict=True):
        iteration, mean, std, kl, sigmoid = match.groups()
        assert int(iteration) == metrics["iteration"]
        assert float(mean) == pytest.approx(metrics["reward"]["mean"], abs=6e-4)
        assert float(std) == pytest.approx(metrics["reward"]["std"], abs=6e-4)
        assert float(kl) == pytest.approx(metrics["kl"], abs=6e-5)
        assert float(sigmoid) == pytest.approx(metrics["sigmoid"], abs=6e-3)
    evaluations = [line for line in lines if line.startswith(("  evaluation ", "  media: "))]
    assert evaluations == [
        line
        for e in scores()
        for line in (
            f"  evaluation after iteration {e['iteration']}: brightness {e['value']:.3f} "
            f"[{e['low']:.3f}, {e['high']:.3f}] over 4 prompts",
            media(e["iteration"]),
        )
    ]
    assert [e["iteration"] for e in scores()] == [0, 2, 4]


def test_resume_goes_on_as_if_never_stopped(dgpo: Run, write_run: Write, reference: dict[str, bytes]) -> None:
    file = write_run()
    done = dgpo("train", file, "--max-iterations", 1)
    assert done.code == 0
    assert done.err.splitlines()[-2] == "3 iterations are left; continue with --resume"
    assert [m["iteration"] for m in logs()] == [1]
    done = dgpo("train", file, "--resume", "--max-iterations", 2)
    assert done.err.startswith("resuming after iteration 1 of runs/toy for 4 iterations on cpu\n")
    assert [m["iteration"] for m in logs()] == [1, 2, 3]
    done = dgpo("train", file, "--resume")
    assert done.code == 0
    assert "left; continue" not in done.err
    assert result() == reference


def test_a_finished_run_is_left_as_it_is(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file)
    before = result()
    assert dgpo("train", file, "--resume").code == 0
    assert result() == before


def test_settings_are_changed_and_kept(dgpo: Run, write_run: Write) -> None:
    changes = ["run.name=other", "run.iterations=1", "optimiser.learning_rate=2e-3", "rewards.0.weight=3"]
    arguments = [part for change in changes for part in ("--set", change)]
    assert dgpo("train", write_run(), *arguments).code == 0
    (metrics,) = logs(run=Path("runs/other"))
    assert metrics["learning_rate"] == 2e-3
    assert metrics["reward"]["mean"] == pytest.approx(3 * metrics["rewards"]["brightness"]["mean"])
    saved = yaml.safe_load(Path("runs/other/config.yaml").read_text())
    assert (saved["run"]["name"], saved["rewards"][0]["weight"]) == ("other", 3)
    assert not TOY.exists()


@pytest.mark.parametrize("name", ["3e-4", "0o7", "010"])
def test_a_name_that_looks_like_a_number_stays_a_name(dgpo: Run, write_run: Write, name: str) -> None:
    file = write_run(run={"name": name})
    file.write_text(file.read_text().replace(f"name: {name}\n", f"name: '{name}'\n"))
    assert dgpo("train", file, "--max-iterations", 1).code == 0
    assert dgpo("train", file, "--resume").code == 0
    assert dgpo("evaluate", f"runs/{name}", "--json").code == 0
    assert [m["iteration"] for m in logs(run=Path("runs", name))] == [1, 2, 3, 4]


@pytest.mark.parametrize("trackers", ["[]", "[tensorboard]"])
def test_a_dry_run_writes_nothing(dgpo: Run, write_run: Write, trackers: str) -> None:
    file = write_run()
    before = tree(Path())
    done = dgpo("train", file, "--dry-run", "--set", f"logging.trackers={trackers}")
    assert (done.code, done.err) == (0, "")
    lines = dict(line.partition(": ")[::2] for line in done.out.splitlines())
    assert lines["device"] == "cpu"
    assert lines["trained parameters"] == "660"
    assert lines["latent"] == "(2, 4, 4)"
    rewards = re.fullmatch(r"\{'brightness': \[(\S+), (\S+)\]\}", lines["rewards"])
    assert rewards is not None
    assert all(0 < float(value) < 1 for value in rewards.groups())
    sizes = {"roll-out": "16 samples at once", "scoring": "16 samples at once", "update": "micro-batches of 4"}
    for verb, size in sizes.items():
        assert re.fullmatch(rf"\d+\.\d\d GiB on cpu, {size}", lines[f"peak memory, {verb}"])
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert done.out.endswith("\ndry run passed; nothing was written\n")
    assert tree(Path()) == before
    assert not Path("runs").exists()


def test_a_dry_run_leaves_the_run_alone(dgpo: Run, write_run: Write) -> None:
    file = write_run()
    dgpo("train", file, "--max-iterations", 1)
    before = tree(Path())
    assert dgpo("train", file, "--dry-run").code == 0
    assert tree(Path()) == before


def test_a_dry_run_does_not_pass_when_a_reward_scores_nothing(dgpo: Run, write_run: Write) -> None:
    file = write_run(rewards=[{"use": "brightness", "options": {"fail": "raise"}}])
    done = dgpo("train", file, "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "dry run: reward brightness scored none of 2 samples: brightness: RuntimeError: the lamp is broken\n"
    )
    assert not Path("runs").exists()


@pytest.mark.parametrize("how", [["--quiet"], ["-q"], ["--set", "logging.console=false"]])
def test_quiet(dgpo: Run, write_run: Write, how: list[str]) -> None:
    done = dgpo("train", write_run(), *how)
    assert (done.code, done.out, done.err) == (0, "", "")
    assert len(logs()) == 4


def test_missing_rewards_are_told(dgpo: Run, write_run: Write) -> None:
    dark = {"rewards": [{"use": "brightness", "options": {"fail": "dark"}}], "scoring": {"max_missing": 0.99}}
    file = write_run(**dark, run={"iterations": 1})
    done = dgpo("train", file, "--set", "evaluation.samples_per_prompt=6")
    (metrics,) = logs()
    assert 0 < metrics["missing_rewards"] < 16
    assert f"  missing {metrics['missing_rewards']}\n" in done.err
    first = scores()[0]
    assert 0 < first["missing"] < 24
    assert f"over 4 prompts, {first['missing']} samples missing\n" in done.err
    assert media(0, ("diversity", "saturation", "edge_density", "dark_pixels")) in done.err.splitlines()


def test_warnings_are_lines_without_a_traceback(dgpo: Run, write_run: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in a process of its own
    file = write_run(scoring={"max_missing": 0.25})
    dgpo("train", file, "--max-iterations", 2)
    (TOY / "checkpoints/000002/optimiser.safetensors").unlink()
    score = BrightnessReward.score
    calls = iter(range(99))

    def flickering(self: BrightnessReward, *arguments: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("the lamp flickers")
        return score(self, *arguments)

    monkeypatch.setattr(BrightnessReward, "score", flickering)
    done = dgpo("train", file, "--resume", "--quiet", "--set", "rollout.micro_batch=4")
    assert done.code == 0
    damaged, failed = done.err.splitlines()
    assert damaged == (
        "warning: damaged checkpoint, trying the one before: runs/toy/checkpoints/000002/optimiser.safetensors: missing"
    )
    assert re.fullmatch(
        r"warning: reward failed, 4 samples are missing: brightness: RuntimeError: the lamp flickers "
        rf"\(at {re.escape(__file__)}:\d+\)",
        failed,
    )


# -- how it ends -----------------------------------------------------------------------------------------------------


@pytest.fixture
def at_pass(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something before the n-th forward pass."""

    def arrange(number: int, deed: Callable[[], None]) -> None:
        velocity = ToyBackbone.velocity
        passes = iter(range(1, 10**6))

        def watched(self: ToyBackbone, *arguments: Any) -> Any:
            if next(passes) == number:
                deed()
            return velocity(self, *arguments)

        monkeypatch.setattr(ToyBackbone, "velocity", watched)

    return arrange


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_stops(
    dgpo: Run, write_run: Write, reference: dict[str, bytes], at_pass: Callable[..., None], number: signal.Signals
) -> None:
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    file = write_run()
    at_pass(50, lambda: signal.raise_signal(number))
    done = dgpo("train", file, "--set", "checkpoints.every=4")
    assert (done.code, done.out) == (0, "")
    lines = done.err.splitlines()
    finished = len(logs())
    assert 0 < finished < 4
    assert lines[-3:-1] == [
        "stopping: saving the state; press Ctrl-C again to stop at once without saving",
        f"stopped after iteration {finished}; continue with --resume",
    ]
    assert lines[-1].startswith("interrupted in ")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert dgpo("train", file, "--resume").code == 0
    assert result() == reference


def test_a_second_ctrl_c_stops_at_once(
    dgpo: Run, write_run: Write, reference: dict[str, bytes], at_pass: Callable[..., None]
) -> None:
    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    file = write_run()
    at_pass(50, twice)
    done = dgpo("train", file)
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1].startswith("failed in ")
    assert dgpo("train", file, "--resume").code == 0
    assert result() == reference


def test_a_run_that_gives_up_exits_with_1(dgpo: Run, write_run: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_run(optimiser={"max_skipped": 1})
    dgpo("train", file, "--max-iterations", 1)
    velocity = ToyBackbone.velocity

    def poisoned(self: ToyBackbone, *arguments: Any) -> Any:
        out = velocity(self, *arguments)
        return out * torch.nan if torch.is_grad_enabled() else out

    monkeypatch.setattr(ToyBackbone, "velocity", poisoned)
    done = dgpo("train", file, "--resume")
    assert (done.code, done.out) == (1, "")
    *_, ended, message = done.err.splitlines()
    assert ended.startswith("failed in ")
    assert message.startswith("2 updates in a row had non-finite losses or gradients and were skipped (limit ")
    assert "the state is saved" in message
    assert max((TOY / "checkpoints").iterdir()).name == "000003"


def test_a_mistake_exits_with_2_before_anything_is_said_or_written(dgpo: Run, write_run: Write) -> None:
    done = dgpo("train", write_run(rollout={"resolution": 9}))
    assert (done.code, done.out) == (2, "")
    assert done.err == "rollout.resolution: 9x9 is not possible; the nearest is 8x8\n"
    assert not Path("runs").exists()


@pytest.mark.parametrize("arguments", [[], ["run.yaml", "--max-iterations", "0"], ["run.yaml", "--st", "x=1"]])
def test_usage(dgpo: Run, write_run: Write, arguments: list[str]) -> None:
    write_run()
    done = dgpo("train", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: dgpo train ")
    assert not Path("runs").exists()


# -- on a terminal ---------------------------------------------------------------------------------------------------


class Screen:
    """A terminal that understands what rich sends, and counts the lines that it had to break."""

    def __init__(self, width: int = 80) -> None:
        self.width = width
        self.lines = [""]
        self.erased: list[str] = []
        self.broken: list[str] = []
        self.row = self.column = 0

    def feed(self, text: str) -> Screen:
        for sequence, count, command, character in re.findall(r"(\x1b\[([\d;?]*)([A-Za-z]))|([^\x1b])", text):
            if not sequence:
                self._put(character)
            elif command == "A":
                self.row -= int(count or 1)
                assert self.row >= 0
            elif command == "K":
                assert count == "2", sequence
                self.erased.append(self.lines[self.row])
                self.lines[self.row] = ""
            else:
                assert command in "mhl", sequence  # colours; hiding and showing the cursor
        assert text.count("\x1b") == len(re.findall(r"\x1b\[[\d;?]*[A-Za-z]", text))
        return self

    def _put(self, character: str) -> None:
        if character == "\r":
            self.column = 0
            return
        if character == "\n" or self.column == self.width:
            if character != "\n":
                self.broken.append(self.lines[self.row])
            self.row, self.column = self.row + 1, 0
            self.lines += [""] * (self.row + 1 - len(self.lines))
        if character != "\n":
            line = self.lines[self.row].ljust(self.column)
            self.lines[self.row] = line[: self.column] + character + line[self.column + 1 :]
            self.column += 1

    def shown(self) -> list[str]:
        """Lines that are not empty, from the top."""
        return [line.rstrip() for line in self.lines if line.strip()]


class Terminal(io.StringIO):
    """Standard error of a person."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def on_terminal(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Call a command with a terminal of 80 columns as its standard error: what the terminal is sent."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("TERM", "xterm-256color"), ("COLUMNS", "80"), ("LINES", "24")):
        monkeypatch.setenv(name, value)

    def call(*arguments: object) -> str:
        made = Terminal()
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stderr", made)
            done = dgpo(*arguments)
        assert (done.code, done.out, done.err) == (0, "", "")
        return made.getvalue()

    return call


RICH_LINE = rf"\[\d/4\] reward \S+ ± \S+  {VERBS}"


def test_bars_tables_and_lines_on_a_terminal(on_terminal: Callable[..., str], write_run: Write) -> None:
    screen = Screen().feed(on_terminal("train", write_run()))
    assert screen.broken == []
    lines = screen.shown()
    # What stays: no bar is left over, tables and lines are whole.
    table = [
        "┏━+┳━+┳━+┓", "┃ task ┃ brightness ┃  95 % interval ┃", "┡━+╇━+╇━+┩",
        r"│ even │ +0\.\d{3} │ 0\.\d{3} to 0\.\d{3} │", r"│ odd  │ +0\.\d{3} │ 0\.\d{3} to 0\.\d{3} │",
        "├─+┼─+┼─+┤", r"│ mean │ +0\.\d{3} │ 0\.\d{3} to 0\.\d{3} │", "└─+┴─+┴─+┘",
        r"media: saturation 0\.\d{3}, edge density 0\.\d{3}, dark pixels 0\.\d{3}",
    ]  # fmt: skip
    wanted = [
        "training runs/toy for 4 iterations on cpu",
        "  660 of 4,052 parameters, 6 prompts to train on, 4 held out",
        "evaluations before update 7 are of the policy: the slow EMA has not moved",
        "evaluation after iteration 0, 4 prompts", *table,
        RICH_LINE,
        "evaluation after iteration 2, 4 prompts", *table,
        RICH_LINE, RICH_LINE,
        "evaluation after iteration 4, 4 prompts", *table,
        RICH_LINE,
        r"finished in \S+s",
        "look at it: dgpo report runs/toy",
    ]  # fmt: skip
    assert len(lines) == len(wanted), "\n".join(lines)
    for line, pattern in zip(lines, wanted, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)
    # What was there in between: a bar for the run with the newest reward, and below it one for the verb at work.
    means = [f"reward {record['reward']['mean']:.3f}" for record in logs()]
    runs = [line for line in screen.erased if line.startswith("iteration ")]
    for line in runs:
        finished = re.search(r"━ +(\d)/4 ", line)
        assert finished is not None, line
        assert ("reward" in line) == (finished[1] != "0")
        assert finished[1] == "0" or means[int(finished[1]) - 1] in line
    assert " 4/4 " in runs[-1]
    verbs = [line for line in screen.erased if not line.startswith(("iteration ", " "))]
    assert verbs
    assert all(re.match(r"(roll out|score|optimise|evaluate) +[━╸╺]+ +\d+/\d+ ", line) for line in verbs), verbs


def test_warnings_go_above_the_bars(
    on_terminal: Callable[..., str], write_run: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    handlers = logging.getLogger().handlers.copy()
    score = BrightnessReward.score
    calls = iter(range(99))

    def flickering(self: BrightnessReward, *arguments: Any) -> Any:
        if next(calls) == 1:
            raise RuntimeError("the lamp flickers")
        return score(self, *arguments)

    monkeypatch.setattr(BrightnessReward, "score", flickering)
    trained_only = {"prompts": {"heldout": None}, "evaluation": {"every": 0}}
    file = write_run(rollout={"micro_batch": 4}, scoring={"max_missing": 0.25}, **trained_only)
    lines = Screen(10_000).feed(on_terminal("train", file)).shown()
    (warning,) = [line for line in lines if "flickers" in line]
    assert warning.startswith("warning: reward failed, 4 samples are missing: brightness: RuntimeError: the lamp flic")
    assert lines.index(warning) == 2  # after the two lines of the start
    assert re.fullmatch(r"\[1/4\] reward \S+ ± \S+  .*  missing 4", lines[3])
    assert logging.getLogger().handlers == handlers


def test_a_long_path_stays_in_one_piece(on_terminal: Callable[..., str], write_run: Write) -> None:
    deep = "/".join(f"directory-{i}" for i in range(9))
    sent = on_terminal("train", write_run(run={"output": deep, "iterations": 1}))
    assert f"training {deep}/toy for 1 iterations" in sent
    assert f"dgpo report {deep}/toy\n" in sent


def metrics(iteration: int, missing: int) -> MetricsRecord:
    some = RewardStatistics(mean=-0.123456, std=0.0456789, missing=missing)
    return MetricsRecord(
        iteration=iteration, updates=iteration, reward=some, rewards={"x": some}, zero_variance_groups=0,
        missing_rewards=missing, residual=0.0, sigmoid=0.5, clip_fraction=0.0, dsm=1.0, dsm_reference=1.0, kl=0.0123,
        extra={}, grad_norm=1.0, learning_rate=1e-3, skipped_updates=0, optimised_members=1, skipped_members=0,
        change_norm=1.0, diversity=0.1, statistics={"saturation": 0.2}, t_min=0.3, t_max=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("width", "missing", "kept"),
    [
        (40, 0, ["reward -0.123 ± 0.046"]),
        (60, 7, ["reward -0.123 ± 0.046", "optimise 45.6s", "missing 7"]),
        (80, 0, ["reward -0.123 ± 0.046", "roll out 12m03s", "score 6.5s", "optimise 45.6s"]),
        (80, 7, ["reward -0.123 ± 0.046", "roll out 12m03s", "optimise 45.6s", "missing 7"]),
        (
            140,
            7,
            ["reward -0.123 ± 0.046", "kl 0.0123", "σ(S) 0.50", "roll out 12m03s", "score 6.5s", "weigh 0.1s",
             "optimise 45.6s", "missing 7"],
        ),
    ],
)  # fmt: skip
def test_a_narrow_terminal_keeps_what_matters_most(width: int, missing: int, kept: list[str]) -> None:
    out = io.StringIO()
    progress = RichProgress(Console(file=out, force_terminal=True, width=width, color_system=None))
    progress.iterations = 1000
    spent = {"roll_out": 723.4, "score": 6.54, "wait_for_scores": 1.0, "weigh": 0.1, "optimise": 45.6, "evaluate": 9.0}
    timing = TimingRecord(
        iteration=999,
        seconds=99.0,
        verbs={verb: VerbTiming(seconds=value, samples_per_second=1.0) for verb, value in spent.items()},
        rewards={"x": 6.54},
        peak_memory_bytes=1,
    )
    progress.on_iteration_end(metrics(999, missing), timing)
    line = out.getvalue().rstrip("\n")
    assert line == "[999/1000] " + "  ".join(kept)
    assert len(line) <= width


TYPED = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # what is typed there becomes signals here
from dgpo_core.plugins.registry import get_registry
from dgpo_kit.toy import plugin
get_registry().register(plugin, distribution="toy")
from dgpo_cli.main import main
main(sys.argv[1:])
"""


@pytest.fixture
def typed(write_run: Write) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`dgpo train` on a terminal of 80 columns, with a run that would last very long."""
    file = write_run(run={"iterations": 9999}, evaluation={"every": 9999}, checkpoints={"every": 9999})
    keyboard, screen = os.openpty()
    fcntl.ioctl(screen, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    hidden = ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    process = subprocess.Popen(
        [sys.executable, "-c", TYPED, "train", str(file)],
        stdin=screen, stdout=screen, stderr=screen, start_new_session=True, env=environment | {"TERM": "xterm"},
    )  # fmt: skip
    os.close(screen)
    yield process, keyboard
    process.kill()
    process.wait()
    os.close(keyboard)


def test_ctrl_c_on_a_real_terminal(dgpo: Run, typed: tuple[subprocess.Popen[bytes], int]) -> None:
    process, keyboard = typed
    text, pressed, end = b"", False, time.monotonic() + 60
    while time.monotonic() < end:
        if not select.select([keyboard], [], [], 1)[0]:
            continue
        try:
            part = os.read(keyboard, 65536)
        except OSError:  # the last one has left the terminal
            break
        text += part
        if not pressed and b"[3/9999] " in text:
            os.write(keyboard, b"\x03")
            pressed = True
        if not part:
            break
    assert process.wait(10) == 0
    screen = Screen().feed(text.decode())
    assert screen.broken == []
    lines = screen.shown()
    saved = max((TOY / "checkpoints").iterdir())
    iteration = int(saved.name)
    assert iteration >= 3
    assert lines[0] == "training runs/toy for 9999 iterations on cpu"
    announced = lines.index("stopping: saving the state; press Ctrl-C again to stop at once without saving")
    assert lines[announced + 1 :][-2] == f"stopped after iteration {iteration}; continue with --resume"
    assert lines[-1].startswith("interrupted in ")
    assert len(logs()) == iteration
    done = dgpo("train", "run.yaml", "--resume", "--max-iterations", 1)
    assert done.err.startswith(f"resuming after iteration {iteration} of runs/toy ")
    assert [m["iteration"] for m in logs()] == list(range(1, iteration + 2))
