"""Measuring other loops beside ours: counting passes, taking turns, intervals, and what the command line refuses."""

from __future__ import annotations

import math
import multiprocessing
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import record
from benchmarks.__main__ import main
from benchmarks.page import write_page
from benchmarks.parts import Numbered
from benchmarks.peers import comparison, ours, ours_merged, turns
from benchmarks.peers.command import _revision, lines
from benchmarks.peers.comparison import Comparison, Ratio, compare, median_interval
from benchmarks.peers.pace import Enough, Pace
from benchmarks.peers.stand_ins import Nothing, stand_in
from benchmarks.peers.turns import OURS, Side, take_turns
from benchmarks.peers.work import WORKS, Work, make_checkpoint
from dgpo_core.errors import UserError
from dgpo_schemas.run import RunConfig
from tests.benchmarks.peer_sides import Network, drive

SMALL = Work("small", layers=2, width=16, pixels=32, groups=2, group_size=2, text_tokens=4, steps=3, times=2)


class Line:
    """The other end of a connection: lets a loop do so many iterations, and keeps what it reports."""

    def __init__(self, iterations: int) -> None:
        self.left, self.told = iterations, list[dict[str, Any]]()

    def send(self, message: dict[str, Any]) -> None:
        self.told.append(message)

    def recv(self) -> str:
        self.left -= 1
        return "go" if self.left >= 0 else "enough"


def test_a_pace_counts_passes_by_kind_and_measures_between_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.0, 18.0])  # start, first pass in training mode, end
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    pace, network = Pace(line := Line(1)), Network()  # type: ignore[arg-type]
    pace.watch(network)
    pace.iteration()
    x, text = torch.zeros(4, 1, 2, 2), torch.zeros(4, 3, 8)
    network.eval()
    with torch.no_grad():
        network(hidden_states=x, encoder_hidden_states=text)
    network.train()
    with torch.no_grad():
        network(hidden_states=x[:2], encoder_hidden_states=text[:2])
    network(hidden_states=x[:3], encoder_hidden_states=text[:3])
    with pytest.raises(Enough):
        pace.iteration()
    assert line.told == [
        {"ready": True},
        {
            "seconds": 8.0, "rollout": 3.0, "passes": {"rollout": 1, "fixed": 1, "gradient": 1},
            "rows": {"rollout": 4, "fixed": 2, "gradient": 3}, "inputs": ["float32 1x2x2, 3 text tokens"],
            "weights": "float32, 1 trained",
        },
    ]  # fmt: skip


