"""RapidOCR, with its real models, on generated images."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from random import Random
from string import ascii_uppercase

import pytest
import rapidocr
import torch
from torch import Tensor

from dgpo_core.data.prompts import load_file
from dgpo_core.errors import UserError
from dgpo_core.types import Prompt, Scores
from dgpo_kit.contracts import check_reward
from dgpo_ocr.examples import draw, drawn_examples
from dgpo_ocr.options import OcrOptions
from dgpo_ocr.rapid import RapidEngine
from dgpo_ocr.reward import OcrReward

CPU = torch.device("cpu")
MODELS = Path(rapidocr.__file__).parent / "models"


def asks(text: str) -> Prompt:
    return Prompt(f'A sign that says "{text}"')


@pytest.fixture(scope="module")
def reward() -> Iterator[OcrReward]:
    made = OcrReward(OcrOptions(), device=CPU)
    yield made
    made.close()


def scored(media: Tensor, *targets: str, **options: object) -> Scores:
    made = OcrReward(OcrOptions.model_validate(options), device=CPU)
    try:
        return made.score(media, [asks(target) for target in targets])
    finally:
        made.close()


def test_the_contract(reward: OcrReward) -> None:
    words = ("OPEN", "Fresh\nBread", "", "STOP")
    media = torch.stack([draw(word, height=128, width=160, size=36) for word in words])
    check_reward(reward, media, [asks(target) for target in ("OPEN", "Fresh Bread", "OPEN", "SHOP")])


def test_the_contract_with_videos(reward: OcrReward) -> None:
    frames = [draw(word, height=64, width=160, size=36) for word in ("OPEN", "STOP", "", "OPEN", "OPEN")]
    media = torch.stack([torch.stack(frames), torch.stack(frames[::-1])])
    check_reward(reward, media, [asks("OPEN"), asks("STOP")])


@pytest.mark.parametrize("one_line", [False, True])
def test_examples(one_line: bool) -> None:
    found = drawn_examples(one_line=one_line)
    assert sum(e.good for e in found) >= 3
    assert sum(not e.good for e in found) >= 3
    for strict in (False, True):
        made = OcrReward(OcrOptions(detection=not one_line, strict=strict), device=CPU)
        assert [e.name for e in made.examples()] == [e.name for e in found]
        scores = made.score(torch.stack([e.media for e in found]), [e.prompt for e in found])
        made.close()
        assert not scores.missing.any()
        for example, value in zip(found, scores.values.tolist(), strict=True):
            assert (value == 1) == example.good, (example.name, value)


def test_a_blank_image_scores_0(reward: OcrReward) -> None:
    blanks = torch.stack([torch.zeros(3, 256, 256), torch.ones(3, 256, 256), torch.full((3, 256, 256), 0.5)])
    scores = reward.score(blanks, [asks("OPEN")] * 3)
    assert scores.values.tolist() == [0, 0, 0]
    assert not scores.missing.any()
    assert [d["text"] for d in scores.diagnostics] == ["", "", ""]


def test_without_detection_a_blank_image_scores_0() -> None:
    scores = scored(torch.ones(1, 3, 48, 128), "OPEN", detection=False)
    assert (scores.values.tolist(), scores.missing.tolist()) == ([0], [False])


def test_the_engine_gets_bgr(reward: OcrReward) -> None:
    """Text is readable in swapped colors too, so the test inspects the engine's input."""
    seen = []

    class Looks(RapidEngine):
        def read(self, image):  # type: ignore[no-untyped-def]
            seen.append(image[0, 0].tolist())
            return super().read(image)

    made = OcrReward(OcrOptions(), device=CPU, make=lambda: Looks(OcrOptions()))
    scores = made.score(draw("STOP", ink=(255, 255, 255), paper=(200, 10, 30))[None], [asks("STOP")])
    made.close()
    assert scores.values.tolist() == [1]
    assert seen == [[30, 10, 200]], "BGR"


@pytest.mark.parametrize(
    ("height", "width"),
    [(1, 1), (1, 9), (9, 1), (2, 3), (17, 40), (31, 31), (64, 32), (20, 400), (1, 700), (33, 257)],
)
def test_any_size_is_scored(reward: OcrReward, height: int, width: int) -> None:
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    scores = reward.score(torch.cat([noise, torch.ones_like(noise)]), [asks("OPEN")] * 2)
    assert not scores.missing.any(), scores.diagnostics
    assert ((scores.values >= 0) & (scores.values <= 1)).all()


