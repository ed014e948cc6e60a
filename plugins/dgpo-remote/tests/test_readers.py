"""Readers: uploaded files are read as `dgpo score` reads them, and one bad image costs only one score."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image, features

from dgpo_core.media.files import read_media
from dgpo_remote.server.base64s import from_base64
from dgpo_remote.server.readers import Readers
from tests.uploaded import FORM, JSON, Serve, coded, file, form, one, png, read, readers, refused, run, scans


# -- formats ------------------------------------------------------------------------------------------------------
def images() -> dict[str, bytes]:
    """Files of every format, by name."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    deep = np.arange(600, dtype=np.uint16).reshape(20, 30) * 6
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(noise)
    more = [Image.fromarray(255 - noise)]
    made: dict[str, bytes] = {}

    def save(name: str, what: Image.Image = image, **options: Any) -> None:
        held = io.BytesIO()
        what.save(held, **options)
        made[name] = held.getvalue()

    save("8.png", format="PNG")
    save("16.png", Image.fromarray(deep), format="PNG")
    save("alpha.png", Image.merge("RGBA", [*image.split(), image.split()[0]]), format="PNG")
    save("16.tif", Image.fromarray(deep), format="TIFF")
    save("pages.tif", format="TIFF", save_all=True, append_images=more)
    save("turned.jpg", format="JPEG", exif=exif)
    save("scans.jpg", format="JPEG", progressive=True)
    save("x.bmp", format="BMP")
    save("x.ppm", format="PPM")
    save("x.gif", format="GIF")
    save("moves.gif", format="GIF", save_all=True, append_images=more)
    save("moves.png", format="PNG", save_all=True, append_images=more)
    for kind, feature in (("WEBP", "webp"), ("JPEG2000", "jpg_2000"), ("AVIF", "avif")):
        if features.check(feature):
            save(f"x.{kind.lower()}", format=kind)
    if "x.webp" in made:
        save("moves.webp", format="WEBP", save_all=True, append_images=more)
    return made


def test_pixels_and_notes_equal_those_of_read_media(readers: Readers, tmp_path: Path) -> None:
    made = images()
    as_json = run(read(readers, coded(*made.values())))
    as_form = run(read(readers, form(*(file(data, name) for name, data in made.items())), FORM))
    for found in (as_json, as_form):
        assert (found.count, found.lost) == (len(made), {})
        media = {place: batch.media[row] for batch in found.batches for row, place in enumerate(batch.places)}
        for place, (name, data) in enumerate(made.items()):
            (tmp_path / name).write_bytes(data)
            expected = read_media(tmp_path / name)
            assert media[place].equal(expected.tensor), name
            assert media[place].dtype == torch.float32
            assert found.notes.get(place, ()) == expected.notes, name
    assert {"16.png", "alpha.png", "pages.tif"} <= {name for i, name in enumerate(made) if as_json.notes.get(i)}


