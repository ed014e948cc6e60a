"""The comparison finds what differs, down to a bit, and tells nothing of what does not."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.golden import words
from tests.golden.compare import Allowed, Difference, Found, compare
from tests.golden.comparison import learned_nothing, verdict
from tests.golden.expected import ALLOWED
from tests.golden.runs import RUNS, third_party
from tests.golden.sides import Either, Side, check_out, root

RUN = Path("runs/small")


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Path, Path]:
    """What a run writes, twice."""
    run = tmp_path / "before" / RUN
    (run / "checkpoints/000001").mkdir(parents=True)
    weights = {
        "up": torch.arange(6.0).view(2, 3),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "one": torch.tensor(0.0),
    }
    save_file(weights, run / "checkpoints/000001/weights.safetensors", {"rank": "2"})
    lines = [{"iteration": i, "reward": {"mean": 0.1 * i}, "kl": None} for i in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "run.json").write_text(json.dumps({"command": ["dgpo"], "prompts": {"sha256": "ab"}, "sha256": "cd"}))
    (run / "config.yaml").write_text(f"# digest\nbackbone: {{checkpoint: {tmp_path / 'before'}/c}}\n")
    (run / "timings.jsonl").write_text('{"seconds": 1}\n')
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(run / "00.png")
    shutil.copytree(tmp_path / "before", tmp_path / "after")
    return tmp_path / "before", tmp_path / "after"


def said(sides: tuple[Path, Path], *allowed: Allowed) -> str:
    """What is told of the two."""
    before, after = ({str(side): "<side>"} for side in sides)
    return verdict("small", compare(*sides, before, after, ["runs/small", "out/small"]), allowed, set())[1]


def flip(file: Path, byte: int) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1
    file.write_bytes(data)


def rewrite(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_run_is_the_same_as_itself(sides: tuple[Path, Path]) -> None:
    assert said(sides) == "same (6 files, 3 tensors)"


def test_what_reports_of_clocks_and_commands_is_no_result(sides: tuple[Path, Path]) -> None:
    run = sides[1] / RUN
    rewrite(run / "timings.jsonl", "1", "2")
    rewrite(run / "run.json", "dgpo", "other")
    rewrite(run / "config.yaml", str(sides[0]), str(sides[1]))
    rewrite(run / "config.yaml", "digest", "another")
    assert said(sides).startswith("same")


def test_a_flipped_bit_of_a_weight(sides: tuple[Path, Path]) -> None:
    file = sides[1] / RUN / "checkpoints/000001/weights.safetensors"
    before = {name: tensor.clone() for name, tensor in load_file(file).items()}  # the file itself is changed
    flip(file, -1)
    (name,) = [name for name, tensor in load_file(file).items() if not torch.equal(tensor, before[name])]
    differences = said(sides).splitlines()
    assert differences[0] == "different in 1 of 6 files"
    assert f"weights.safetensors: {name}: 1 of {before[name].numel()} differ, at most by " in differences[1]


def test_a_zero_of_another_sign_is_another_weight(sides: tuple[Path, Path]) -> None:
    file = sides[1] / RUN / "checkpoints/000001/weights.safetensors"
    save_file(load_file(file) | {"one": torch.tensor(-0.0)}, file, {"rank": "2"})
    assert "weights.safetensors: one: 1 of 1 differ, at most by 0" in said(sides)


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"new": torch.ones(1)}, "new: is new"),
        ({"up": torch.arange(6.0)}, "up: torch.float32 [2, 3] became torch.float32 [6]"),
        ({"half": torch.ones(3)}, "half: torch.bfloat16 [3] became torch.float32 [3]"),
    ],
)
def test_tensors_of_other_names_shapes_and_types(
    change: dict[str, torch.Tensor], reported: str, sides: tuple[Path, Path]
) -> None:
    file = sides[1] / RUN / "checkpoints/000001/weights.safetensors"
    save_file(load_file(file) | change, file, {"rank": "2"})
    assert f"weights.safetensors: {reported}" in said(sides)


def test_metadata_of_tensors(sides: tuple[Path, Path]) -> None:
    file = sides[1] / RUN / "checkpoints/000001/weights.safetensors"
    save_file(load_file(file), file, {"rank": "3"})
    assert 'weights.safetensors: metadata.rank: "2" became "3"' in said(sides)


def test_tensors_in_another_order(sides: tuple[Path, Path]) -> None:
    """The order of metadata, which safetensors chooses anew each time, does not count; that of tensors does."""
    for numbers, reported in (((0, 1), "same"), ((1, 0), "the same tensors, written in another way")):
        for side, metadata in zip(sides, ({"a": "1", "b": "2"}, {"b": "2", "a": "1"}), strict=True):
            places = [0, 4] if side == sides[0] else [4 * n for n in numbers]
            header = {f"t{i}": {"dtype": "F32", "shape": [1], "data_offsets": [p, p + 4]} for i, p in enumerate(places)}
            text = json.dumps({"__metadata__": metadata} | header).encode()
            values = b"".join(struct.pack("<f", places.index(4 * i)) for i in range(2))
            (side / RUN / "two.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + values)
        assert reported in said(sides)


def test_a_number_of_the_metrics(sides: tuple[Path, Path]) -> None:
    rewrite(sides[1] / RUN / "metrics.jsonl", "0.2}", "0.20000000000000004}")
    assert "metrics.jsonl: 2.reward.mean: 0.2 became 0.20000000000000004, by 2.78e-17" in said(sides)


@pytest.mark.parametrize(
    ("old", "new", "reported"),
    [
        ('"iteration": 2', '"iteration": 2.0', "2.iteration: 2 became 2.0"),
        (', "kl": null}\n{', "}\n{", "1.kl: is missing after; was null"),
        ('"iteration": 1', '"speed": 3, "iteration": 1', "1.speed: is new: 3"),
        ('"iteration": 1, "reward": {"mean": 0.1}', '"reward": {"mean": 0.1}, "iteration": 1', "1: keys in another"),
        ('": 1', '":  1', "the same values, written in another way"),
    ],
)
def test_records_of_other_fields_types_and_looks(old: str, new: str, reported: str, sides: tuple[Path, Path]) -> None:
    rewrite(sides[1] / RUN / "metrics.jsonl", old, new)
    assert f"metrics.jsonl: {reported}" in said(sides)


def test_lost_records(sides: tuple[Path, Path]) -> None:
    file = sides[1] / RUN / "metrics.jsonl"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    assert "metrics.jsonl: has 1 lines and had 2" in said(sides)


def test_facts_of_a_run_and_its_settings(sides: tuple[Path, Path]) -> None:
    rewrite(sides[1] / RUN / "run.json", "ab", "ef")
    rewrite(sides[1] / RUN / "config.yaml", "/c}", "/d}")
    assert 'config.yaml: backbone.checkpoint: "<side>/c" became "' in said(sides)
    assert 'run.json: prompts.sha256: "ab" became "ef"' in said(sides)


def test_a_pixel(sides: tuple[Path, Path]) -> None:
    file = sides[1] / RUN / "00.png"
    pixels = np.asarray(Image.open(file)).copy()
    pixels[1, 2, 0] += 1
    Image.fromarray(pixels).save(file)
    assert "00.png: 1 of 16 pixels differ, at most by 1" in said(sides)


def test_the_same_pixels_in_other_bytes(sides: tuple[Path, Path]) -> None:
    file = sides[1] / RUN / "00.png"
    Image.open(file).copy().save(file, compress_level=0)
    assert "00.png: the same pixels, in other bytes" in said(sides)


def test_a_film_of_other_frames(sides: tuple[Path, Path]) -> None:
    """Small differences are the encoder's own."""
    clips = pytest.importorskip("dgpo_core.media.clips")
    if clips.why_not():
        pytest.skip(clips.why_not())
    frames = np.zeros((5, 64, 64, 3), np.uint8)
    for i in range(5):
        frames[i, :, 8 * i : 8 * i + 16] = 200
    for side, film in zip(sides, (frames, frames[::-1]), strict=True):
        (side / RUN / "00.mp4").write_bytes(clips.encode(film, 5))
    assert "00.mp4: other frames, by " in said(sides)
    (sides[1] / RUN / "00.mp4").write_bytes(clips.encode(frames[:4], 5))
    assert "00.mp4: [5, 256, 256, 3] at 5 a second became [4, 256, 256, 3] at 5" in said(sides)


