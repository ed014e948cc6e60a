"""Conditioning rows on disk: equal bit for bit, or encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dgpo_core.errors import PluginError, UserError
from dgpo_core.plugins.sections import check_section
from dgpo_core.storage.rows import DamagedRow, dump_row, load_row
from dgpo_core.training.policy import ConditioningCache
from dgpo_core.training.stored_rows import open_stored_rows
from dgpo_core.types import Conditioning, ConditionMedium, Prompt
from dgpo_kit.given import prompts_of
from dgpo_kit.toy import ToyBackbone, ToyOptions, run_data
from dgpo_schemas.run import RunConfig

CPU = torch.device("cpu")


def same(one: Conditioning, other: Conditioning) -> bool:
    return (
        list(one.tensors) == list(other.tensors)
        and dict(one.lengths) == dict(other.lengths)
        and all(
            t.dtype == o.dtype and t.stride() == o.stride() and t.shape == o.shape and bits(t) == bits(o)
            for t, o in zip(one.tensors.values(), other.tensors.values(), strict=True)
        )
    )


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def odd_row() -> Conditioning:
    special = torch.tensor([[float("nan"), -0.0, float("inf"), 1e-45]])
    return Conditioning(
        {
            "z": torch.randn(1, 5, 3, dtype=torch.bfloat16),
            "a": special,
            "mask": torch.tensor([[True, False, True, True, True]]),
            "ids": torch.arange(6).view(1, 6),
            "turned": torch.randn(1, 4, 7).transpose(1, 2),
            "empty": torch.zeros(1, 0, 3, dtype=torch.float16),
            "double": torch.randn(1, 2, dtype=torch.float64),
            "part": torch.randn(2, 9)[1:, ::2],
        },
        {"z": (5,), "mask": (5,)},
    )


def test_a_row_comes_back_bit_for_bit() -> None:
    row = odd_row()
    content = dump_row(row, "key")
    assert content is not None
    assert same(load_row(content, "key", CPU), row)
    with pytest.raises(DamagedRow, match="another row"):
        load_row(content, "other", CPU)


def test_rows_that_share_memory_are_separate_again() -> None:
    tensor = torch.randn(1, 4)
    content = dump_row(Conditioning({"a": tensor, "b": tensor}), "key")
    assert content is not None
    assert torch.equal(load_row(content, "key", CPU).tensors["b"], tensor)
    assert dump_row(Conditioning({"a": torch.zeros(1, 1).expand(1, 5)}), "key") is None


def test_every_damaged_byte_is_noticed() -> None:
    content = dump_row(Conditioning({"a": torch.arange(12.0).view(1, 12)}, {"a": (12,)}), "key")
    assert content is not None
    for i in range(len(content)):
        damaged = content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :]
        with pytest.raises(DamagedRow):
            load_row(damaged, "key", CPU)
        with pytest.raises(DamagedRow):
            load_row(content[:i], "key", CPU)
    with pytest.raises(DamagedRow):
        load_row(content + b"\0", "key", CPU)


class Encoder(ToyBackbone):
    """Says what its rows depend on, and which rows it was asked for."""

    identity: str | None = "toy encoder"
    asked: list[str]

    def encoder_identity(self) -> str | None:
        return self.identity

    @contextmanager
    def encoding(self) -> Any:
        self.asked = [*getattr(self, "asked", []), "encoding"]
        yield

    def encode(self, prompts: Sequence[Prompt]) -> Conditioning:
        self.asked = [*getattr(self, "asked", []), *(p.text for p in prompts)]
        return super().encode([replace(p, text=f"{p.text} {p.key}") for p in prompts])


def made(directory: Path, identity: str | None = "toy encoder", **settings: Any) -> tuple[Encoder, ConditioningCache]:
    data = run_data(directory / "run")
    data["backbone"] = data["backbone"] | {"cache": {"directory": str(directory / "cache")}}
    for key, value in settings.items():
        data[key] = data.get(key, {}) | value
    config = RunConfig.model_validate(data)
    backbone = Encoder(config.backbone, ToyOptions(), device=CPU)
    backbone.identity = identity
    backbone.asked = []
    return backbone, ConditioningCache(backbone, stored=open_stored_rows(config, backbone, CPU))


def test_rows_are_encoded_once_for_all_runs(tmp_path: Path) -> None:
    prompts = [*prompts_of(["a", "b"]), Prompt("a", size=(8, 8), negative="c")]
    first, rows = made(tmp_path)
    expected = [rows(prompts), rows.unconditional(prompts)]
    assert len(first.asked) == 2 + 5
    second, rows = made(tmp_path)
    assert same(rows(prompts), expected[0])
    assert same(rows.unconditional(prompts), expected[1])
    assert second.asked == [], "neither encoded, nor anything prepared to encode"
    plain = ConditioningCache(Encoder(second.section, ToyOptions(), device=CPU))
    assert same(plain(prompts), expected[0])
    assert same(plain.unconditional(prompts), expected[1])
    rows(prompts_of(["a", "new"]))
    assert second.asked == ["encoding", "new"]


def medium(digest: str) -> ConditionMedium:
    return ConditionMedium("image", digest * 64)


@pytest.mark.parametrize(
    "other",
    [
        Prompt("b", size=(8, 8)), Prompt("a", size=(8, 16)), Prompt("a", size=(8, 8), media=(medium("1"),)),
        Prompt("a", size=(8, 8), media=(medium("0"), medium("0"))),
    ],
)  # fmt: skip
def test_another_prompt_is_another_row(tmp_path: Path, other: Prompt) -> None:
    made(tmp_path)[1].rows([Prompt("a", size=(8, 8)), Prompt("a", size=(8, 8), media=(medium("0"),))])
    backbone, rows = made(tmp_path)
    rows.rows([other])
    assert backbone.asked == ["encoding", other.text]


@pytest.mark.parametrize(
    "change",
    [{"identity": "another encoder"}, {"precision": {"tf32": False}}, {"precision": {"attention": "math"}}],
)
def test_another_encoder_or_precision_is_another_row(tmp_path: Path, change: dict[str, Any]) -> None:
    made(tmp_path)[1](prompts_of(["a"]))
    backbone, rows = made(tmp_path, **change)
    rows(prompts_of(["a"]))
    assert backbone.asked == ["encoding", "a"]
    again, rows = made(tmp_path, **change)
    rows(prompts_of(["a"]))
    assert again.asked == []


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "swapped"])
def test_damaged_rows_are_encoded_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    _, rows = made(tmp_path)
    expected = rows(prompts_of(["a", "b"]))
    one, two = sorted((tmp_path / "cache").glob("*/*.safetensors"))
    content = one.read_bytes()
    for path in (one, two):
        match damage:
            case "cut":
                path.write_bytes(path.read_bytes()[:-1])
            case "changed":
                path.write_bytes(path.read_bytes()[:-1] + b"\x55")
            case "emptied":
                path.write_bytes(b"")
            case "swapped":
                path.write_bytes(two.read_bytes() if path == one else content)
    backbone, rows = made(tmp_path)
    assert same(rows(prompts_of(["a", "b"])), expected)
    assert sorted(backbone.asked) == ["a", "b", "encoding"]
    (record,) = caplog.records
    assert "is damaged (" in record.message
    healed, rows = made(tmp_path)
    assert same(rows(prompts_of(["a", "b"])), expected)
    assert healed.asked == []


def test_rows_that_cannot_be_stored_are_encoded_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Encoder, "unconditional", lambda self, prompts: Conditioning({"c": torch.zeros(1, 1).expand(len(prompts), 8)})
    )
    _, rows = made(tmp_path)
    rows.unconditional(prompts_of(["a"]))
    assert not (tmp_path / "cache").exists()


def test_nothing_is_kept_without_the_setting(tmp_path: Path) -> None:
    config = RunConfig.model_validate(run_data(tmp_path / "run"))
    assert config.backbone.cache is None
    assert open_stored_rows(config, Encoder(config.backbone, ToyOptions(), device=CPU), CPU) is None


def test_a_backbone_that_does_not_say_what_its_rows_depend_on(tmp_path: Path) -> None:
    data = run_data(tmp_path / "run")
    section = RunConfig.model_validate(data | {"backbone": data["backbone"] | {"cache": {}}}).backbone
    with pytest.raises(UserError, match=r"^backbone\.cache: .*Backbone\.encoder_identity"):
        check_section(ToyBackbone, section)
    check_section(Encoder, section)
    with pytest.raises(PluginError, match="`encoder_identity` must return a text"):
        made(tmp_path, None)
