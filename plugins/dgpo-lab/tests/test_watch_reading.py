"""What `dgpo watch` reads: logs as they grow, the runs below a directory, their states and samples."""

from __future__ import annotations

import fcntl
import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.errors import UserError
from dgpo_core.storage.locking import Lock, holder_alive
from dgpo_lab.watching.answers import changes, listing
from dgpo_lab.watching.discovery import DEEPEST, Watched
from dgpo_lab.watching.samples import evaluations_with_images, media, samples_of
from dgpo_lab.watching.status import PATIENCE, Described, describe, status
from dgpo_lab.watching.tailing import CHUNK, columns, increment, last_records
from tests.doctored import Written
from tests.reported import PROMPTS, write_images, write_run


def line(iteration: int, **more: Any) -> bytes:
    return json.dumps({"iteration": iteration, **more}).encode() + b"\n"


def numbers(records: Any) -> list[int]:
    return [record["iteration"] for record in records]


# -- logs that grow --------------------------------------------------------------------------------------------------


def test_increments_at_random_cuts_give_every_line_once(tmp_path: Path) -> None:
    log, chance = tmp_path / "metrics.jsonl", random.Random(0)
    raw = b"".join(line(i, kl=i / 7, text="x" * chance.randrange(50)) for i in range(1, 400))
    log.touch()
    found: list[int] = []
    cursor, written = "", 0
    while written < len(raw) or not found or found[-1] != 399:
        more = chance.randrange(300)
        with log.open("ab") as handle:
            handle.write(raw[written : written + more])
        written += more
        new = increment(log, cursor, most=chance.choice((256, 1000, CHUNK)))
        assert (new.restarted, new.damaged) == (False, 0)
        found += numbers(new.records)
        cursor = new.cursor
    assert found == list(range(1, 400))


