"""The vocabulary of the project: words of its early private dialect stay out of code, messages and documents.

Two scopes: `NAMES` are identifiers of Python files, `TEXT` are words of strings, comments and documents. Ordinary
English is left alone: "at least", "part of" and "as a whole" are fine, `Processes.least` is not.
"""

from __future__ import annotations

import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = (
    "everyone", "handed", "View", "rollout_view", "Roller", "roller", "roll_out", "verb", "verbs", "weigh", "sketch",
    "visitors", "Part", "RegisteredPart", "finer", "Finer", "band_of", "tell", "lane", "Lane", "seat", "Recipe",
    "rehearse", "rehearsal",
)  # fmt: skip
TEXT = (
    r"optimis(e|er|ed|es|ing|ation)\b", r"colour\w*", r"normalis(e|ed|ing|ation)\b",
    r"quantis(e|ed|ing|ation)\b", r"parametris\w+", r"randomis(e|ed|ing)\b", r"recognis\w+", r"behaviour\w*",
    r"artefacts?", r"neighbour\w*", r"in vain", r"_?rehears\w+", r"rollers?", r"visitors",
    r"guards?\b", r"bands?\b", r"--view",
    r"evaluation\.(view|guards|finer|pictures)", r"objective\.switch", r"objective\.ema\.(slow|fast)",
)  # fmt: skip
ALLOWED: dict[str, str] = {
    r"^CHANGELOG\.md$": "the history of earlier versions",
    r"^docs/migrating(-run-files)?\.md$": "names what was renamed",
    r"^dgpo_core/contracts/version\.py$": "names of earlier versions of the contract",
    r"^dgpo_core/config/migration/": "names of run files of dgpo 0.1",
    r"^dgpo_cli/main\.py$": "refuses --view with its new name",
    r"^tests/(cli/(migration/|test_migrate)|core/test_(migration|contract_version)|golden/)": "tests of these",
    r"^tests/test_words\.py$": "this list",
    r"^plugins/dgpo-ocr/src/dgpo_ocr/words\.py$": "prompt data",
    r"^docs/experiments/.*\.json$": "recorded results",
    r"^benchmarks/earlier\.py$": "calls the code of an earlier version",
}
"""Files and why they name old words."""
KEYS = re.compile(r"""\.at\("optimise"[,)]|"optimise" seeds|"finer_sharpness"|colour="red"|\.colour'|'colour'""")
"""Keys of random draws, which never change so that results stay the same, and misspellings that tests are about."""
KINDS = (".py", ".md", ".yaml", ".toml", ".jinja", ".html", ".css", ".js")


def files() -> Iterator[Path]:
    listed = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        allowed = any(re.search(pattern, name) for pattern in ALLOWED)
        if name.endswith(KINDS) and not allowed and (ROOT / name).is_file():
            yield ROOT / name


def old_names(source: str) -> list[str]:
    """Identifiers of a Python file that are old words, with their lines."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    names = [t for t in tokens if t.type == tokenize.NAME and t.string in NAMES]
    return [
        f"{t.start[0]}: {t.string}" for t in names if not t.line[: t.start[1]].endswith("handle.")
    ]  # a file's tell()


def old_text(text: str) -> list[str]:
    """Old words of a text, with their lines."""
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(TEXT)})", re.IGNORECASE)
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {m[0]}" for number, line in lines for m in pattern.finditer(KEYS.sub("", line))]


def test_no_file_has_old_words() -> None:
    found = []
    for path in files():
        text = path.read_text()
        words = old_text(text) + (old_names(text) if path.suffix == ".py" else [])
        found += [f"{path.relative_to(ROOT)}:{word}" for word in words]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("word", NAMES)
def test_an_old_name_is_found(word: str) -> None:
    assert old_names(f"x = {word}\n") == [f"1: {word}"]
    assert old_names(f"x = {word}_more\n") == []


@pytest.mark.parametrize(
    "text",
    ["the optimiser", "colours", "normalised", "waits in vain", "--view ema", "evaluation.guards", "a roller"],
)
def test_an_old_word_of_a_text_is_found(text: str) -> None:
    assert len(old_text(text)) == 1


def test_ordinary_words_and_keys_of_draws_are_left_alone() -> None:
    assert not old_text('optimizer, color, at least a part of the whole, draws.at("optimise")')