@pytest.mark.parametrize("side", [ours, ours_merged])
def test_our_sides_make_the_passes_of_the_work(side: Any, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(SMALL, tmp_path / "checkpoint")
    line = Line(2)
    with pytest.raises(Enough):
        side.drive(None, SMALL, checkpoint, tmp_path, Pace(line), torch.device("cpu"))  # type: ignore[arg-type]
    for told in line.told[1:]:
        assert told["passes"]["rollout"] == SMALL.groups * SMALL.steps
        assert told["rows"]["rollout"] == 2 * SMALL.groups * SMALL.steps * SMALL.group_size  # 2: with guidance
        assert told["passes"]["gradient"] == SMALL.groups * SMALL.times
        assert told["passes"]["fixed"] <= 2 * SMALL.groups * SMALL.times  # of the reference and of the old policy
        assert told["inputs"] == [f"float32 4x8x8, {SMALL.clip_tokens + SMALL.text_tokens} text tokens"]
        assert 0 < told["rollout"] < told["seconds"]


def test_one_of_our_sides_merges_the_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def stop(config: RunConfig, *_: Any, **__: Any) -> None:
        made.append(config.rollout.merge_adapter)
        raise Enough

    monkeypatch.setattr(ours, "Trainer", stop)
    for side in (ours, ours_merged):
        with pytest.raises(Enough):
            side.drive(None, SMALL, tmp_path, tmp_path, Pace(Line(0)), torch.device("cpu"))  # type: ignore[arg-type]
    assert made == [False, True]


def test_all_sides_draw_the_same_prompts() -> None:
    assert [prompt.text for prompt in Numbered(None).prompts("train")] == list(SMALL.prompts)


def test_an_interval_of_the_median_covers_it_whatever_the_distribution() -> None:
    """Against the sum of the binomial terms, and tabulated ranks (David and Nagaraja, Order Statistics, 7.1)."""
    for n, k in {5: 1, 6: 1, 8: 1, 9: 2, 12: 3, 15: 4, 21: 6}.items():
        values = [float(value) for value in range(n)]
        found = median_interval(values[::-1])
        assert (found.low, found.high) == (k - 1, n - k)
        assert found.median == (n - 1) / 2
        assert found.level == pytest.approx(sum(math.comb(n, i) for i in range(k, n - k + 1)) / 2**n)
        assert (found.level >= 0.95) == (n >= 6)
    assert median_interval([3.0]) == Ratio(3.0, 3.0, 3.0, 0.0)


@pytest.fixture
def sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops that run anywhere in place of the real ones."""
    made = {key: Side(side.name, "tests.benchmarks.peer_sides") for key, side in turns.SIDES.items()}
    for module in (turns, comparison):
        monkeypatch.setattr(module, "SIDES", made)
    monkeypatch.setattr(turns, "make_checkpoint", lambda work, directory: directory)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sides in threads of this process in place of processes of their own, which take seconds to start."""

    def run(module: str, path: Path | None, work: Work, checkpoint: Path, log: Path, connection: Any) -> None:
        log.touch()
        log.with_suffix("").mkdir()
        with suppress(Enough):
            drive(path, work, checkpoint, log.with_suffix(""), Pace(connection), torch.device("cpu"))

    def pipe() -> tuple[Any, Any]:
        ours, theirs = multiprocessing.Pipe()
        return ours, SimpleNamespace(send=theirs.send, recv=theirs.recv, close=lambda: None)  # it stays in this process

    monkeypatch.setattr(turns, "run_side", run)
    context = SimpleNamespace(Pipe=pipe, Process=Thread)
    monkeypatch.setattr(turns, "multiprocessing", SimpleNamespace(get_context=lambda kind: context))


@pytest.mark.usefixtures("sides", "threads")
def test_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    iterate = turns._Process.iterate

    def noted(self: Any) -> dict[str, Any]:
        order.append(self.key)
        return iterate(self)

    monkeypatch.setattr(turns._Process, "iterate", noted)
    found = take_turns(SMALL, {OURS: None, "authors": Path("x")}, 2)
    assert order == [OURS, "authors", OURS, "authors", "authors", OURS]
    assert [len(rows) for rows in found.values()] == [2, 2]
    assert found["authors"][0]["passes"] == {"rollout": 3, "fixed": 1, "gradient": 1}


@pytest.mark.usefixtures("sides")
def test_a_side_that_fails_is_named_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^the authors' script does not run here: ValueError: no more$"):
        take_turns(SMALL, {"authors": Path("fails")}, 1)
    assert "raise ValueError" in capsys.readouterr().err


@pytest.mark.usefixtures("sides", "threads")
def test_other_work_is_no_comparison() -> None:
    with pytest.raises(UserError, match=r"Flow-Factory does other work than dgpo: .* 5 text tokens.*ours:.* 3 text"):
        compare(SMALL, {"flow-factory": Path("other")}, 1)


def test_stand_ins_are_for_what_is_missing() -> None:
    assert stand_in(["json", "torch", "no_such_library", "no_such_library.part"]) == [
        "no_such_library", "no_such_library.part",
    ]  # fmt: skip
    import no_such_library.part as made  # type: ignore[import-not-found]

    assert isinstance(made.anything(1).of_it(2), Nothing)
    assert torch.tensor(1) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "there is nothing to compare with; give --authors PATH, --flow-factory PATH, or both"),
        (["--authors", "nowhere"], "--authors: there is no directory nowhere; give a copy of"),
        (["--flow-factory", "."], "--flow-factory: . is no copy of github.com/X-GenGroup/Flow-Factory: it has no src/"),
    ],
)
def test_paths_that_do_not_do(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmarks", "peers", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def test_the_revision_is_of_the_copy_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a repository that a copy without one of its own lies in."""
    whole, copy = tmp_path / "whole", tmp_path / "whole" / "copy"
    copy.mkdir(parents=True)

    def git(*words: str) -> str:
        names = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *names, *words], cwd=whole, capture_output=True, text=True, check=True).stdout

    git("init", "--quiet")
    assert _revision(whole) is None, "no commit yet"
    git("commit", "--quiet", "--allow-empty", "-m", "first")
    assert _revision(whole) == git("rev-parse", "HEAD")[:10]
    assert _revision(copy) is None
    (tmp_path / "link").symlink_to(whole)
    assert _revision(tmp_path / "link") == _revision(whole)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _revision(whole) is None, "without git"


def test_the_page_has_what_was_compared(tmp_path: Path) -> None:
    ratio = Ratio(0.8, 0.7, 0.9, 0.96)
    found = Comparison(
        work=WORKS["overhead-bound"], turns=21, seconds={OURS: 2.0, "authors": 2.5},
        rollout={OURS: 1.0, "authors": 1.2},
        passes={key: {"rollout": 40, "fixed": 32, "gradient": 16} for key in (OURS, "authors")},
        rows={}, inputs={},
        ratios={OURS: {"authors": dict.fromkeys(("iteration", "rollout", "optimize"), ratio)}},
    )  # fmt: skip
    assert "dgpo / the authors' script: iteration 0.800 [0.700, 0.900]" in "\n".join(lines(found))
    path = tmp_path / "performance" / "record.json"
    kept = record.save(path, "peers", {"revisions": {"authors": "0123456789"}, "works": {"overhead-bound": found}})
    text = write_page(kept, tmp_path).read_text(encoding="utf-8")
    assert "| overhead-bound, 21 turns | dgpo | 2.00 | 40, 32, 16 |" in text
    assert "|  | the authors' script | 2.50 | 40, 32, 16 |" in text
    assert "| overhead-bound | dgpo / the authors' script | 0.80 [0.70, 0.90] |" in text
    assert "Revision 0123456789." in text
    assert "Not recorded yet: `python -m benchmarks peers" in write_page({}, tmp_path).read_text(encoding="utf-8")
