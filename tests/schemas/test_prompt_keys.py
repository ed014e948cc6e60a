"""Keys of a prompt that are no metadata: what they may be, and what is taken for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dgpo_schemas.prompt_keys import doubtful
from dgpo_schemas.prompts import PromptRecord, read_prompts


def read(path: Path, **keys: Any) -> PromptRecord:
    file = path / "p.jsonl"
    file.write_text('{"prompt": "first"}\n' + json.dumps({"prompt": "p", **keys}))
    return list(read_prompts(file).values())[1]


def test_what_a_sample_is_drawn_from(tmp_path: Path) -> None:
    found = read(tmp_path, negative_prompt="blurry", media=["a.png", "b/c.mp4"], size=[480, 832], tag="x")
    assert (found.negative_prompt, found.media, found.size) == ("blurry", ("a.png", "b/c.mp4"), (480, 832))
    assert found.metadata == {"tag": "x"}


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("size", 512, (512, 512)),
        ("size", 512.0, (512, 512)),
        ("size", "[480, 832]", (480, 832)),
        ("size", None, None),
        ("size", float("nan"), None),
        ("media", "a.png", ("a.png",)),
        ("media", '["a.png"]', ("a.png",)),
        ("media", [], ()),
        ("media", None, ()),
        ("negative_prompt", "", ""),
        ("negative_prompt", None, None),
    ],
)
def test_also_as_tables_write_it(tmp_path: Path, key: str, given: Any, expected: Any) -> None:
    assert getattr(read(tmp_path, **{key: given}), key) == expected


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (
            {"size": "large"},
            "`size` must be a side in pixels or [height, width], such as 512 or [480, 832], not 'large'",
        ),
        ({"size": "512x768"}, "the height comes first: [512, 768] or [768, 512]"),
        ({"size": "512"}, "write the number without quotes: 512"),
        ({"size": {"height": 4, "width": 5}}, "write [4, 5]"),
        ({"size": True}, "not true"),
        ({"size": 0}, "not 0"),
        ({"size": 512.5}, "not 512.5"),
        ({"size": [8, 99999]}, "not [8, 99999]; a side has at most 16384"),
        ({"size": 10**400}, "(401 characters)"),
        ({"size": [1, 2, 3]}, "not [1, 2, 3]"),
        ({"size": "[Infinity, 1]"}, "not '[Infinity, 1]'"),
        ({"media": 3}, "`media` must be a path or a list of paths, not 3"),
        ({"media": ["a", None]}, "`media[1]` must be a path"),
        ({"media": " "}, "`media` is an empty path; remove the key"),
        ({"media": "a\0"}, "`media` contains a null character"),
        ({"media": "\ud83d"}, "`media` contains half of a character"),
        ({"media": ["https://x/y.png"]}, "`media[0]` is a URL, https://x/y.png; save the file"),
        ({"media": "data:image/png;base64,xx"}, "`media` is a URL"),
        ({"media": ["a"] * 65}, "`media` must have at most 64 files, got 65"),
        ({"negative_prompt": ["a"]}, "`negative_prompt` must be a string, not a list"),
        ({"negative_prompt": "a\0"}, "`negative_prompt` contains a null character"),
        ({"negative_prompt": "\ud83d"}, "`negative_prompt` contains half of a character"),
        ({"negativ_prompt": "x"}, "unknown key `negativ_prompt`; did you mean `negative_prompt`?"),
        ({"negativePrompt": "x"}, "did you mean `negative_prompt`?"),
        ({"neg-prompt": "x"}, "did you mean `negative_prompt`?"),
        ({"Negative Prompts": ["x"]}, "did you mean `negative_prompt`?"),
        ({"Media": "x"}, "did you mean `media`?"),
        ({"Size": 512}, "did you mean `size`?"),
    ],
)
def test_what_cannot_be_is_refused_with_its_line(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=r"p\.jsonl:2: ") as caught:
        read(tmp_path, **keys)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_may_be_metadata_stays_so(tmp_path: Path) -> None:
    kept = {
        "Size": "large", "negative": "a hard caption", "image": "0001.png", "images": ["a", "b"], "sizes": [3, 4],
        "positive_prompt": "x", "resolution": 512, "height": 4, "width": 5, "video": 3,
    }  # fmt: skip
    assert read(tmp_path, **kept).metadata == kept
    assert doubtful(kept) == {
        "negative": "negative_prompt", "image": "media", "images": "media", "resolution": "size", "height": "size",
    }  # fmt: skip
    assert read(tmp_path, size=64, Size=32).metadata == {"Size": 32}