def test_files_that_one_side_lacks(sides: tuple[Path, Path]) -> None:
    (sides[1] / RUN / "00.png").rename(sides[1] / RUN / "01.png")
    assert "00.png: is missing after" in said(sides)
    assert "01.png: is new" in said(sides)


def test_nothing_at_all_is_not_the_same(tmp_path: Path) -> None:
    assert "runs/small: nothing was written" in str(compare(tmp_path, tmp_path, parts=["runs/small"]).differences[0])


def test_a_run_that_learns_nothing_compares_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"change_norm": 1.0}\n{"change_norm": 0.0}\n')
    assert learned_nothing(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"change_norm": 0.0}\n{"change_norm": 1.0}\n')
    assert not learned_nothing(tmp_path)


@pytest.mark.parametrize("file", ["00.png", "checkpoints/000001/weights.safetensors"])
@pytest.mark.parametrize("side", [0, 1])
def test_a_file_that_cannot_be_read(file: str, side: int, sides: tuple[Path, Path]) -> None:
    (sides[side] / RUN / file).write_bytes(b"no image")
    assert f"{Path(file).name}: other bytes, which cannot be compared: " in said(sides)


def test_an_expected_difference_is_counted(sides: tuple[Path, Path]) -> None:
    file = sides[1] / RUN / "metrics.jsonl"
    rewrite(file, '"kl": null', '"kl": null, "speed": 3')
    allowed = Allowed("*/metrics.jsonl", "*.speed", "a new field")
    assert said(sides, allowed) == "same (6 files, 3 tensors, 2 expected differences)"
    rewrite(file, '"mean": 0.1', '"mean": 0.3')
    assert said(sides, allowed).startswith("different in 1 of 6 files, 2 expected differences\n")
    assert (
        said(sides, Allowed("*/metrics.jsonl", "*.speed", "a new field", run="other"))
        .splitlines()[1]
        .endswith(" (and 2 more)")
    )