@pytest.mark.parametrize(("height", "width"), [(700, 1), (2000, 10), (3000, 40)])
def test_an_image_too_narrow_for_detection_is_missing(reward: OcrReward, height: int, width: int) -> None:
    scores = reward.score(torch.ones(1, 3, height, width), [asks("OPEN")])
    assert scores.missing.tolist() == [True]
    assert "too narrow to detect lines" in scores.diagnostics[0]["reason"]


def test_too_narrow_images_are_those_that_the_detector_skips(reward: OcrReward) -> None:
    """The reference is the engine's own preprocessing, which returns None if a side rounds to 0."""
    from rapidocr.utils.process_img import apply_vertical_padding

    engine = RapidEngine(OcrOptions(detection_side=256))
    engine.read(draw("OPEN").permute(1, 2, 0).mul(255).byte().numpy())  # loads the detector
    rng = Random(0)
    refused = 0
    for _ in range(300):
        height, width = (round(2 ** rng.uniform(0, 11)) for _ in range(2))
        image = torch.zeros(height, width, 3, dtype=torch.uint8).numpy()
        padded, _ = apply_vertical_padding(image, {}, engine._ocr.width_height_ratio, engine._ocr.min_height)
        seen = engine._ocr.text_det.get_preprocess()(padded) is not None
        try:
            engine._check_shape(height, width)
        except ValueError:
            assert not seen, (height, width)
            refused += 1
        else:
            assert seen, (height, width)
    assert refused > 20


@pytest.mark.parametrize(("height", "width"), [(120, 400), (400, 240), (97, 303), (512, 512)])
def test_shapes_and_marks(reward: OcrReward, height: int, width: int) -> None:
    scores = reward.score(draw("Fox", height=height, width=width, size=60)[None], [asks("Fox")])
    assert scores.values.tolist() == [1]
    (mark,) = scores.diagnostics[0]["marks"]
    center = torch.tensor(mark["polygon"]).mean(0).tolist()
    assert center == pytest.approx([width / 2, height / 2], abs=12), "the text was drawn in the center"


@pytest.mark.parametrize("detection", [True, False])
@pytest.mark.parametrize("width", [320, 96])
def test_a_few_letters_in_tiny_images(detection: bool, width: int) -> None:
    rng = Random(0)
    words = ["".join(rng.choices(ascii_uppercase, k=3)) for _ in range(12)]
    media = torch.stack([draw(word, height=32, width=64, size=20) for word in words])
    settings = {"min_side": 64, "detection_side": 128, "recognition_width": width, "detection": detection}
    scores = scored(media, *words, **settings)
    assert scores.values.tolist() == [1] * 12
    assert scored(torch.ones(1, 3, 32, 64), "ABC", **settings).missing.tolist() == [False]


def test_results_do_not_depend_on_the_number_of_readers(reward: OcrReward) -> None:
    rng = Random(1)
    words = ["".join(rng.choices(ascii_uppercase, k=rng.randint(2, 8))) for _ in range(8)]
    media = torch.stack([draw(word, size=rng.choice([12, 20, 40])) for word in words])
    prompts = [asks(word) for word in reversed(words)]
    expected = reward.score(media, prompts)
    for readers in (1, 3):
        found = scored(media, *reversed(words), readers=readers)
        assert found.values.tolist() == expected.values.tolist()
        assert found.diagnostics == expected.diagnostics


