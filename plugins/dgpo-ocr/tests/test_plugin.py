"""The declarations are light, complete and consistent with their classes; the README's Python code runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dgpo_core.plugins.registry import Registry
from dgpo_kit.contracts import HEAVY, check_declaration, check_light
from dgpo_ocr import plugin
from dgpo_ocr.options import OcrOptions

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize("module", ["dgpo_ocr.plugin", "dgpo_ocr.target", "dgpo_ocr.alphabet"])
def test_nothing_heavy_is_imported(module: str) -> None:
    check_light(module, (*HEAVY, "rapidocr", "onnxruntime", "cv2", "paddleocr", "rapidfuzz"))


@pytest.mark.parametrize("kind", ["reward", "prompts"])
def test_declarations(kind: str) -> None:
    registry = Registry(discover=False)
    registry.register(plugin, distribution="dgpo-ocr")
    check_declaration(registry, kind, "ocr")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"engine": "paddleocr", "detection": False}, "`detection: false` requires `engine: rapidocr`"),
        ({"engine": "paddleocr", "recognition_width": 96}, "`recognition_width` requires `engine: rapidocr`"),
        ({"engine": "paddleocr", "detection_model": "x"}, "or neither"),
        ({"rule": "flowgrpo", "strict": True}, "`strict: true` requires `rule: normalized`"),
        ({"rule": "published"}, "'normalized' or 'flowgrpo'"),
        ({"engine": "tesseract"}, "'rapidocr' or 'paddleocr'"),
        ({"every": 0}, "greater than or equal to 1"),
        ({"readers": 0}, "greater than or equal to 1"),
        ({"min_score": 1.5}, "less than or equal to 1"),
    ],
)
def test_invalid_options_are_reported(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(complaint)):
        OcrOptions.model_validate(options)


def test_the_published_rule_sets_other_defaults() -> None:
    def settings(**given: Any) -> tuple[Any, ...]:
        found = OcrOptions(**given)
        assert OcrOptions.model_validate(found.model_dump(mode="json")) == found
        return found.video, found.min_score, found.min_side, found.every, found.detection_side

    assert settings() == ("mean", 0.5, 64, 4, 960)
    assert settings(rule="flowgrpo") == ("flowgrpo", 0.0, 1, 4, 960)
    assert settings(rule="flowgrpo", min_score=0.5, min_side=64, video="mean") == ("mean", 0.5, 64, 4, 960)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL))
def test_readme_snippets_run(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(block, str(README), "exec"), {"__name__": "readme"})
    expected = [line.partition("# ")[2] for line in block.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.split("\n")[:-1] == expected