def test_of_many_differences_the_first_of_each_file_are_reported() -> None:
    names = [*(f"{i}.png" for i in range(6)), "metrics.jsonl", "metrics.jsonl"]
    found = Found(9, 0, [Difference(name, "", "differs") for name in names])
    same, text = verdict("run", found, [], set())
    assert not same
    lines = text.splitlines()
    assert lines[:2] == ["different in 7 of 9 files", "  metrics.jsonl: differs (and 1 more)"]
    assert lines[-2:] == ["  3.png: differs", "  and 2 more files"]


def test_every_expected_difference_has_its_reason() -> None:
    assert all(allowed.why for allowed in ALLOWED)


# -- sides ------------------------------------------------------------------------------------------------------------


def project(directory: Path, name: str, **entry_points: str) -> None:
    directory.mkdir(parents=True)
    points = "".join(f'{key} = "{value}"\n' for key, value in entry_points.items())
    text = f'[project]\nname = "{name}"\nversion = "7"\n[project.entry-points.dgpo]\n{points}'
    (directory / "pyproject.toml").write_text(text)


def test_a_side_has_the_plugins_of_its_tree_and_no_others(tmp_path: Path) -> None:
    """Though this environment has installed others."""
    tree = tmp_path / "tree"
    project(tree, "dgpo", builtin="dgpo_core.builtin.plugin")
    project(tree / "plugins/dgpo-sd3", "dgpo-sd3", moved="elsewhere.plugin")
    project(tree / "plugins/dgpo-later", "dgpo-later", later="dgpo_later.plugin")
    project(tmp_path / "guest", "dgpo-guest", guest="dgpo_guest.plugin")
    (tree / "plugins/dgpo-later/src/dgpo_later").mkdir(parents=True)
    (tree / "plugins/dgpo-later/src/dgpo_later/plugin.py").write_text("found = 7\n")
    code = (
        "import importlib.metadata as m, json, dgpo_later.plugin\n"
        "print(json.dumps([{e.name: [e.value, e.dist.version] for e in m.entry_points(group='dgpo')},"
        " dgpo_later.plugin.found]))"
    )
    environment = Side("after", tree, tmp_path / "side").environment(tmp_path / "guest")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        {
            "builtin": ["dgpo_core.builtin.plugin", "7"],
            "moved": ["elsewhere.plugin", "7"],
            "later": ["dgpo_later.plugin", "7"],
            "guest": ["dgpo_guest.plugin", "7"],
        },
        7,
    ]


def test_a_run_definition_may_be_another_one_for_another_contract(tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text("grid: str\n")
    side = Side("after", tmp_path, tmp_path)
    new = Either("run.py", "grid:", {"grid": 2}, {"shift": 2}, "Grid and shift are two settings")
    assert side.resolved({"rollout": new, "both": [new]}) == {"rollout": {"grid": 2}, "both": [{"grid": 2}]}
    other = Either("other.py", "grid:", 1, 2, "no such file")
    assert side.resolved(other) == 2


def test_a_commit_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no-such-commit: "):
        check_out("no-such-commit", tmp_path)


def test_every_run_has_a_name_of_its_own_and_a_file(tmp_path: Path) -> None:
    assert len({run.name for run in RUNS}) == len(RUNS)
    side = Side("after", root, tmp_path)
    for run in RUNS:
        data = yaml.safe_load(yaml.safe_dump(run.file(side)))
        assert data["run"]["name"] == run.name
    assert (third_party(side) / "pyproject.toml").is_file()


@pytest.mark.slow
def test_the_last_commit_against_the_working_tree(tmp_path: Path) -> None:
    """The whole way, for one run."""
    if not (root / ".git").exists():
        pytest.skip("the sources are no repository")
    command = [sys.executable, "-m", "tests.golden", "--against", "HEAD", "--only", "third-party"]
    done = subprocess.run(
        [*command, "--keep", tmp_path / "kept"], cwd=root, capture_output=True, text=True, check=False
    )
    reported = done.stdout + done.stderr
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=root, check=False).returncode
    for what in ("checkpoints", "third-party"):
        assert f"{what}: same" in reported or (changed and f"{what}: different" in reported), reported
    assert "metrics.jsonl" in {p.name for p in (tmp_path / "kept/after/runs/third-party").iterdir()}


