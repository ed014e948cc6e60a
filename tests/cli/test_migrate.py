"""Files and run directories of dgpo 0.1: refused by every command, and rewritten by `dgpo migrate`."""

from __future__ import annotations

import codecs
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dgpo_core.config.pipeline import load_run_config
from dgpo_core.plugins.registry import Registry
from dgpo_schemas.ablation import AblationConfig
from dgpo_schemas.loading import load_yaml
from dgpo_schemas.serve import ServeConfig

Run = Callable[..., Any]
ROOT = Path(__file__).parents[2]
FROZEN = Path(__file__).parent / "migration"
MIGRATED = FROZEN.parent / "migrated"
"""Files whose experiments changed since, as they were with the new names."""
"""Every example, experiment and preset as it was in dgpo 0.1, and a run directory without its tensors."""
PRESETS = ROOT / "plugins/dgpo-sd3/src/dgpo_sd3/presets"

OLD = """\
run: {name: toy, output: runs, iterations: many}   # another mistake
backbone: {use: toy, checkpoint: toy}
prompts: {train: {use: toy}, heldout: {use: toy}}
rewards: [{use: brightness}]
objective:
  switch: null   # the policy
  ema: {slow: {decay: 0.9}}
optimiser: {learning_rate: 0.1}
evaluation: {view: slow}
"""
NEW = """\
run: {name: toy, output: runs, iterations: many}   # another mistake
backbone: {use: toy, checkpoint: toy}
prompts: {train: {use: toy}, heldout: {use: toy}}
rewards: [{use: brightness}]
objective:
  ema_rollouts_after: null  # the policy
  ema: {decay: 0.9}
optimizer: {learning_rate: 0.1}
evaluation: {model: ema}
"""
NAMES = [
    "run.yaml:6: objective.switch: is now objective.ema_rollouts_after",
    "run.yaml:7: objective.ema.slow: is now objective.ema",
    "run.yaml:8: optimiser: is now optimizer",
    "run.yaml:9: evaluation.view: is now evaluation.model, and the value slow is now ema",
]
REFUSAL = (
    "runs/old: was written by dgpo 0.1, and this is dgpo 0.2, which cannot read it: use dgpo 0.1 for it "
    "(`dgpo migrate runs/old/config.yaml -o run.yaml` makes a run file for a new run)"
)


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with an old run file."""
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(OLD)
    return tmp_path


@pytest.fixture
def old_run(directory: Path) -> Path:
    shutil.copytree(FROZEN / "run", directory / "runs/old")
    return Path("runs/old")


def lines(text: str) -> list[str]:
    return text.splitlines()


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["train run.yaml", "train run.yaml --resume auto", "validate run.yaml", "plan run.yaml", "bench run.yaml",
     "sample run.yaml", "evaluate run.yaml", "score run.yaml x.png --prompt x"],
)  # fmt: skip
def test_a_run_file_is_refused_with_every_name_and_nothing_else(dgpo: Run, command: str) -> None:
    done = dgpo(*command.split())
    assert done.code == 2
    assert lines(done.err) == [*NAMES, "run.yaml: `dgpo migrate run.yaml` rewrites the file"]
    assert sorted(path.name for path in Path().iterdir()) == ["run.yaml"]


def test_settings_are_refused_in_the_same_message(dgpo: Run) -> None:
    settings = ["optimiser.learning_rate=1", "evaluation.model=slow", "objective.ema={slow: {every: 1}}", "run.seed=1"]
    arguments = [word for setting in settings for word in ("--set", setting)]
    mine = [
        "--set optimiser.learning_rate=1: is now optimizer.learning_rate",
        "--set evaluation.model=slow: the value slow is now ema",
        "--set objective.ema={slow: {every: 1}}: objective.ema.slow: is now objective.ema",
    ]
    assert lines(dgpo("validate", "run.yaml", *arguments).err)[4:7] == mine
    Path("run.yaml").write_text(NEW)
    done = dgpo("validate", "run.yaml", *arguments)
    assert (done.code, lines(done.err)) == (2, mine)


def test_an_option_of_another_reward_is_no_old_name(dgpo: Run) -> None:
    Path("run.yaml").write_text(NEW.replace("{use: brightness}", "{use: brightness}, {use: ocr}"))
    setting = "rewards.{}.options.rule=normalised"
    assert "now normalized" not in dgpo("validate", "run.yaml", "--set", setting.format(0)).err
    assert "normalised is now normalized" in dgpo("validate", "run.yaml", "--set", setting.format(1)).err


def test_other_kinds_of_files(dgpo: Run) -> None:
    for file, command, place in (
        ("experiments/e4-search.yaml", "ablate", "axes.1.key: optimiser.learning_rate is now optimizer.learning_rate"),
        ("examples/reward-service.yaml", "serve", "limits.picture_seconds: is now limits.image_seconds"),
    ):
        done = dgpo(command, FROZEN / file)
        assert done.code == 2
        assert place in done.err
        assert lines(done.err)[-1].endswith("rewrites the file")
    Path("run.yaml").write_text(NEW)
    done = dgpo("validate", "run.yaml", "--preset", FROZEN / "presets/24gb.yaml")
    assert done.code == 2
    assert "24gb.yaml:7: optimiser: is now optimizer" in done.err


def test_the_base_of_an_ablation(dgpo: Run) -> None:
    Path("ablation.yaml").write_text("name: a\nbase: run.yaml\naxes: [{key: run.threads, values: [1, 2]}]\nseeds: 1\n")
    done = dgpo("ablate", "ablation.yaml", "--dry-run")
    assert done.code == 2
    assert f"ablation.yaml:2: base: {NAMES[0]}" in done.err


@pytest.mark.parametrize("command", ["sample", "evaluate", "export"])
def test_the_option_view(dgpo: Run, command: str) -> None:
    done = dgpo(command, "runs/x", "--view", "slow")
    assert (done.code, done.err) == (2, "--view is now --model (old is ema_fast, slow is ema)\n")
    assert "--vew" in dgpo(command, "runs/x", "--vew", "slow").err


# -- run directories --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    ["train DIR/config.yaml --resume", "train DIR/config.yaml --resume auto", "sample DIR", "evaluate DIR",
     "export DIR", "export DIR --format peft", "report DIR", "doctor DIR", "score DIR x.png --prompt x",
     "plan DIR/config.yaml", "bench DIR/config.yaml", "validate DIR/config.yaml", "migrate DIR",
     "migrate DIR/config.yaml"],
)  # fmt: skip
def test_a_run_of_before(dgpo: Run, old_run: Path, command: str) -> None:
    before = {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}
    done = dgpo(*command.replace("DIR", str(old_run)).split())
    assert (done.code, done.err) == (2, f"{REFUSAL}\n")
    assert before == {path: path.read_bytes() for path in old_run.rglob("*") if path.is_file()}


def signs(run: Path) -> Iterator[tuple[str, bytes]]:
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/000001/manifest.json"):
        yield name, (run / name).read_bytes()


def test_each_sign_is_enough(dgpo: Run, old_run: Path) -> None:
    found = dict(signs(old_run))
    assert dgpo("migrate", old_run / "config.yaml", "-o", "new.yaml").code == 0
    for name, content in found.items():
        for other in found:
            (old_run / other).unlink(missing_ok=True)
        (old_run / "config.yaml").write_bytes(Path("new.yaml").read_bytes())
        (old_run / name).write_bytes(content)
        assert dgpo("sample", old_run).err == f"{REFUSAL}\n", name


def test_a_new_run_does_not_go_into_the_directory(dgpo: Run, old_run: Path) -> None:
    for resume in ([], ["--resume"], ["--resume", "auto"]):
        settings = ["--set", "run.iterations=1", "--set", "run.name=old"]
        Path("run.yaml").write_text(NEW)
        assert dgpo("train", "run.yaml", *resume, *settings).err.endswith(f"{REFUSAL}\n")


def test_a_run_file_out_of_it(dgpo: Run, old_run: Path, registry: Registry) -> None:
    done = dgpo("migrate", old_run / "config.yaml", "-o", "new.yaml")
    assert done.code == 0
    assert lines(done.out)[-1] == "runs/old/config.yaml: 9 old names replaced in new.yaml"
    assert "sha256" not in Path("new.yaml").read_text()
    assert load_run_config("new.yaml", registry=registry).run.name == "old"


def test_an_ablation_of_before(dgpo: Run) -> None:
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/plan.json").write_text('{"variants": [{"config": {"optimiser": {}}}]}')
    Path("run.yaml").write_text(NEW.replace("many", "2"))
    Path("ablation.yaml").write_text("name: b\nbase: run.yaml\naxes: [{key: run.threads, values: [1, 2]}]\nseeds: 1\n")
    for arguments in (["--report", "runs/a"], ["ablation.yaml", "--reuse", "runs/a"]):
        done = dgpo("ablate", *arguments)
        assert done.code == 2
        assert "runs/a: was written by dgpo 0.1, and this is dgpo 0.2" in done.err


# -- rewritten --------------------------------------------------------------------------------------------------------


def test_in_place(dgpo: Run) -> None:
    Path("run.yaml").chmod(0o640)
    done = dgpo("migrate", "run.yaml", "--check")
    assert (done.code, lines(done.out)) == (1, [*NAMES, "run.yaml: 4 old names"])
    assert Path("run.yaml").read_text() == OLD
    done = dgpo("migrate", "run.yaml")
    assert (done.code, lines(done.out)) == (0, [*NAMES, "run.yaml: 4 old names replaced"])
    assert Path("run.yaml").read_text() == NEW
    assert Path("run.yaml").stat().st_mode & 0o777 == 0o640
    written = Path("run.yaml").stat().st_mtime_ns
    for check in ([], ["--check"]):
        assert dgpo("migrate", "run.yaml", *check).out == "run.yaml: no old names\n"
    assert Path("run.yaml").stat().st_mtime_ns == written
    done = dgpo("validate", "run.yaml")
    assert "run.yaml:1: run.iterations: must be an integer, not 'many'" in done.err


@pytest.mark.parametrize(
    ("mark", "encoding"), [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (b"", "utf-8")]
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_the_encoding_stays(dgpo: Run, mark: bytes, encoding: str, newline: str) -> None:
    def written(text: str) -> bytes:
        return mark + text.replace("the policy", "die Näherung").rstrip().replace("\n", newline).encode(encoding)

    Path("run.yaml").write_bytes(written(OLD))
    assert dgpo("migrate", "run.yaml").code == 0
    assert Path("run.yaml").read_bytes() == written(NEW)


def test_a_symbolic_link(dgpo: Run, directory: Path) -> None:
    Path("link.yaml").symlink_to("run.yaml")
    assert dgpo("migrate", "link.yaml").code == 0
    assert Path("link.yaml").is_symlink()
    assert Path("run.yaml").read_text() == NEW


def test_another_file(dgpo: Run) -> None:
    assert dgpo("migrate", "run.yaml", "-o", "new.yaml").code == 0
    assert (Path("run.yaml").read_text(), Path("new.yaml").read_text()) == (OLD, NEW)
    assert dgpo("migrate", "new.yaml", "-o", "copy.yaml").code == 0
    assert Path("copy.yaml").read_text() == NEW
    done = dgpo("migrate", "run.yaml", "-o", "new.yaml")
    assert (done.code, done.err) == (2, "--output new.yaml: exists; name another file\n")
    for arguments in (["run.yaml", "new.yaml", "-o", "x.yaml"], ["run.yaml", "--check", "-o", "x.yaml"]):
        assert "--output: requires a single file and no --check" in dgpo("migrate", *arguments).err


def test_none_of_the_files_is_written_if_one_is_wrong(dgpo: Run) -> None:
    Path("twice.yaml").write_text("optimiser: {}\noptimizer: {}\n")
    done = dgpo("migrate", "run.yaml", "twice.yaml", "none.yaml")
    assert done.code == 2
    assert lines(done.err) == [
        "twice.yaml:2: optimizer: the file has this key twice, with its old and its new name (optimizer); delete one",
        "none.yaml: no such file",
    ]
    assert Path("run.yaml").read_text() == OLD
    assert dgpo("migrate", ".").err == ".: is a directory; name a file\n"


# -- the files of dgpo 0.1 --------------------------------------------------------------------------------------------


def today(file: Path) -> Path:
    name = file.relative_to(FROZEN)
    if (MIGRATED / name).is_file():
        return MIGRATED / name
    return PRESETS / file.name if name.parts[0] == "presets" else ROOT / name


def comments(text: str) -> Counter[str]:
    return Counter(re.findall(r"(?:^|(?<=\s))#[^\n]*", text))


@pytest.mark.parametrize(
    "file", [path for kind in ("examples", "experiments", "presets") for path in sorted((FROZEN / kind).iterdir())],
    ids=lambda path: str(path.relative_to(FROZEN)),
)  # fmt: skip
def test_a_file_of_before_is_the_same_as_today(dgpo: Run, file: Path) -> None:
    shutil.copy(file, "file.yaml")
    assert dgpo("migrate", "file.yaml").code == 0
    assert comments(Path("file.yaml").read_text()) == comments(file.read_text())
    mine, now = load_yaml("file.yaml").data, load_yaml(today(file)).data
    if file.parent.name == "presets":
        assert mine == now
    elif "axes" in now:
        assert AblationConfig.model_validate(mine) == AblationConfig.model_validate(now)
    elif "reward" in now:
        assert ServeConfig.model_validate(mine) == ServeConfig.model_validate(now)
    else:
        assert load_run_config("file.yaml").model_dump() == load_run_config(today(file)).model_dump()


def test_every_file_of_today_was_there_before() -> None:
    """So that none is left out of the comparison above; files that came later are listed here."""
    for kind in ("examples", "experiments"):
        assert all(today(path).is_file() for path in (FROZEN / kind).iterdir())
    assert {path.name for path in (FROZEN / "presets").iterdir()} == {path.name for path in PRESETS.iterdir()}
