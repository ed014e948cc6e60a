"""Which prompts a run has, and which of them an iteration takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given as given_by
from hypothesis import strategies as st

from dgpo_core.contracts import RewardModel
from dgpo_core.data.checks import check_prompts, given
from dgpo_core.data.notes import longer_than_read, notes, overlap
from dgpo_core.data.prompts import digest, load_file, load_prompts, some_of
from dgpo_core.data.sources import Source, of_sources
from dgpo_core.draws import Draws
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_core.types import Prompt, Scores
from dgpo_kit.toy import ToyBackbone
from dgpo_schemas.sections.prompts import PromptsBlock


def numbered(count: int) -> list[Prompt]:
    return [Prompt(str(i)) for i in range(count)]


def test_lines_that_look_like_comments_are_prompts_and_noted(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    file.write_text("# colors\na red circle\n\n#1 in the charts\n###\n// shapes\n")
    prompts = load_file(file)
    assert [p.text for p in prompts] == ["# colors", "a red circle", "#1 in the charts", "###", "// shapes"]
    assert notes(prompts) == [
        f"3 of 5 prompts look like comments (the first is {file}:1: '# colors'), but prompt files have none: every "
        "line with text is a prompt; delete these lines if they are not meant"
    ]
    assert notes([Prompt("a red circle"), Prompt("#1 in the charts")]) == []


def order(prompts: list[Prompt], iterations: int, groups: int, seed: int = 0) -> list[int]:
    return [
        int(p.text) for i in range(iterations) for p in of_sources([Source("", 1, prompts)], i, groups, Draws(seed))
    ]


@given_by(count=st.integers(1, 12), groups=st.integers(1, 9), iterations=st.integers(1, 9), seed=st.integers(0, 99))
def test_every_prompt_once_per_pass(count: int, groups: int, iterations: int, seed: int) -> None:
    taken = order(numbered(count), iterations, groups, seed)
    assert len(taken) == iterations * groups
    passes = [taken[start : start + count] for start in range(0, len(taken), count)]
    assert all(Counter(one) == Counter(range(count)) for one in passes[:-1])
    assert max(Counter(passes[-1]).values()) == 1


def test_the_order_is_keyed_by_seed_and_pass() -> None:
    """Of 40 prompts two orders hardly ever agree: each seed and each pass has its own, the same every time."""
    orders = [tuple(order(numbered(40), 3, 40, seed)[40 * i :][:40]) for seed in (0, 1) for i in range(3)]
    assert len(set(orders)) == 6
    assert tuple(range(40)) not in orders
    assert order(numbered(40), 3, 40) == [place for one in orders[:3] for place in one]


def test_an_iteration_needs_no_other() -> None:
    """A resumed run starts anywhere, also in the middle of a pass."""
    prompts = numbered(7)
    together = order(prompts, 6, 3)
    for i in range(6):
        assert [int(p.text) for p in of_sources([Source("", 1, prompts)], i, 3, Draws(0))] == together[
            3 * i : 3 * i + 3
        ]


def test_files(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("a red circle\n\n  ein grüner Kreis \n", encoding="utf-8")
    assert [(p.text, dict(p.metadata)) for p in load_file(tmp_path / "p.txt")] == [
        ("a red circle", {}), ("ein grüner Kreis", {})
    ]  # fmt: skip
    lines: list[Mapping[str, Any]] = [
        {"prompt": "a", "tag": "colors", "include": [{"class": "circle"}]},
        {"prompt": "b"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = load_file(str(tmp_path / "p.jsonl"))
    assert (first.text, dict(first.metadata)) == ("a", {"tag": "colors", "include": [{"class": "circle"}]})
    assert (second.text, dict(second.metadata)) == ("b", {})
    with pytest.raises(TypeError):
        first.metadata["tag"] = "x"  # type: ignore[index]


def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(UserError, match=rf"{path}:2: `prompt` must be a non-empty string"):
        load_file(path)


def test_blocks(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "p.txt").write_text("a\nb\nc\n")
    file = PromptsBlock(file=str(tmp_path / "p.txt"))
    source = PromptsBlock(use="toy", options={"count": 3})
    assert [p.text for p in load_prompts(file, "train", registry)] == ["a", "b", "c"]
    assert [p.text for p in load_prompts(source, "train", registry)] == [f"train picture {i}" for i in range(3)]
    assert [p.text for p in load_prompts(source, "heldout", registry)] == [f"heldout picture {i}" for i in range(3)]
    for block in (file, source):
        whole = load_prompts(block, "train", registry)
        for limit in (1, 2, 9):
            limited = block.model_copy(update={"limit": limit})
            assert load_prompts(limited, "train", registry) == whole[:limit]


def test_a_source_that_yields_nothing(registry: Registry) -> None:
    with pytest.raises(UserError, match=r"prompts\.heldout: toy yields no prompts"):
        load_prompts(PromptsBlock(use="toy", options={"count": 0}), "heldout", registry)


def test_the_digest_reports_prompts_apart() -> None:
    a, b = Prompt("a", {"x": 1, "y": [2]}), Prompt("b")
    same = Prompt("a", MappingProxyType({"y": [2], "x": 1}))
    assert digest([a, b]) == digest([same, b])
    others = [[b, a], [a], [a, b, b], [Prompt("a"), b], [Prompt("a", {"x": 2, "y": [2]}), b], [Prompt("ab")], []]
    assert len({digest(prompts) for prompts in [[a, b], *others]}) == len(others) + 1
    assert len(digest([])) == 64


def test_some_of_a_sorted_file_has_every_task() -> None:
    """GenEval's own file is sorted by task; a prefix of it would lose whole tasks."""
    tasks = [task for task in "abcdef" for _ in range(92)]
    prompts = [Prompt(f"{task} {i}", {"tag": task}) for i, task in enumerate(tasks)]
    chosen = some_of(prompts, 300)
    assert len(chosen) == len({p.text for p in chosen}) == 300
    assert chosen == [p for p in prompts if p in chosen]
    assert {p.metadata["tag"] for p in chosen} == set("abcdef")
    assert some_of(prompts, 300) == chosen
    assert some_of(prompts, 10_000) == prompts