@pytest.mark.parametrize(("name", "codec"), [("x.mp4", "mpeg4"), ("x.avi", "mpeg4"), ("x.webm", "libvpx-vp9")])
def test_videos(readers: Readers, tmp_path: Path, name: str, codec: str) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / name), "w") as out:
        stream = out.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(5):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * i, np.uint8), format="rgb24")))
        out.mux(stream.encode())
    data = (tmp_path / name).read_bytes()
    (batch,) = run(read(readers, coded(data))).batches
    assert batch.media[0].equal(read_media(tmp_path / name).tensor)
    assert "more than 4 frames (limits.max_frames)" in str(refused(readers, coded(data), max_frames=4))
    assert "truncated" in str(refused(readers, coded(data[: len(data) // 2])))


BYTES = bytes(range(256)) + b"\xfb\xff\xfe"
PLAIN = base64.b64encode(BYTES + b"x").decode()


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        base64.encodebytes(BYTES + b"x").decode(),
        base64.encodebytes(BYTES + b"x").decode().replace("\n", "\r\n"),
        f"  {PLAIN[:7]} \t{PLAIN[7:]}\n",
        PLAIN.rstrip("="),
        base64.urlsafe_b64encode(BYTES + b"x").decode(),
        base64.urlsafe_b64encode(BYTES + b"x").decode().rstrip("="),
        f"data:image/png;base64,{PLAIN}",
        f"DATA:image/png;charset=utf-8; base64,{PLAIN}",
        f"data:;base64,{PLAIN.replace('+', '%2B').replace('/', '%2f').replace('=', '%3D')}",
        f"\ufeff{PLAIN}",
    ],
)
def test_spellings_of_base64(text: str) -> None:
    assert from_base64(text) == BYTES + b"x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("====", "only padding"),
        ("%%%", "the character '%' after 0 of 3 characters"),
        ("QUJD\x00", r"the character '\\x00' after 4"),
        ("QUJD=QUJD", "padding in the middle after 4"),
        ("QUJDQ", "one too many or too few"),
        ("/home/me/x.png", r"the character '\.' after"),
        ("https://example.org/x.png", "is a URL"),
        ("data:image/png,abc", "without base64"),
        ("data:image/svg+xml;utf8,<svg/>", "without base64"),
        ("QUJDé", "the character 'é'"),
    ],
)
def test_what_is_not_base64(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_base64(text)


def test_prompts_and_metadata(readers: Readers) -> None:
    texts = ["a", "naïve \U0001f600", "c"]
    parts = [file(png()), file(png()), file(png()), *(('name="prompt"', text.encode()) for text in texts)]
    found = run(read(readers, form(*parts, ('name="metadata"', b'{"a": [1, null]}')), FORM))
    assert [(p.text, p.metadata) for p in found.batches[0].prompts] == [(text, {"a": [1, None]}) for text in texts]
    samples = [{"image": base64.b64encode(png()).decode(), "prompt": text, "metadata": {"t": text}} for text in texts]
    found = run(read(readers, json.dumps({"samples": samples}).encode("utf-16")))
    assert [(p.text, p.metadata) for p in found.batches[0].prompts] == [(text, {"t": text}) for text in texts]
    assert run(read(readers, b'{"samples": []}')).count == 0
    padded = form(file(png()), ('name="prompt"', b"p")).replace(b"\r\n--X\r\n", b"\r\n--X \t\r\n")  # RFC 2046, 5.1.1
    assert run(read(readers, padded, FORM)).batches[0].prompts[0].text == "p"


@pytest.mark.parametrize(
    "head",
    ["name=\"image\"; filename*=utf-8''%C3%A9.png", 'name="image"; filename=""', 'name=image; filename="a;\\"b.png"'],
)
def test_names_of_files(readers: Readers, head: str) -> None:
    assert run(read(readers, form((head, png())), FORM)).lost == {}


# -- partial results ----------------------------------------------------------------------------------------------
def test_one_bad_image_costs_one_score(readers: Readers) -> None:
    files: list[bytes | str] = [png(), b"dear diary", png(size=(5000, 1)), "%%%", png()[:50], scans(2000, 16), png()]
    found = run(read(readers, coded(*files)))
    assert [batch.places for batch in found.batches] == [[0, 6]]
    assert {place: reason.split(":")[0][:29].strip() for place, reason in found.lost.items()} == {
        1: "not a readable image or video",
        2: "5000x1 pixels",
        3: "is not base64",
        4: "cannot be read",
        5: "it is a JPEG of 2,009 scans;",
    }


def test_the_first_reason_is_reported_if_no_image_is_readable(readers: Readers) -> None:
    error = refused(readers, coded("%%%", b"dear diary"))
    assert (error.status, error.kind) == (400, "request")
    assert str(error).startswith("samples.0.image: is not base64")
    assert "the other 1 cannot be read either" in str(error)
    error = refused(readers, form(file(png(size=(5000, 1)), "w\x1b.png")), FORM)
    assert (error.status, error.kind, str(error)[:29]) == (413, "size", r"image 'w\x1b.png': 5000x1 pix")


def test_partial_results_over_http(serve_all_along: Serve) -> None:
    """Values, missing, diagnostics with reasons and notes, in order; and the count of missing samples."""
    server = serve_all_along("conv")
    clear = io.BytesIO()
    Image.new("RGBA", (8, 6), (0, 0, 0, 0)).save(clear, "PNG")
    files = [("image", ("a.png", png())), ("image", ("cut.png", png()[:50])), ("image", ("c.png", clear.getvalue()))]
    with httpx.Client(base_url=server.url, timeout=20) as client:
        data = client.post("/v1/score", files=files, data={"prompt": "x"}).json()
        metrics = client.get("/metrics").text
    assert data["missing"] == [False, True, False]
    assert [value is None for value in data["values"]] == [False, True, False]
    assert data["diagnostics"][0] == {"text": "x", "seen": {}}
    assert data["diagnostics"][1].keys() == {"reason"}
    assert data["diagnostics"][2]["notes"] == ["its transparent pixels are shown on white"]
    assert "dgpo_samples_total 3.0" in metrics
    assert "dgpo_missing_total 1.0" in metrics


def test_a_video_among_images(serve: Serve) -> None:
    moving = io.BytesIO()
    Image.new("RGB", (8, 6)).save(moving, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 6), "red")])
    with httpx.Client(base_url=serve("brightness").url, timeout=20) as client:
        both = client.post("/v1/score", content=coded(moving.getvalue(), png()), headers=JSON).json()
        assert both["missing"] == [True, False]
        assert both["diagnostics"][0] == {"reason": "brightness does not score videos; it scores images"}
        assert client.post("/v1/score", content=coded(moving.getvalue()), headers=JSON).status_code == 422
