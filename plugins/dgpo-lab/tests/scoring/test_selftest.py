"""`dgpo score`: self-tests, invalid arguments, and real rewards."""

from __future__ import annotations

import importlib
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dgpo_core.plugins.registry import Registry
from tests.scored import Run, Stub, image

# -- self-test ----------------------------------------------------------------------------------------------------


def test_a_reward_that_passes_its_self_test(dgpo: Run) -> None:
    done = dgpo("score", "--self-test", "stub")
    assert done.code == 0
    assert done.out == (
        "example         value  details\n"
        "fire     good  0.9000  ✓ red enough: found 0.90\n"
        "rose     good  0.7000  ✓ red enough: found 0.70\n"
        "sea       bad  0.1000  ✗ red enough: found 0.10\n"
        "passed: good examples score at least 0.7, bad ones at most 0.1\n"
    )
    assert Stub.closed == 1


@pytest.mark.parametrize(
    ("test", "failure"),
    [
        ("inverted", "the bad example 'sea' scores 0.7 and the good example 'fire' scores 0.2: every bad example must "
         "score below every good one"),
        ("level", "the bad example 'sea' scores 0.5 and the good example 'fire' scores 0.5: every bad example must "
         "score below every good one"),
        ("constant", "every example has the value 0.25: the reward does not separate good from bad"),
        ("zero", "every example has the value 0: the reward does not separate good from bad"),
        ("missing", "fire: could not be scored: it is too dark"),
        ("nan", "fire: could not be scored: the value nan is not in the declared range [0.0, 1.0]"),
        ("far", "fire: could not be scored: the value 7.0 is not in the declared range [0.0, 1.0]"),
        ("raise", "fire: could not be scored: RuntimeError: the lamp is broken"),
        ("one-sided", "there is no bad example to compare with"),
    ],
)  # fmt: skip
def test_a_reward_that_fails_its_self_test(dgpo: Run, test: str, failure: str) -> None:
    done = dgpo("score", "stub", "--self-test", "--option", f"test={test}", "--json")
    data = json.loads(done.out)
    assert done.code == 1
    assert done.err.endswith(f"self-test of stub failed: {failure}\n")
    assert (data["reward"], data["passed"], data["failures"]) == ("stub", False, [failure])
    assert {"example", "good", "prompt", "value", "missing", "diagnostics"} == set(data["examples"][0])


def test_a_repeated_self_test_shows_how_much_values_vary(dgpo: Run) -> None:
    """The reward gives 0.8 and 0.9 in turn to one example, and 0.1 to the other."""
    done = dgpo("score", "stub", "--self-test", "--option", "test=flickers", "--repeat", "4")
    noise = math.sqrt(statistics.variance([0.8, 0.9, 0.8, 0.9]) / 2)
    assert done.out.splitlines()[-2:] == [
        f"scored 4 times: the values of one example have a standard deviation of {noise:.3g}, those of different "
        f"examples of {statistics.stdev([0.85, 0.1]):.3g}",
        "passed: good examples score at least 0.8, bad ones at most 0.1",
    ]
    assert len(Stub.asked) == 4
    done = dgpo("score", "stub", "--self-test", "--option", "test=flickers", "--repeat", "2", "--json")
    data = json.loads(done.out)
    assert (data["rounds"], len(data["examples"])) == (2, 2)
    assert data["noise"] == pytest.approx(math.sqrt(statistics.variance([0.8, 0.9]) / 2))


def test_a_repeated_self_test_counts_every_round(dgpo: Run) -> None:
    done = dgpo("score", "stub", "--self-test", "--option", "test=missing", "--repeat", "3", "--json")
    data = json.loads(done.out)
    assert (done.code, data["failures"]) == (1, ["fire: could not be scored: it is too dark"])
    assert data["noise"] == 0, "the other example does not vary"
    assert data["spread"] is None


def test_a_reward_without_examples(dgpo: Run) -> None:
    done = dgpo("score", "stub", "--self-test", "--option", "test=none")
    assert (done.code, done.out) == (2, "")
    assert "reward stub: has no examples for a self-test" in done.err
    assert Stub.closed == 1


def test_examples_that_fail(dgpo: Run) -> None:
    done = dgpo("score", "stub", "--self-test", "--option", "test=unheard-of")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("reward stub: its examples failed with KeyError: 'unheard-of'\n")


def test_the_examples_can_be_annotated(dgpo: Run) -> None:
    dgpo("score", "stub", "--self-test", "--annotate", "seen", "--output", "test.json")
    assert sorted(path.name for path in Path("seen").iterdir()) == [
        "annotated.html",
        *(f"{n}.annotated.html" for n in ("fire", "rose", "sea")),
    ]
    assert json.loads(Path("test.json").read_text())["passed"] is True


