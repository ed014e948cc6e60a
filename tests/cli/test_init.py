"""`dgpo init`: whatever it writes is valid, and equals the example that it says it comes from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dgpo_cli.new_run.examples import example_files
from dgpo_cli.new_run.writing import commented
from dgpo_core.config.keys import keys_in
from dgpo_core.plugins.registry import get_registry
from dgpo_schemas.loading import parse_yaml
from tests.begun import CHOICES, config_of, prompt_files
from tests.conftest import Outcome

ROOT = Path(__file__).parents[2]
EXAMPLES = CHOICES.examples
Run = Callable[..., Outcome]
WITH_IMAGES = ("wan-i2v",)
"""Backbones whose prompts name images."""


# -- what it writes is an example ----------------------------------------------------------------------------------


def test_without_answers_it_is_the_quickstart(installed: Run) -> None:
    done = installed("init")
    assert (done.code, done.err) == (0, "")
    assert config_of("run.yaml") == config_of(ROOT / "examples" / "quickstart.yaml")
    assert done.out.splitlines() == [
        "wrote run.yaml, with the settings of examples/quickstart.yaml",
        "next:",
        "  dgpo validate run.yaml",
        "  dgpo plan run.yaml --card all",
        "  dgpo train run.yaml",
    ]
    assert installed("validate", "run.yaml").out.startswith("run.yaml: valid\n")


def test_every_example_is_known() -> None:
    """All run files of examples/, and no other file there."""
    found = {path for path in example_files() if "backbone" in yaml.safe_load(path.read_text())}
    assert {one.path for one in EXAMPLES} == found
    assert {path.parent for path in found} == {ROOT / "examples"}


BASES = [
    (model, one)
    for one in EXAMPLES
    for model in ["miniature" if one.is_miniature else one.backbone]
    if CHOICES.base(model, one.rewards(CHOICES.registry)[0]) is one
]


@pytest.mark.parametrize(("model", "example"), BASES, ids=[one.path.stem for _, one in BASES])
def test_a_model_with_the_reward_of_an_example_has_its_settings(
    model: str, example: Any, installed: Run, here: Path
) -> None:
    prompt_files(here)
    reward = example.rewards(CHOICES.registry)[0]
    done = installed("init", "--model", model, "--reward", reward)
    assert (done.code, done.err) == (0, "")
    assert config_of("run.yaml") == config_of(example.path)


def test_most_examples_can_be_reached() -> None:
    assert len(BASES) >= len(EXAMPLES) - 4  # variants of the miniature, which others of the same reward hide


# -- every backbone and reward -------------------------------------------------------------------------------------

REWARDS = ("pickscore", "geneval", "ocr", "hpsv2")
FAST = [("miniature", "ocr"), ("sd3", "geneval"), ("ltx-video", "geneval")]


def given_prompts(model: str, directory: Path) -> list[str]:
    if model not in WITH_IMAGES:
        return []
    prompt_files(directory)
    return ["--prompts", "prompts/i2v_train.jsonl", "--heldout", "prompts/i2v_test.jsonl"]


@pytest.mark.parametrize(
    ("model", "reward"),
    [
        pytest.param(model, reward, marks=[] if (model, reward) in FAST else pytest.mark.slow)
        for model in sorted(CHOICES.models)
        for reward in REWARDS
    ],
)
def test_it_is_valid(model: str, reward: str, installed: Run, here: Path) -> None:
    prompts = given_prompts(model, here)
    done = installed("init", "run.yaml", "--model", model, "--reward", reward, *prompts, "--yes")
    assert (done.code, done.err) == (0, "")
    checked = installed("validate", "run.yaml")
    assert (checked.code, checked.err) == (0, "")
    config = config_of("run.yaml")
    registry = get_registry()
    block = config.rewards[0]
    name = block.use if registry.components("reward")[block.use].component.adapts is None else None
    assert (name or block.options["reward"]["use"]) == reward
    made = registry.implementation(registry.find("backbone", config.backbone.use)).media
    assert made in registry.implementation(registry.find("reward", block.use)).media
    if reward == "geneval":  # its detector must see photographs, or the miniature's shapes
        options = block.options if name else block.options["reward"]["options"]
        detector = options["detector"]
        chosen = detector if isinstance(detector, str) else detector["use"]  # within options, short forms stay
        assert chosen == ("shapes" if model == "miniature" else "mask2former")


@pytest.mark.slow
@pytest.mark.parametrize("reward", sorted(CHOICES.rewards))
def test_every_reward_is_valid_or_says_what_it_needs(reward: str, installed: Run) -> None:
    done = installed("init", "--model", "sd3", "--reward", reward, "--yes")
    if done.code == 0:
        assert installed("validate", "run.yaml").code == 0
        return
    assert done.code == 2
    assert not Path("run.yaml").exists()
    needed = re.search(r"^dgpo init: (rewards\.0\.[\w.]+): is missing", done.err, re.MULTILINE)
    media = f"--reward: {reward} scores videos, but sd3 generates images" in done.err
    assert media or (needed is not None and "--set KEY=VALUE" in done.err), done.err


def test_a_reward_without_an_example_keeps_the_settings_of_a_similar_one(installed: Run) -> None:
    """hpsv2 is of the same distribution as pickscore; the prompts are general."""
    assert installed("init", "--model", "sd3", "--reward", "hpsv2").code == 0
    found = config_of("run.yaml")
    (example,) = (one for one in EXAMPLES if one.path.stem == "sd35-pickscore")
    was = example.data
    assert (found.objective.beta, found.advantages.std) == (was["objective"]["beta"], was["advantages"]["std"])
    assert found.run.name == "sd3-hpsv2"
    assert found.prompts.blocks("train")[0].use == "geneval"


# -- cards, prompts, modes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("card", "preset"), [("24", "24gb"), ("24gb", "24gb"), ("40 GB", "24gb"), ("141", "80gb")])
def test_a_card_is_the_largest_preset_for_it(card: str, preset: str, installed: Run, here: Path) -> None:
    prompt_files(here)
    done = installed("init", "--model", "sd3", "--reward", "pickscore", "--card", card, "--processes", 4)
    assert (done.code, done.err) == (0, "")
    assert config_of("run.yaml") == config_of(ROOT / "examples" / "sd35-pickscore.yaml", preset=preset)
    assert f"# Preset {preset}: SD3.5-M at 512 x 512" in Path("run.yaml").read_text()
    assert done.out.endswith("  dgpo train run.yaml --processes 4\n")


def test_a_preset_for_several_cards_says_so(installed: Run) -> None:
    registry = get_registry()
    sharded = [
        (model, name)
        for model in registry.components("backbone")
        for name, memory in CHOICES.presets(model).items()
        if model not in WITH_IMAGES and "shard" in (_preset(model, name).get("run") or {})
    ]
    model, name = sharded[0]
    done = installed("init", "--model", model, "--card", name)
    assert done.code == 0
    assert f"the preset {name} shards the weights over several GPUs: two or more are needed" in done.out
    assert done.out.endswith("  dgpo train run.yaml --processes 2\n")


def _preset(model: str, name: str) -> dict[str, Any]:
    from dgpo_core.config.presets import presets_of

    found: dict[str, Any] = yaml.safe_load(presets_of(model, get_registry())[name].read_text())
    return found


def test_own_prompts(installed: Run, here: Path) -> None:
    prompt_files(here)
    words = ["--model", "sd3", "--prompts", "prompts/train.txt", "--yes"]
    assert installed("init", "a.yaml", *words, "--heldout", "prompts/heldout.txt").code == 0
    found = config_of("a.yaml").prompts
    assert [block.file for split in ("train", "heldout") for block in found.blocks(split)] == [  # type: ignore[arg-type]
        "prompts/train.txt", "prompts/heldout.txt",
    ]  # fmt: skip
    assert installed("init", "b.yaml", *words).code == 0
    assert config_of("b.yaml").prompts.heldout is None
    assert "evaluation: none, there are no held-out prompts" in installed("validate", "b.yaml").out
    assert installed("init", "c.yaml", "--model", "sd3", "--prompts", "ocr").code == 0
    assert [config_of("c.yaml").prompts.blocks(split)[0].use for split in ("train", "heldout")] == ["ocr", "ocr"]  # type: ignore[arg-type]


def test_all_weights(installed: Run) -> None:
    assert installed("init", "--model", "sd3", "--train", "full").code == 0
    found = config_of("run.yaml")
    assert found.backbone.train == "full"
    assert found.optimizer.learning_rate == 1e-5
    assert "which is for an adapter; it has not been tried." in " ".join(
        line.lstrip("# ") for line in Path("run.yaml").read_text().splitlines()
    )


def test_other_settings(installed: Run) -> None:
    assert installed("init", "--name", "mine", "--set", "run.iterations=7", "--set", "rollout.group_size=4").code == 0
    assert config_of("run.yaml") == config_of(
        ROOT / "examples" / "quickstart.yaml", "run.name=mine", "run.iterations=7", "rollout.group_size=4"
    )


# -- comments ------------------------------------------------------------------------------------------------------


def test_every_key_has_its_description_as_a_comment(installed: Run) -> None:
    assert installed("init", "--model", "sd3", "--reward", "ocr", "--card", "24").code == 0
    text = Path("run.yaml").read_text()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    keys = keys_in("run", yaml.safe_load(text), get_registry())
    checked = 0
    for number, line in enumerate(lines):
        match = re.match(r"\s*(?:- )?([a-z_]+):", line)
        known = [one[0].key for name, one in keys.by_name.items() if match and name.rpartition(".")[2] == match[1]]
        if match is None or match[1] in ("options", "use", "sampler", "weighting") or not known:
            continue  # of components the summary is shown
        comment = []
        for above in reversed(lines[:number]):
            if not above.strip().startswith("#"):
                break
            comment.insert(0, above.strip().removeprefix("# "))
        said = " ".join(comment)
        assert said, line
        assert any(" ".join(key.description.split()).startswith(said) for key in known), (line, said)
        checked += 1
    assert checked > 40
    assert "# Stable Diffusion 3 and 3.5 through diffusers" in text, "the summary of the component"


def test_the_top_says_where_it_comes_from(installed: Run, here: Path) -> None:
    schema = here / "schemas" / "json" / "run.schema.json"
    schema.parent.mkdir(parents=True)
    schema.write_text("{}")
    (here / "files").mkdir()
    assert installed("init", "files/mine.yaml", "--set", "run.seed=3").code == 0
    lines = Path("files/mine.yaml").read_text().splitlines()
    assert lines[:2] == ["# yaml-language-server: $schema=../schemas/json/run.schema.json", "#"]
    top = " ".join(line.lstrip("# ") for line in lines[2 : lines.index("")])
    assert top.startswith(
        "Written by `dgpo init files/mine.yaml --model miniature --reward geneval --set run.seed=3`.  The other "
        "settings are those of examples/quickstart.yaml, whose comments give the source of each number."
    )
    assert "dgpo validate files/mine.yaml --explain rollout.group_size" in top


def test_values_that_need_quotes(installed: Run, here: Path) -> None:
    odd = ["run.name='1'", "backbone.revision='no: #x'", "logging.tags=[a, 'true', '']"]
    assert installed("init", *(word for one in odd for word in ("--set", one))).code == 0
    found = config_of("run.yaml")
    assert (found.run.name, found.backbone.revision, found.logging.tags) == ("1", "no: #x", ["a", "true", ""])


@pytest.mark.parametrize(
    "value",
    [
        "\N{CYRILLIC SMALL LETTER YA}/" * 40,
        "\N{GRINNING FACE} # a: " * 20,
        "\x7f" * 70,
        "\x01\x7f\x85\u2028\n" * 12,
        " lead and trail ",
        "x" * 5000,
        "null",
        "~",
        "",
        [["\x7f", "\N{CYRILLIC SMALL LETTER YA}"], [None, True, 1e-05]],
        [{"a: b": "- c", "#": {}}, "'\""],
    ],
    ids=ascii,
)
def test_any_value_is_read_back(value: Any) -> None:
    """In one line below its comments, and as it is if it can be shown."""
    data = {"run": {"output": value}, "rewards": [{"use": value}]}
    text = commented("top", data, get_registry())
    assert parse_yaml(text, "x").data == data
    if isinstance(value, str):
        (line,) = (line for line in text.splitlines() if line.startswith("  output:"))
        assert (value in line) == value.isprintable()


def test_the_schema_is_found_through_links(installed: Run, here: Path) -> None:
    schema = here / "schemas" / "json" / "run.schema.json"
    schema.parent.mkdir(parents=True)
    schema.write_text("{}")
    (here / "deep" / "er").mkdir(parents=True)
    (here / "link").symlink_to(here / "deep" / "er")
    assert installed("init", "link/run.yaml").code == 0
    place = Path("link/run.yaml").read_text().splitlines()[0].partition("$schema=")[2]
    assert (here / "link" / place).samefile(schema)


# -- files that are there, and wrong answers -----------------------------------------------------------------------


def test_no_file_is_replaced(installed: Run) -> None:
    Path("run.yaml").write_text("mine\n")
    done = installed("init")
    assert (done.code, done.out) == (2, "")
    assert done.err == "run.yaml: exists; name another file, or replace it with --force\n"
    assert installed("init", "--force", "--model", "sd4").code == 2
    assert Path("run.yaml").read_text() == "mine\n"
    assert installed("init", "--force").code == 0
    assert "quickstart" in Path("run.yaml").read_text()
    assert os.listdir() == ["run.yaml"]
    assert installed("init", "missing/run.yaml").err == "missing/run.yaml: no such directory missing\n"
    Path("place").mkdir()
    assert installed("init", "place").err == ("place: is a directory; name a file in it, such as place/run.yaml\n")


def test_no_link_is_replaced(installed: Run, here: Path) -> None:
    """Not even one to a file that is not there, nor one to itself."""
    for target in ("missing.yaml", "run.yaml"):
        Path("run.yaml").symlink_to(target)
        done = installed("init")
        assert (done.code, done.err) == (2, "run.yaml: exists; name another file, or replace it with --force\n")
        assert os.readlink("run.yaml") == target
        Path("run.yaml").unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "sd35"], r"--model: unknown model 'sd35'; did you mean sd3\? \(models: miniature, flux, "),
        (["--model", "SD3"], r"--model: unknown model 'SD3'; did you mean sd3\?"),
        (["--model", ""], r"--model: unknown model ''"),
        (["--reward", ""], r"--reward: unknown reward ''"),
        (["--model", "sd3", "--card", "9" * 400], r"--card 9+: must be the memory of a GPU in GB"),
        (["--model", "sd3", "--card", "\N{ARABIC-INDIC DIGIT NINE}0"], r"--card .0: must be the memory of a GPU in GB"),
        (["--reward", "pickscor"], r"--reward: unknown reward 'pickscor'; did you mean pickscore\? "),
        (["--model", "sd3", "--prompts", "genevl"], r"--prompts genevl: no such file, .* did you mean geneval\? "),
        (["--heldout", "x.txt"], r"--heldout x\.txt: no such file"),
        (["--model", "sd3", "--card", "h100x"], r"--card h100x: must be the memory of a GPU in GB"),
        (["--model", "sd3", "--card", "8"], r"--card 8: the smallest preset of sd3 is 16gb; .* --fit 8`"),
        (["--model", "sd3", "--set", "rollout.stepz=3"], r"--set rollout\.stepz=3: unknown key; did you mean steps\?"),
        (["--set", "rollout.steps=0"], r"--set rollout\.steps=0: must be at least 1"),
        (["--model", "wan-i2v"], r"--prompts: name a prompt file .* examples/wan21-i2v-pickscore\.yaml names "
                                 r"prompts/i2v_train\.jsonl, which is not here"),
        (["--model", "sd3", "--reward", "miniature-motion"], r"--reward: miniature-motion scores videos, but sd3 "
                                                            r"generates images; choose a reward that scores an image"),
        (["--weights", "package:nosuch/x"], r"backbone\.checkpoint: package:nosuch/x"),
    ],
)  # fmt: skip
def test_a_wrong_answer_has_one_message(words: list[str], message: str, installed: Run) -> None:
    done = installed("init", *words)
    assert (done.code, done.out) == (2, "")
    assert re.match(message, done.err), done.err
    assert len(done.err.splitlines()) == 1
    assert not os.listdir()


def test_required_options_without_a_default_are_named(installed: Run) -> None:
    done = installed("init", "--model", "sd3", "--reward", "pairwise")
    assert done.code == 2
    assert done.err.splitlines()[-1] == "dgpo init: set these keys with --set KEY=VALUE; nothing was written"
    assert done.err.startswith("dgpo init: rewards.0.options.reward: is missing (")
    setting = "rewards.0.options.reward=pickscore"
    assert installed("init", "--model", "sd3", "--reward", "pairwise", "--set", setting).code == 0


# -- plugins that are not of the project ---------------------------------------------------------------------------

TOY = ["--model", "toy", "--reward", "brightness", "--prompts", "toy", "--set", "rollout.resolution=8"]


def test_a_backbone_without_an_example(dgpo: Run, here: Path) -> None:
    """On a registry with nothing but the engine and a third party's components."""
    assert dgpo("init").err == "--model: name the model to train (models: toy)\n"
    assert dgpo("init", "--model", "toy").err == (
        "--reward: name the reward to train on (rewards: brightness, win-rate)\n"
    )
    assert dgpo("init", *TOY[:4]).err == "--prompts: name a prompt file or a prompt source\n"
    assert dgpo("init", *TOY).err.startswith("--weights: name the weights of toy: a directory")
    done = dgpo("init", *TOY, "--weights", "toy", "--card", "24")
    assert (done.code, done.err) == (0, "")
    assert "  dgpo plan run.yaml --fit 24\n" in done.out
    assert dgpo("validate", "run.yaml").code == 0
    text = Path("run.yaml").read_text()
    assert "examples/" not in text
    assert "  # Peak learning rate\n  learning_rate: 0.0003\n" in text


# -- the wheel -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wheel_has_the_examples(tmp_path: Path) -> None:
    """Nothing is built into the checkout."""
    import zipfile

    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"dgpo_cli/examples/{path.name}" for path in example_files()} <= set(names)
    assert {"dgpo_schemas/run.py", "dgpo_core/__init__.py", "dgpo_cli/new_run/choices.py"} <= set(names)
    assert {name.partition("/")[0] for name in names} == {
        "dgpo_core", "dgpo_cli", "dgpo_schemas", "dgpo-0.2.0.dist-info",
    }  # fmt: skip