class Refuses(RewardModel):
    """Refuses prompts that hold a word, all together or one by one."""

    range = (0.0, 1.0)

    def __init__(self, word: str) -> None:
        super().__init__(None, device=torch.device("cpu"))
        self.word = word
        self.asked = 0

    def check_prompts(self, prompts: Sequence[Prompt]) -> None:
        self.asked += 1
        for prompt in prompts:
            if self.word in prompt.text:
                raise UserError(f"prompt {prompt.text!r}: has {self.word!r}")

    def score(self, media: torch.Tensor, prompts: Sequence[Prompt]) -> Scores:
        raise NotImplementedError


@pytest.mark.parametrize("bad", [[0], [1], [41], [63], [64], [100], [3, 50], [100, 101]])
def test_a_refused_prompt_is_named_with_file_and_line(tmp_path: Path, bad: list[int]) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("".join(f"\npicture {i}{' bad' if i in bad else ''}\n" for i in range(102)))
    reward = Refuses("bad")
    with pytest.raises(UserError) as caught:
        check_prompts(reward, load_file(path))
    assert str(caught.value) == f"{path}:{2 * bad[0] + 2}: prompt 'picture {bad[0]} bad': has 'bad'"
    assert reward.asked <= 9


def test_prompts_without_an_origin_and_accepted_ones() -> None:
    check_prompts(Refuses("bad"), [Prompt("good")])
    check_prompts(Refuses("bad"), [])
    for prompts in (["bad"], ["good", "bad"], ["bad", "good"]):
        with pytest.raises(UserError, match=r"^prompt 'bad': has 'bad'$"):
            check_prompts(Refuses("bad"), [Prompt(text) for text in prompts])
    assert Prompt("a", origin="x:1") == Prompt("a", origin="y:2")


def texts(*found: str) -> list[Prompt]:
    return [Prompt(text, origin=f"p.txt:{line}") for line, text in enumerate(found, 1)]


def test_heldout_prompts_that_are_trained_on_are_counted() -> None:
    said = overlap(texts("a", "b", "a"), texts("b", "c", "d"), 10)
    assert said is not None
    assert said.startswith(
        "prompts.heldout: 1 of 3 held-out prompts (33 %) are also training prompts, the first is 'b'"
    )
    assert "(p.txt:1)" in said
    assert "except for case" not in said
    assert overlap(texts("a", "b"), texts("c", "d"), 10) is None
    assert overlap(texts("a"), [], 10) is None