# -- words ------------------------------------------------------------------------------------------------------------


def test_a_run_file_in_the_words_of_another_tree() -> None:
    """Sections that swap their names included, each key at its place."""
    rewards = [{"use": "ocr", "options": {"rule": "normalized"}}, {"use": "normalized"}]
    assert words.BEFORE.run_file({"rewards": rewards})["rewards"][0]["options"] == {"rule": "normalised"}
    data = {
        "objective": {
            "beta": 1, "reference": "ema_fast", "ema_fast": {"ramp": 2}, "ema": {"every": 3}, "ema_rollouts_after": 4,
        },
        "optimizer": {"updates": 5},
        "evaluation": {"model": "ema", "monitors": {"alarm": "log", "tolerances": {}}, "many_step": None, "images": 6},
    }  # fmt: skip
    found = words.BEFORE.run_file(data)
    assert found == {
        "objective": {"beta": 1, "reference": "ema", "ema": {"fast": {"ramp": 2}, "slow": {"every": 3}}, "switch": 4},
        "optimiser": {"updates": 5},
        "evaluation": {"view": "slow", "guards": {"alarm": "log", "bands": {}}, "finer": None, "pictures": 6},
    }
    assert list(found) == ["objective", "optimiser", "evaluation"]
    assert list(found["objective"]) == ["beta", "reference", "ema", "switch"]
    assert list(found["objective"]["ema"]) == ["fast", "slow"]
    assert list(found["evaluation"]) == ["view", "guards", "finer", "pictures"]
    assert words.BEFORE.run_file({"objective": {"ema": {"every": 3}}}) == {"objective": {"ema": {"slow": {"every": 3}}}}
    assert words.TODAY.run_file(data) == data


def test_a_command_in_the_words_of_another_tree() -> None:
    command = ("export", "ema", "--model", "ema", "--output", "model")
    assert words.BEFORE.command(command) == ["export", "ema", "--view", "slow", "--output", "model"]
    assert words.TODAY.command(command) == list(command)


def test_the_words_of_a_tree(tmp_path: Path) -> None:
    assert words.of(root) == words.TODAY
    assert words.of(tmp_path) == words.BEFORE


def test_only_words_may_differ(tmp_path: Path) -> None:
    """What the working tree writes is read in the words of the other one, and all else counts as always."""
    runs = [tmp_path / side / RUN for side in ("before", "after")]
    names = (("old/", "slow/", "optimiser", "pictures"), ("ema_fast/", "ema/", "optimizer", "images"))
    for run, (fast, slow, optimizer, images) in zip(runs, names, strict=True):
        (run / "checkpoints/000001").mkdir(parents=True)
        (run / images).mkdir()
        save_file(
            {f"{fast}a": torch.ones(2), f"{slow}a": torch.zeros(2)}, run / "checkpoints/000001/weights.safetensors"
        )
        save_file({"a": torch.ones(2)}, run / f"checkpoints/000001/{optimizer}.safetensors")
        Image.new("RGB", (2, 2)).save(run / images / "00.png")
    records = (
        {"view": "slow", "role": "guard", "parts": {"a": 1}},
        {"model": "ema", "role": "monitor", "subscores": {"a": 1}},
    )
    for run, record in zip(runs, records, strict=True):
        (run / "evaluations.jsonl").write_text(json.dumps(record) + "\n")

    def found() -> str:
        return verdict("small", compare(*(tmp_path / s for s in ("before", "after")), words=words.BEFORE), (), set())[1]

    assert found() == "same (4 files, 3 tensors)"
    rewrite(runs[1] / "evaluations.jsonl", '"a": 1', '"a":  1')
    assert "evaluations.jsonl: the same values, written in another way" in found()
    rewrite(runs[1] / "evaluations.jsonl", '"a":  1', '"a": 2')
    assert "evaluations.jsonl: 1.parts.a: 1 became 2, by 1" in found()
    flip(runs[1] / "checkpoints/000001/weights.safetensors", -1)
    assert "weights.safetensors: old/a: 1 of 2 differ" in found()
    (runs[1] / "images/00.png").rename(runs[1] / "00.png")
    assert "pictures/00.png: is missing after" in found()