# -- invalid arguments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["stub"], "FILE: missing; give the files to score, or --self-test"),
        (["stub", "a.png", "--self-test", "-p", "x"], "--self-test: scores the reward's own examples; remove a file "
         "and --prompt"),
        (["stub", "a.png", "--repeat", "8"], "--repeat 8: requires --self-test"),
        (["stub", "no.png", "empty"], "no.png: no such file\nempty: the directory contains no images or videos"),
        (["a.png"], "a.png: is a file; the reward comes first: dgpo score REWARD a.png"),
        (["./a.png", "a.png"], "./a.png: is a file; the reward comes first: dgpo score REWARD ./a.png"),
        (["stubb", "a.png"],
         "reward stubb: use: unknown reward 'stubb'; did you mean stub? (installed: brightness, images-only, stub, "
         "win-rate)"),
        (["empty", "a.png"], "empty: neither a reward nor a run directory (it has no config.yaml)"),
        (["no.yaml", "a.png"], "no.yaml: no such file"),
        (["stub", "a.png", "--reward", "x"], "--reward x: selects a reward of a run, but stub is the name of a reward"),
        (["one.yaml", "a.png", "--reward", "x"], "--reward x: one.yaml is not a run file (it has no `rewards`); it "
         "contains one reward"),
        (["one.yaml", "a.png"], "one.yaml:3: options.depth: must be at least 0, not -1"),
        (["odd.yaml", "a.png"], "odd.yaml:2: option: unknown key; did you mean options?"),
        (["two.yaml", "a.png"], "two.yaml: select one of its rewards with --reward red or blue"),
        (["two.yaml", "a.png", "--reward", "bleu"], "--reward bleu: two.yaml has no such reward; did you mean blue? "
         "(available: red, blue)"),
        (["two.yaml", "a.png", "--reward", "blue"], "two.yaml:3: options.dept: unknown key; did you mean depth?"),
        (["stub", "a.png", "--option", "depth=-1"], "--option depth=-1: must be at least 0, not -1"),
        (["stub", "a.png", "--option", "dept=1"], "--option dept=1: unknown key; did you mean depth?"),
        (["stub", "a.png", "--option", "depth"], "--option depth: must be KEY=VALUE, such as detector=shapes"),
        (["stub", "a.png", "--option", "=3"], "--option =3: must be KEY=VALUE, such as detector=shapes"),
        (["stub", "a.png", "--option", "depth=[1"], "--option depth=[1: not YAML: expected ',' or ']', but got "
         "'<stream end>' while parsing a flow sequence (column 3)"),
        (["stub", "a.png", "--url", "http://x", "--worker-python", "y"],
         "--worker-python, --url: give only one of them; a reward runs in one place"),
        (["stub", "a.png", "--token-variable", "X"], "--token-variable: requires a service; give its --url"),
        (["stub", "a.png", "--token-variable", "", "--url", "http://x"],
         "--token-variable: service.token_variable: must not be empty"),
        (["stub", "a.png", "--device", "gpu"], "--device gpu: choose one of auto, cpu, cuda, mps"),
        (["stub", "a.png", "--output", "empty"], "--output empty: is a directory; name a file"),
        (["stub", "a.png", "--output", "no/x.json"], "--output no/x.json: no such directory no"),
        (["stub", "a.png", "--annotate", "a.png"], "--annotate a.png: cannot be written: {cwd}/a.png is a file"),
        (["stub", "a.png", "--metadata", "{]"], "--metadata: not JSON: Expecting property name enclosed in double "
         "quotes (column 2)"),
        (["stub", "a.png", "--metadata", "[1]"], "--metadata: must be a JSON object, such as {{\"tag\": \"colors\"}}, "
         "not a list"),
        (["stub", "a.png", "--metadata", "@no.json"], "--metadata @no.json: cannot be read: No such file or directory"),
        (["stub", "a.png", "--prompts", "p.txt", "-p", "x"], "--prompts, --prompt: give only one of them; a prompt "
         "file has a prompt for each file"),
        (["stub", "a.png", "--prompts", "p.txt"], "--prompts p.txt: has 2 prompts for 1 file; give one line per file, "
         "in the order of the files, or a .jsonl file that names them: {{\"file\": ..., \"prompt\": ...}}"),
        (["stub", "a.png", "--prompts", "p.png"], "p.png: a prompt file must end in .txt (one prompt per line), .jsonl "
         "(one object per line) or .json (one list)"),
        (["stub", "a.png", "--prompts", "named.jsonl"], "named.jsonl:2: `file` must name a file, as in the other "
         "lines"),
        (["stub", "a.png", "--prompts", "twice.jsonl"], "twice.jsonl:2: a.png has a different prompt in twice.jsonl:1"),
        (["stub", "a.png", "--prompts", "other.jsonl"], "--prompts other.jsonl: no line for a.png"),
        (["stub", "a.png", "-p", "unfit"], "--prompt: prompt 'unfit' is unfit"),
    ],
)  # fmt: skip
def test_invalid_arguments_are_reported(dgpo: Run, arguments: list[str], expected: str) -> None:
    image("a.png")
    Path("empty").mkdir()
    Path("one.yaml").write_text("use: stub\noptions:\n  depth: -1\n")
    Path("odd.yaml").write_text("use: stub\noption: {}\n")
    Path("two.yaml").write_text("rewards:\n- {use: stub, name: red}\n- {use: stub, name: blue, options: {dept: 1}}\n")
    Path("p.txt").write_text("one\ntwo\n")
    Path("named.jsonl").write_text('{"prompt": "x", "file": "a.png"}\n{"prompt": "y"}\n')
    Path("twice.jsonl").write_text('{"prompt": "x", "file": "a.png"}\n{"prompt": "y", "file": "a.png"}\n')
    Path("other.jsonl").write_text('{"prompt": "x", "file": "b.png"}\n')
    done = dgpo("score", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.removeprefix("loading weights\n") == expected.format(cwd=Path.cwd()) + "\n"
    assert Stub.asked == []
    assert not Path("seen").exists()


def test_a_full_disk_is_reported(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    image("a.png")
    monkeypatch.setattr("dgpo_core.system.files._write_aside", full)
    done = dgpo("score", "stub", "a.png", "--annotate", "seen")
    assert (done.code, done.out) == (2, "")
    assert done.err.endswith("cannot write seen/a.annotated.html: No space left on device\n")
    assert Stub.closed == 1


def test_a_missing_cuda_device_is_reported(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = dgpo("score", "stub", image("a.png"), "--device", "cuda")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        f"--device: cuda is not available: torch finds no CUDA device (torch {torch.__version__}, built for CUDA "
        f"{torch.version.cuda or 'no version'}); use auto or cpu\n"
    )


# -- with real rewards --------------------------------------------------------------------------------------------


def test_geneval_on_miniature_images(dgpo: Run, known: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    world = pytest.importorskip("dgpo_miniature.world")
    pytest.importorskip("dgpo_geneval")
    from dgpo_geneval import plugin as geneval
    from dgpo_miniature import plugin as miniature

    known.register(geneval, distribution="dgpo-geneval")
    known.register(miniature, distribution="dgpo-miniature")
    # A red circle at the top left and a blue square at the top right, then swapped.
    kind, color = np.array([[0, 1, -1, -1], [1, 0, -1, -1]]), np.array([[0, 2, 0, 0], [2, 0, 0, 0]])
    for i, pixels in enumerate(world.render(world.random_scenes(kind, color, np.random.default_rng(0)))):
        Image.fromarray((pixels.transpose(1, 2, 0) * 255).round().astype(np.uint8)).save(f"{i}.png")
    asks = {
        "tag": "position",
        "include": [{"class": "square", "count": 1}, {"class": "circle", "count": 1, "position": ["left of", 0]}],
        "prompt": "a photo of a circle left of a square",
    }
    common = ["--metadata", json.dumps(asks), "--option", "detector=shapes", "--json", "--annotate", "seen"]
    done = dgpo("score", "geneval", "0.png", "1.png", *common)
    assert done.code == 0, done.err
    good, bad = json.loads(done.out)
    assert (good["value"], good["prompt"]) == (1.0, asks["prompt"])
    assert bad["value"] < 1
    assert [clause["ok"] for clause in good["diagnostics"]["clauses"]] == [True, True]
    assert [clause["ok"] for clause in bad["diagnostics"]["clauses"]] == [True, False]
    assert len(good["diagnostics"]["marks"]) == 2
    assert Path("seen/0.annotated.html").read_text().count('<polygon class="good"') == 2


@pytest.mark.parametrize(("name", "options"), [("geneval", ["--option", "detector=shapes"]), ("ocr", [])])
def test_real_rewards_pass_their_self_tests(dgpo: Run, known: Registry, name: str, options: list[str]) -> None:
    modules = {"geneval": ["dgpo_geneval", "dgpo_miniature"], "ocr": ["dgpo_ocr", "rapidocr"]}[name]
    for module in modules:
        pytest.importorskip(module)
    for module in (module for module in modules if module.startswith("dgpo_")):
        known.register(importlib.import_module(f"{module}.plugin"), distribution=module)
    done = dgpo("score", "--self-test", name, *options, "--annotate", "seen")
    assert done.code == 0, done.err
    assert "passed: good examples score at least 1, " in done.out
    assert max(map(len, done.out.splitlines())) <= 80
    seen = "".join(path.read_text() for path in Path("seen").iterdir())
    assert '<polygon class="good"' in seen
    assert '<polygon class="bad"' in seen