def test_case_spaces_and_forms_of_a_letter_make_no_other_prompt() -> None:
    """É as one character and as two; a full-width letter; German ß, which `casefold` writes as ss."""
    train = texts("a  RED\tcircle ", "caf\u00c9", "\uff21", "Stra\u00dfe", "same")
    said = overlap(train, texts("A red Circle", "cafe\u0301", "a", "STRASSE", "same", "other"), 10)
    assert said is not None
    assert "5 of 6 held-out prompts (83 %) are also training prompts, 4 of them except for case or spaces" in said


def test_the_overlap_is_that_of_the_prompts_evaluation_draws() -> None:
    """An independent count over every number that evaluation may draw; nothing is said where it draws none of them."""
    train, heldout = numbered(9), [Prompt(str(i)) for i in range(6, 30)]
    for count in range(1, 26):
        drawn = [p.text for p in some_of(heldout, count)]
        shared = [text for text in drawn if int(text) < 9]
        said = overlap(train, heldout, count)
        if not shared:
            assert said is None
        else:
            assert said is not None
            assert f"{len(shared)} of {len(drawn)} held-out prompts" in said


@pytest.mark.parametrize(
    ("shared", "of", "share"), [(1, 400, "under 1 %"), (399, 400, "over 99 %"), (2, 2, "100 %"), (1, 100, "1 %")]
)
def test_none_and_all_are_said_of_none_and_all_only(shared: int, of: int, share: str) -> None:
    said = overlap(numbered(shared), numbered(of), of)
    assert said is not None
    assert f"({share})" in said


def test_prompts_are_read_without_torch() -> None:
    """`dgpo validate` reads them and has to be quick."""
    code = (
        "import sys; from dgpo_core.data.notes import overlap; from dgpo_core.data.prompts import load_file; "
        "from dgpo_core.types import Prompt; "
        "overlap([Prompt('a')], [Prompt('b')], 1); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Reads(ToyBackbone):
    """Twelve words of a text."""

    def __init__(self) -> None:
        pass

    def truncated_prompts(self, prompts: Sequence[Prompt]) -> tuple[Sequence[int], int]:
        assert len({prompt.text for prompt in prompts}) == len(prompts)
        return [i for i, prompt in enumerate(prompts) if len(prompt.text.split()) > 12], 12


def test_prompts_whose_end_is_not_read_are_counted_together() -> None:
    short, long, longer = Prompt("a b", origin="p.txt:1"), Prompt("x " * 13, origin="p.txt:2"), Prompt("y " * 99)
    assert longer_than_read([short, short], Reads()) is None
    assert longer_than_read([], Reads()) is None
    found = longer_than_read([short, long, longer, long, short], Reads())
    assert found is not None
    assert found.startswith(
        "3 of 5 prompts are longer than the limit of the text encoders (12 tokens), the first is p.txt:2, "
    )
    alone = longer_than_read([longer], Reads())
    assert alone is not None
    assert alone.startswith(
        "1 of 1 prompts is longer than the limit of the text encoders (12 tokens), the first is 'y y"
    )
    assert len(alone) < 300


def test_negative_texts_whose_end_is_not_read_are_counted_too() -> None:
    prompts = [
        Prompt("a", origin=f"p:{i}", negative=text) for i, text in enumerate((None, "", "x", "x " * 13, "x " * 13))
    ]
    found = longer_than_read(prompts, Reads())
    assert found is not None
    assert found.startswith(
        "2 of 3 negative prompts are longer than the limit of the text encoders (12 tokens), the first is p:3, "
    )
    both = longer_than_read([Prompt("y " * 13), *prompts], Reads())
    assert both is not None
    assert both.startswith("1 of 6 prompts is longer ")
    assert f"; {found}" in both


def test_a_text_that_is_none_is_refused_wherever_it_comes_from(registry: Registry) -> None:
    assert given("ein grüner Kreis 😀", "--prompt 1") == "ein grüner Kreis 😀"
    with pytest.raises(UserError, match=r"--prompt 2: contains the byte 0xFF at character 3, which is not UTF-8"):
        given("a \udcff", "--prompt 2")
    with pytest.raises(UserError, match=r"--prompt 2: contains half of a character \(the lone surrogate U\+D83D"):
        given("a \ud83d", "--prompt 2")
