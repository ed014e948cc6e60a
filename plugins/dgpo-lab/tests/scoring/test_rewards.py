"""`dgpo score`: prompts, reward files, runs and servers, annotated pages, and rewards that compare."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import dgpo_core.training.score_samples as batches_module
from dgpo_core.contracts import RewardModel
from dgpo_core.plugins.registry import Registry
from dgpo_kit.toy import WinRate
from dgpo_remote.messages.scores import Blob, read_score_request, score_request
from dgpo_schemas.text import lone_surrogate
from tests.scored import Run, Stub, StubOptions, clip, image

# -- prompts ------------------------------------------------------------------------------------------------------


def asked() -> list[tuple[str, dict[str, Any]]]:
    return [(prompt.text, dict(prompt.metadata)) for _, prompts in Stub.asked for prompt in prompts]


def test_one_prompt_for_all_files(dgpo: Run) -> None:
    files = [image("a.png"), image("b.png")]
    dgpo("score", "stub", *files, "-p", "red", "--metadata", '{"tag": "x"}')
    assert asked() == [("red", {"tag": "x"})] * 2


def test_a_metadata_file_may_contain_the_prompt(dgpo: Run) -> None:
    Path("m.json").write_text('{"tag": "x", "prompt": "of the file"}')
    dgpo("score", "stub", image("a.png"), "--metadata", "@m.json")
    dgpo("score", "stub", "a.png", "--metadata", "@m.json", "--prompt", "mine")
    dgpo("score", "stub", "a.png")
    reported = {"tag": "x", "prompt": "of the file"}
    assert asked() == [("of the file", reported), ("mine", reported), ("", {})]


def test_prompt_lines_in_the_order_of_the_files(dgpo: Run) -> None:
    files = [image("b.png"), image("a.png")]
    Path("p.txt").write_text("one\n\ntwo\n")
    Path("p.jsonl").write_text('{"prompt": "one", "n": 1}\n{"prompt": "two", "n": 2}\n')
    dgpo("score", "stub", *files, "--prompts", "p.txt")
    dgpo("score", "stub", *files, "--prompts", "p.jsonl")
    assert asked() == [("one", {}), ("two", {}), ("one", {"n": 1}), ("two", {"n": 2})]


def test_prompt_lines_that_name_their_files(dgpo: Run) -> None:
    """Names are relative to the working directory or the prompt file, or bare; lines for other files are ignored."""
    for name in ("x/a.png", "x/y/b.png", "c.png"):
        image(name)
    lines = [("c.png", "cc"), ("y/b.png", "bb"), ("x/a.png", "aa"), ("else.png", "no")]
    Path("x/p.jsonl").write_text("".join(json.dumps({"prompt": p, "file": f, "k": 1}) + "\n" for f, p in lines))
    dgpo("score", "stub", "x/a.png", "x/y/b.png", Path("c.png").absolute(), "--prompts", "x/p.jsonl")
    assert asked() == [("aa", {"k": 1}), ("bb", {"k": 1}), ("cc", {"k": 1})]


# -- the reward ---------------------------------------------------------------------------------------------------


def test_options_are_yaml_with_dotted_keys(dgpo: Run) -> None:
    image("a.png")
    dgpo("score", "stub", "a.png", "--option", "depth=3", "--option", "inner.on=[true, no]", "--option", "test=x")
    assert Stub.built == [StubOptions(test="x", depth=3, inner={"on": [True, "no"]})]


def test_a_file_with_one_reward(dgpo: Run) -> None:
    Path("reward.yaml").write_text("use: stub\nname: red\noptions:\n  depth: 3\n  test: x\n")
    assert dgpo("score", "reward.yaml", image("a.png"), "--option", "depth=4").code == 0
    assert Stub.built == [StubOptions(test="x", depth=4)]


def test_a_file_for_a_server(dgpo: Run) -> None:
    Path("reward.yaml").write_text("device: cpu\nreward:\n  use: stub\n  options: {depth: 3}\n")
    Path("short.yaml").write_text("reward: stub\n")
    Path("bad.yaml").write_text("device: cpu\nreward: [stub]\n")
    image("a.png")
    assert dgpo("score", "reward.yaml", "a.png").code == 0
    assert dgpo("score", "short.yaml", "a.png", "--option", "depth=4").code == 0
    assert [options.depth for options in Stub.built] == [3, 4]
    assert dgpo("score", "reward.yaml", "a.png", "--option", "depth=x").err.startswith("--option depth=x: must be")
    assert dgpo("score", "bad.yaml", "a.png").err.startswith("bad.yaml:2: reward: must be a reward, such as {use: N")


def test_a_reward_of_a_run(dgpo: Run, write_run: Callable[..., Path]) -> None:
    blocks = [{"use": "brightness"}, {"use": "stub", "name": "red", "options": {"depth": 2}}]
    monitor = [{"use": "stub", "name": "monitor", "options": {"depth": 9}}]
    file = write_run(rewards=blocks, evaluation={"monitors": {"rewards": monitor}})
    Path("runs/toy").mkdir(parents=True)
    shutil.copy(file, "runs/toy/config.yaml")
    image("a.png")
    assert dgpo("score", file, "a.png", "--reward", "red").code == 0
    assert dgpo("score", "runs/toy", "a.png", "--reward", "monitor", "--option", "depth=5").code == 0
    assert [options.depth for options in Stub.built] == [2, 5]
    one = write_run("one.yaml", rewards=blocks[1:])
    assert dgpo("score", one, "a.png").code == 0


@pytest.mark.parametrize("flags", [["--worker-python", "python9"], ["--url", "http://a", "--url", "http://b",
                                   "--token-variable", "TOKEN"]])  # fmt: skip
def test_the_command_line_selects_where_the_reward_runs(
    dgpo: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    seen: list[Any] = []

    def place(block: Any, registry: Registry, *, device: torch.device) -> RewardModel:
        seen.append((block.worker, block.service, block.use, device.type))
        return Stub(StubOptions(), device=device)

    monkeypatch.setattr("dgpo_core.rewards.place", place)
    Path("reward.yaml").write_text(
        "use: elsewhere\n" + ("service: {urls: [x]}\n" if "python9" in flags else "worker: {count: 3}\n")
    )
    assert dgpo("score", "reward.yaml", image("a.png"), "--device", "cpu", *flags).code == 0
    ((worker, service, use, device),) = seen
    assert (use, device) == ("elsewhere", "cpu")  # the reward need not be installed in this process
    if "python9" in flags:
        assert (worker.python, service) == ("python9", None)
    else:
        assert (worker, service.urls, service.token_variable) == (None, ["http://a", "http://b"], "TOKEN")


# -- annotated images -------------------------------------------------------------------------------------------


def test_annotated_pages_show_the_marks_and_an_index_lists_them(dgpo: Run) -> None:
    files = [image("a/x.png", 0.8, (64, 64)), image("b/x.jpg", 0.2), clip("v.gif", 0.2, 0.8)]
    done = dgpo("score", "stub", *files, "--prompt", "red", "--annotate", "seen/here")
    assert done.code == 0
    names = ["annotated.html", "v.annotated.html", "x-2.annotated.html", "x.annotated.html"]
    assert sorted(path.name for path in Path("seen/here").iterdir()) == names
    page = Path("seen/here/x.annotated.html").read_text()
    assert '<polygon class="good" points="0,0 32,0 32,64 0,64"/>' in page
    shown = Image.open(io.BytesIO(base64.b64decode(re.findall(r"data:image/png;base64,([^\"]+)", page)[0])))
    assert (shown.size, shown.getpixel((40, 32))) == ((64, 64), (204, 0, 0))
    listed = re.findall(
        r'href="([^"]+)"><bdi>([^<]+)</bdi></a></th><td class="number">([^<]+)<',
        Path("seen/here/annotated.html").read_text(),
    )
    assert [(link, name) for link, name, _ in listed] == [
        ("x.annotated.html", "a/x.png"),
        ("x-2.annotated.html", "b/x.jpg"),
        ("v.annotated.html", "v.gif"),
    ]
    assert float(listed[0][2]) == pytest.approx(0.8, abs=0.01)
    dgpo("score", "stub", *files, "--annotate", "seen/here")  # overwrites the previous pages
    assert sorted(path.name for path in Path("seen/here").iterdir()) == names


def test_annotated_pages_next_to_the_images_do_not_change_them(dgpo: Run) -> None:
    before = image("x.png").read_bytes()
    for _ in range(2):
        assert len(json.loads(dgpo("score", "stub", ".", "--annotate", ".", "--json").out)) == 1
    assert Path("x.png").read_bytes() == before
    assert sorted(path.name for path in Path().iterdir()) == ["annotated.html", "x.annotated.html", "x.png"]


# -- rewards that compare -----------------------------------------------------------------------------------------


def test_files_of_the_same_prompt_are_compared(dgpo: Run) -> None:
    """The files of a prompt need not be adjacent, and other prompts may have other sizes."""
    files = [image("a.png", 0.2), image("b.png", 0.9, (9, 9)), image("c.png", 0.8), image("d.png", 0.1, (9, 9)),
             image("e.png", 0.5)]  # fmt: skip
    Path("prompts.txt").write_text("one\ntwo\none\ntwo\none\n")
    done = dgpo("score", "win-rate", *map(str, files), "--prompts", "prompts.txt", "--json", "--batch", "1")
    assert done.code == 0, done.err
    assert [record["value"] for record in json.loads(done.out)] == [0.0, 1.0, 1.0, 0.0, 0.5]


def test_files_that_cannot_be_compared(dgpo: Run) -> None:
    files = [str(image("a.png", 0.2)), str(image("b.png", 0.4)), str(image("c.png", 0.8))]
    Path("prompts.txt").write_text("one\ntwo\none\n")
    done = dgpo("score", "win-rate", *files, "--prompts", "prompts.txt")
    assert done.code == 2
    assert "b.png: win-rate compares the files of the same prompt, but no other file has the prompt" in done.err
    image("b.png", 0.4, (9, 9))
    Path("a.png").write_bytes(b"nonsense")
    done = dgpo("score", "win-rate", *files, "--prompt", "one", "--json")
    assert done.code == 1
    reasons = [record["diagnostics"]["reason"] for record in json.loads(done.out)]
    assert "several sizes" in reasons[1]
    assert reasons[1] == reasons[2] != reasons[0]
    image("b.png", 0.4)
    done = dgpo("score", "win-rate", *files[:2], "--prompt", "one", "--json")
    assert "nothing to compare it with" in json.loads(done.out)[1]["diagnostics"]["reason"]


def test_file_names_become_valid_sample_keys(dgpo: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long names and names that are not UTF-8 are replaced by digests."""
    asked: list[Any] = []
    score_group = WinRate.score_group

    def scored(self: WinRate, media: Any, prompt: Any, keys: Any) -> Any:
        asked.append((media, prompt, keys))
        return score_group(self, media, prompt, keys)

    monkeypatch.setattr(WinRate, "score_group", scored)
    deep = Path("d" * 100, "e" * 100)
    deep.mkdir(parents=True)
    files = [str(image(str(deep / name), 0.2)) for name in ("a.png", "b.png")] + [str(image("c.png", 0.4))] * 2
    assert dgpo("score", "win-rate", *files, "--json").code == 0
    ((media, prompt, keys),) = asked
    request = read_score_request(Blob(score_request(media, [prompt] * 4, keys=keys)))
    assert request.keys == keys
    assert keys[2:] == [("c.png", 0), ("c.png", 1)]
    assert lone_surrogate(batches_module._named("\udcff.png")) is None


def test_a_reward_that_compares_tests_itself(dgpo: Run) -> None:
    done = dgpo("score", "--self-test", "win-rate")
    assert done.code == 0, done.out + done.err
    assert "passed: good examples score at least 1, bad ones at most 0" in done.out
