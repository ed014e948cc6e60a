"""The declarations are light, complete and consistent; templates are pinned; options that cannot work are refused."""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import Registry
from dgpo_judge import plugin
from dgpo_judge.options import JudgeOptions, PairsOptions
from dgpo_judge.templating import DIGESTS, NAMES, Template, read_template
from dgpo_kit.contracts import HEAVY, check_declaration, check_light

URLS = ["http://gpu-7:8000"]


@pytest.mark.parametrize("module", ["dgpo_judge.plugin", "dgpo_judge.options", "dgpo_judge.answers"])
def test_nothing_heavy_is_imported(module: str) -> None:
    check_light(module, (*HEAVY, "httpx", "PIL"))


@pytest.mark.parametrize("name", ["judge", "judge-pairs", "judge-list", "pairwise"])
def test_declarations(name: str) -> None:
    registry = Registry(discover=False)
    registry.register(plugin, distribution="dgpo-judge")
    check_declaration(registry, "reward", name)
    component = registry.components("reward")[name].component
    assert name == "pairwise" or ("OpenAI-compatible" in component.summary and "licence" in component.summary)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"urls": []}, "at least 1 item"),
        ({"urls": ["gpu-7:8000"]}, "must begin with http:// or https://"),
        ({"urls": ["http://me:secret@gpu-7:8000"]}, "contains a user name or password"),
        ({"request": {"temperature": 1, "seed": 3}}, "`request` must not contain seed"),
        ({"aspects": [{"name": "a"}, {"name": "A"}]}, "`aspects` must have different names"),
        ({"aspects": [{"name": "a", "low": 5, "high": 5}]}, "`low` must be less than `high`, got 5 and 5"),
        ({"aspects": [{"name": "a"}]}, "`aspects` has no effect with `form: vqascore`: it belongs to `form: rubric`"),
        ({"form": "rating", "raw": True}, "`raw` has no effect with `form: rating`"),
        ({"scale": "0-10"}, "'1-5' or '0-9'"),
        ({"form": "vqa"}, "'vqascore', 'soft-tifa', 'rating', 'rubric' or 'reading'"),
    ],
)
def test_invalid_options_are_reported(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JudgeOptions.model_validate({"urls": URLS, **options})
    assert complaint in str(caught.value)
    assert "secret" not in caught.value.errors()[0]["msg"]


def test_opponents_are_an_even_number() -> None:
    with pytest.raises(ValidationError, match="multiple of 2"):
        PairsOptions(urls=URLS, opponents=3)


@pytest.mark.parametrize(
    "url", ["http://gpu-7:8000", "http://gpu-7:8000/", "http://gpu-7:8000/v1", "http://gpu-7:8000/v1/"]
)
def test_addresses_may_end_in_the_version(url: str) -> None:
    assert JudgeOptions(urls=[url]).urls == ["http://gpu-7:8000"]


def test_the_plugins_own_templates_are_pinned() -> None:
    """Another text is another reward: whoever changes one changes its digest here, and says so in the changelog."""
    files = {
        path.name: path for path in resources.files("dgpo_judge.templates").iterdir() if path.name.endswith(".txt")
    }
    assert set(files) == {f"{form}.txt" for form in NAMES} == {f"{form}.txt" for form in DIGESTS}
    for form, digest in DIGESTS.items():
        text = files[f"{form}.txt"].read_text(encoding="utf-8").strip()
        assert hashlib.sha256(text.encode()).hexdigest() == digest == read_template(form, None).digest


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("Is it good?", "lacks the placeholder {prompt}"),
        (
            "Is it {promt}?",
            "the placeholder {promt} is not known to a template for vqascore; allowed are {medium}, {prompt}",
        ),
        ('{"a": {prompt}}', "is not a placeholder; write a brace that is meant as such twice: {{ or }}"),
        ("{prompt", "write a brace that is meant as such twice"),
        ("{prompt!r}", "is not a placeholder"),
        ("{prompt.text}", "is not a placeholder"),
        ("{0} {prompt}", "is not a placeholder"),
    ],
)
def test_wrong_placeholders(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)) as caught:
        Template(text, "vqascore", "template: mine.txt")
    assert str(caught.value).startswith("template: mine.txt: ")
    assert "\n" not in str(caught.value)


def test_braces_of_prompts_and_templates_stay(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b'\xef\xbb\xbf{{"x": "{prompt}"}} {medium} {prompt}\r\n')
    template = read_template("vqascore", str(path))
    assert template.filled({"prompt": "{a} {{b}}", "medium": "image"}) == '{"x": "{a} {{b}}"} image {a} {{b}}'


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff{prompt}", "is not UTF-8 text: byte 1"),
        (b"x" * 70000, "larger than 64 KiB"),
    ],
)
def test_templates_that_cannot_be_read(tmp_path: Path, data: bytes | None, complaint: str) -> None:
    path = tmp_path / "mine.txt"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match=complaint):
        read_template("vqascore", str(path))