def test_an_incomplete_last_line_waits_for_its_end(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(line(1) + line(2)[:9])
    first = increment(log)
    assert (numbers(first.records), first.more, first.damaged) == ([1], False, 0)
    log.write_bytes(line(1) + line(2))
    second = increment(log, first.cursor)
    assert (numbers(second.records), second.restarted) == ([2], False)
    again = increment(log, second.cursor)
    assert (again.records, again.cursor) == ([], second.cursor)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_log_that_a_resume_cut_is_read_again(tmp_path: Path, replaced: bool) -> None:
    """Also if it is as long again as before when it is next read."""
    log = tmp_path / "timings.jsonl"
    log.write_bytes(b"".join(line(i, seconds=1.5) for i in range(1, 9)))
    before = increment(log)
    cut = b"".join(line(i, seconds=1.5 if i < 5 else 2.5) for i in range(1, 11))
    if replaced:
        (tmp_path / "new").write_bytes(cut)
        (tmp_path / "new").rename(log)
    else:
        log.write_bytes(cut)
    after = increment(log, before.cursor)
    assert (after.restarted, numbers(after.records)) == (True, list(range(1, 11)))
    log.write_bytes(cut[:40])
    assert increment(log, after.cursor).restarted
    log.unlink()
    gone = increment(log, after.cursor)
    assert (gone.restarted, gone.records, gone.cursor) == (True, (), "")
    assert not increment(log, gone.cursor).restarted


def test_damaged_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    bad = [b"\xff\xfe", b"[1]", b'{"iteration": NaN}', b'{"iteration": 1e3}', b'{"kl": 1}', b'{"iteration": -1}']
    log.write_bytes(line(1) + b"\n".join(bad) + b"\n\n" + line(2) + b'{"iteration": 1' + b"0" * 400 + b"}\n")
    found = increment(log)
    assert (numbers(found.records), found.damaged) == ([1, 2], len(bad) + 1)
    huge = tmp_path / "huge.jsonl"
    huge.write_bytes(b"x" * 5000 + b"\n" + line(3))
    seen: list[int] = []
    cursor = ""
    for _ in range(8):
        part = increment(huge, cursor, most=1024)
        cursor, seen = part.cursor, seen + numbers(part.records)
    assert seen == [3]


@pytest.mark.parametrize("cursor", ["x", "1.5.0", "0.-1.0", "1." + "9" * 18 + ".0", "../..", "1.2.3.4"])
def test_a_cursor_that_is_none_reads_from_the_start(tmp_path: Path, cursor: str) -> None:
    log = tmp_path / "metrics.jsonl"
    log.write_bytes(line(1) + line(2))
    assert numbers(increment(log, cursor).records) == [1, 2]


def test_columns_have_a_place_for_every_record(tmp_path: Path) -> None:
    records = [
        {"iteration": 1, "reward": {"mean": 0.5, "std": None}, "rewards": {"a.b": {"mean": 1}}, "flag": True},
        {"iteration": 2, "kl": 1e300, "reward": {"mean": float("inf")}, "big": 10**400, "extra": {"x": 0}},
    ]
    assert columns(records) == {
        "iteration": [1, 2], "reward.mean": [0.5, None], "rewards.a.b.mean": [1, None], "extra.x": [None, 0],
    }  # fmt: skip
    many = [{"iteration": 1, **{f"k{i}": i for i in range(1000)}}]
    assert len(columns(many)) == 400


def test_last_records_come_from_the_end(tmp_path: Path) -> None:
    log = tmp_path / "timings.jsonl"
    log.write_bytes(b"".join(line(i) for i in range(1, 101)) + line(101)[:-2])
    assert numbers(last_records(log)) == list(range(1, 101))
    assert numbers(last_records(log, 100)) == [97, 98, 99, 100]  # 17 + 19 + 3 * 18 bytes, and a part of 96
    assert last_records(tmp_path / "none.jsonl") == []


# -- runs ------------------------------------------------------------------------------------------------------------


def test_runs_are_found_below_directories(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for name in ("b", "a", "abl/cells/base/seed-10", "abl/cells/base/seed-9", "a/checkpoints/inner", ".hidden/x"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.yaml").touch()
    deep = runs.joinpath(*"123456", "deep")
    deep.mkdir(parents=True)
    (deep / "config.yaml").touch()
    (runs / "loop").symlink_to(runs)
    (runs / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "run.json").touch()
    watched = Watched([runs])
    assert [run["id"] for run in listing(watched)["runs"]] == [
        "a", "abl/cells/base/seed-9", "abl/cells/base/seed-10", "b", "linked",
    ]  # fmt: skip
    assert not watched.single
    assert len(deep.relative_to(runs).parts) > DEEPEST
    assert watched.run("b") == runs / "b"
    (runs / "new").mkdir()
    (runs / "new" / "config.yaml").touch()
    assert watched.run("new") == runs / "new"
    for name in ("..", ".", "../elsewhere", "/etc", "a/../b", "a/checkpoints/inner", ""):
        assert watched.run(name) is None


def test_one_run_and_several_paths_have_names(tmp_path: Path) -> None:
    one, two = Written(n=3).write(tmp_path / "one"), Written(n=3).write(tmp_path / "runs" / "two")
    assert Watched([one]).runs() == {"one": one}
    assert Watched([one]).single
    assert Watched([one, tmp_path / "runs"]).runs() == {str(one): one, str(two): two}
    with pytest.raises(UserError, match="nowhere: no such run directory, and no directory of runs"):
        Watched([tmp_path / "nowhere"]).runs()
    with pytest.raises(UserError, match=r"config.yaml: is a file, not a run directory"):
        Watched([one / "config.yaml"]).runs()


def test_state_and_speed_of_a_run_in_progress(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 8, 4)
    (run / "outcome.json").unlink(missing_ok=True)
    about = describe(run)
    # Every iteration takes 10 s, and the evaluated ones (4 and 8) 7 s and 0.2 s more.
    each = (8 * 10 + 2 * 7.2) / 8
    now = (run / "metrics.jsonl").stat().st_mtime
    later = Described(about.name, 20, about.samples_per_iteration)
    found = status(run, later, now + 100)
    assert (found.state, found.iteration, found.iterations) == ("running", 8, 20)
    assert found.seconds == pytest.approx(each)
    assert found.eta == pytest.approx(12 * each)
    assert found.rate == pytest.approx(about.samples_per_iteration / 10)  # type: ignore[operator]
    assert found.memory == 3 * 2**30
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found.reward == last["reward"]["mean"]
    assert found.score == pytest.approx(0.74)
    assert found.quiet == pytest.approx(100, abs=5)
    assert status(run, later, now + PATIENCE + 60).state == "stalled"
    assert status(run, about, now).state == "finished"


def test_how_a_run_ended(tmp_path: Path) -> None:
    for number, (outcome, by, state) in enumerate(
        [("finished", "iterations", "finished"), ("finished", None, "paused"), ("failed", None, "failed"),
         ("interrupted", None, "interrupted")]
    ):  # fmt: skip
        run = Written(n=3, outcome=None, config={"run": {"iterations": 9}}).write(tmp_path / f"{number}")
        (run / "outcome.json").write_text(json.dumps({"outcome": outcome, "iteration": 3, "ended_by": by}))
        assert status(run, describe(run)).state == state
        assert status(run, describe(run)).eta is None


def test_the_holder_of_the_lock_is_asked_without_a_lock(tmp_path: Path) -> None:
    run = Written(n=3, outcome=None, config={"run": {"iterations": 9}}).write(tmp_path / "run")
    old = 1_000_000_000
    for file in run.iterdir():
        os.utime(file, (old, old))
    about = describe(run)
    assert (holder_alive(run), status(run, about, old + 5).state) == (None, "running")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (run / ".lock").write_text(f"{ended.pid} {socket.gethostname()}\n")
    assert (holder_alive(run), status(run, about, old + 5).state) == (False, "killed")
    (run / ".lock").write_text(f"{ended.pid} another-machine\n")
    assert (holder_alive(run), status(run, about, old + 5).state) == (None, "running")
    (run / ".lock").write_text(f"{os.getppid()} {socket.gethostname()}\n")
    assert (holder_alive(run), status(run, about, old + 5).state) == (True, "running")
    assert status(run, Described("run", 3, 4), old + 5).state == "running"  # the last evaluation is not over
    watched = Watched([run])
    with (run / ".lock").open("rb") as lock:  # while a process holds it, and while a process takes it
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert listing(watched)["runs"][0]["iteration"] == 3
    Lock.take(run).release()


def test_a_run_without_lines_and_a_broken_one(tmp_path: Path) -> None:
    run = Written(n=3, outcome=None, curves=None).write(tmp_path / "fresh")
    for name in ("metrics.jsonl", "timings.jsonl"):
        (run / name).unlink()
    assert status(run, describe(run)).state == "starting"
    answer = changes(run, {})
    assert answer["metrics"] | {"cursor": ""} == {
        "cursor": "", "restarted": False, "more": False, "damaged": 0, "rows": 0, "columns": {},
    }  # fmt: skip
    (run / "config.yaml").write_text("run: {name: x}\n")
    broken = changes(run, {})["status"]
    assert broken["state"] == "broken"
    assert "config.yaml" in broken["fault"]
    assert "run.iterations: is missing" in broken["fault"]
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be read: .*directory"):
        changes(run, {})


def test_changes_add_up_to_the_logs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", 20, 10)
    lines = (run / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join(lines[:7]))
    first = changes(run, {})
    with (run / "metrics.jsonl").open("ab") as log:
        log.write(b"".join(lines[7:]))
    second = changes(run, {f"{log}.jsonl": first[log]["cursor"] for log in ("metrics", "timings", "evaluations")})
    assert (first["metrics"]["rows"], second["metrics"]["rows"], second["timings"]["rows"]) == (7, 13, 0)
    kl = [json.loads(raw)["kl"] for raw in lines]
    assert first["metrics"]["columns"]["kl"] + second["metrics"]["columns"]["kl"] == kl
    written = [json.loads(raw) for raw in (run / "evaluations.jsonl").read_text().splitlines()]
    shown = first["evaluations"]["records"]
    assert [(e["iteration"], e["reward"], e["value"]) for e in shown] == [
        (e["iteration"], e["reward"], e["value"]) for e in written
    ]
    assert shown[0]["groups"] == {name: group["value"] for name, group in written[0]["groups"].items()}


# -- samples ---------------------------------------------------------------------------------------------------------


def test_samples_with_prompts_and_only_media_are_sent(tmp_path: Path) -> None:
    run = Written(n=3).write(tmp_path / "run")
    assert evaluations_with_images(run) == []
    for iteration in (0, 10):
        write_images(run, iteration)
    (run / "images" / "x").mkdir()
    assert evaluations_with_images(run) == [0, 10]
    assert [(s["index"], s["prompt"], s["video"]) for s in samples_of(run, 10)] == [
        (i, prompt, False) for i, prompt in enumerate(PROMPTS)
    ]
    images = run / "images" / "000010"
    assert media(run, 10, 0, "png") == (images / "00.png").read_bytes()
    for asked in ((10, 0, "mp4"), (10, 99, "png"), (11, 0, "png"), (10, 0, "json"), (10, 0, "../png")):
        assert media(run, *asked) is None
    (images / "01.png").write_text("not an image")
    assert media(run, 10, 1, "png") is None
    (tmp_path / "secret.png").write_bytes((images / "00.png").read_bytes())
    (images / "02.png").unlink()
    (images / "02.png").symlink_to(tmp_path / "secret.png")
    assert media(run, 10, 2, "png") is None
    (images / "prompts.json").write_text("{")
    assert samples_of(run, 10)[0]["prompt"] == ""
    assert samples_of(run, 11) == []