def test_concurrent_calls(reward: OcrReward) -> None:
    batches = [torch.stack([draw(word), draw("STOP")]) for word in ("OPEN", "MUSIC", "")]
    prompts = [asks("OPEN"), asks("SHOP")]
    expected = [reward.score(media, prompts).values.tolist() for media in batches]
    assert expected == [[1, 0.75], [0, 0.75], [0, 0.75]]
    found: dict[int, list[float]] = {}

    def call(turn: int) -> None:
        found[turn] = reward.score(batches[turn % 3], prompts).values.tolist()

    threads = [threading.Thread(target=call, args=(turn,)) for turn in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {turn: expected[turn % 3] for turn in range(6)}


def test_nothing_is_printed_and_no_connection_is_opened() -> None:
    code = """
import socket, sys

def refuse(*arguments, **keywords):
    raise OSError("no network in this test")

socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from dgpo_core.types import Prompt
from dgpo_ocr.options import OcrOptions
from dgpo_ocr.reward import OcrReward

reward = OcrReward(OcrOptions(), device=torch.device("cpu"))
scores = reward.score(torch.ones(2, 3, 64, 64), [Prompt('a "b"')] * 2)
assert scores.values.tolist() == [0, 0] and not scores.missing.any()
reward.close()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_custom_models(tmp_path: Path) -> None:
    settings = OcrOptions(
        detection_model=str(MODELS / "PP-OCRv6_det_small.onnx"),
        recognition_model=str(MODELS / "PP-OCRv6_rec_small.onnx"),
        readers=1,
    )
    made = OcrReward(settings, device=CPU)
    assert made.score(draw("OPEN")[None], [asks("OPEN")]).values.tolist() == [1]
    made.close()
    nowhere, empty = tmp_path / "no.onnx", tmp_path / "empty.onnx"
    empty.write_bytes(b"")
    pointer, noise = tmp_path / "pointer.onnx", tmp_path / "noise.onnx"
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    noise.write_bytes(b"noise")
    without_characters = MODELS / "PP-OCRv6_det_small.onnx"
    for option, file, complaint in [
        ("detection_model", nowhere, "no such model"),
        ("recognition_model", nowhere, "no such model"),
        ("recognition_model", empty, "is empty; download it again"),
        ("recognition_model", pointer, "is a git-lfs pointer"),
        ("recognition_model", noise, "cannot be loaded"),
        ("detection_model", tmp_path, r"is a directory; expected an .onnx file, such as empty.onnx"),
        ("recognition_model", without_characters, "no list of characters"),
    ]:
        with pytest.raises(UserError, match=complaint) as caught:
            OcrReward(OcrOptions.model_validate({option: str(file)}), device=CPU)
        assert str(file) in str(caught.value)


def test_a_wheel_without_the_model_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dgpo_ocr.rapid.RECOGNITION", "another.onnx")
    with pytest.raises(UserError, match=r"no such model: .*another.onnx; dgpo-ocr requires rapidocr 3\.10"):
        OcrReward(OcrOptions(), device=CPU)


def test_a_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(UserError, match="pip install rapidocr onnxruntime"):
        OcrReward(OcrOptions(), device=CPU)


def test_the_alphabet_is_that_of_the_model(reward: OcrReward) -> None:
    """The reference is the engine's decoder; a prompt with another character is refused."""
    engine = RapidEngine(OcrOptions())
    engine.read(draw("OPEN").permute(1, 2, 0).mul(255).byte().numpy())  # loads the model
    decoded = set(engine._ocr.text_rec.postprocess_op.character) - {"blank", " "}
    assert engine.alphabet() == decoded
    reward.check_prompts(
        [asks(target) for target in ("Café Ñandú", "STRASSE", "ẞ", "漢字", "It’s – “GO”…", "13½", "?!")]
    )
    for target in ("Открыто", "한글", "مفتوح", "ไทย", "OPEN\x07"):
        with pytest.raises(UserError, match="cannot read"):
            reward.check_prompts([asks("OPEN"), asks(target)])


def test_the_versions_and_the_models_are_named(reward: OcrReward) -> None:
    digests = {
        kind: hashlib.sha256((MODELS / f"PP-OCRv6_{kind}_small.onnx").read_bytes()).hexdigest()
        for kind in ("det", "rec")
    }
    versions = f"rapidocr {metadata.version('rapidocr')}, onnxruntime {metadata.version('onnxruntime')}"
    assert reward.provenance() == {
        "engine": versions,
        "detection": f"PP-OCRv6_det_small.onnx sha256:{digests['det']}",
        "recognition": f"PP-OCRv6_rec_small.onnx sha256:{digests['rec']}",
    }
    whole = OcrReward(OcrOptions(detection=False), device=CPU)
    assert whole.provenance().keys() == {"engine", "recognition"}
    whole.close()


def test_the_published_test_prompts_are_all_readable(reward: OcrReward, test_data: Path) -> None:
    reward.check_prompts(load_file(test_data / "prompts" / "flow_grpo_ocr_test.txt"))


@pytest.mark.parametrize(("rise", "size"), [(0, 64), (20, 64), (-20, 64), (24, 48)])
def test_words_of_a_line_are_read_from_left_to_right(reward: OcrReward, rise: int, size: int) -> None:
    media = torch.ones(3, 256, 1024)
    for word, x, y in (("HELLO", 20, 60), ("WORLD", 540, 60 - rise)):
        patch = draw(word, height=128, width=400, size=size)
        media[:, y : y + 128, x : x + 400] = torch.minimum(media[:, y : y + 128, x : x + 400], patch)
    scores = reward.score(media[None], [asks("HELLO WORLD")])
    assert (scores.values.tolist(), scores.diagnostics[0]["text"]) == ([1], "HELLO WORLD")
