"""Prompt files, checkpoint manifests and log records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from dgpo_schemas.manifest import FORMAT_VERSION, read_manifest, sealed_json
from dgpo_schemas.metrics import EvaluationRecord, MetricsRecord, TimingRecord
from dgpo_schemas.prompts import read_prompts


def test_text_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes(b"\xef\xbb\xbfa red circle\r\n\n  two squares  \n\xc3\xa9t\xc3\xa9")
    assert [(r.prompt, r.metadata) for r in read_prompts(path).values()] == [
        ("a red circle", {}),
        ("two squares", {}),
        ("été", {}),
    ]


def test_json_prompts_keep_their_metadata(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    lines = [{"prompt": "a dog", "tag": "single", "include": [{"class": "dog", "count": 1}]}, {"prompt": "x"}]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    first, second = read_prompts(path).values()
    assert (first.prompt, first.metadata) == ("a dog", {"tag": "single", "include": [{"class": "dog", "count": 1}]})
    assert (second.prompt, second.metadata) == ("x", {})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", b"a", r"p.csv: a prompt file must end in .txt .*, .jsonl"),
        ("p", b"a", r"p: a prompt file must end in .txt"),
        ("p.txt", b"", r"p.txt: has no prompts"),
        ("p.jsonl", b"\n  \n", r"p.jsonl: has no prompts"),
        ("p.txt", b"good\nb\xffd\n", r"p.txt:2: not UTF-8 \(byte 2 of the line\)"),
        ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', r"p.jsonl:2: not JSON: Expecting value \(column 11\)"),
        ("p.jsonl", b"{'prompt': 'a'}", r"p.jsonl:1: not JSON: .*column 2"),
        ("p.jsonl", b'["a"]', r"p.jsonl:1: must be an object with a `prompt`, not a list"),
        ("p.jsonl", b'"a"', r"p.jsonl:1: must be an object with a `prompt`, not 'a'"),
        ("p.jsonl", b'\n{"text": "a"}', r"p.jsonl:2: `prompt` must be a non-empty string"),
        ("p.jsonl", b'{"prompt": " "}', r"p.jsonl:1: `prompt` must be a non-empty string"),
        ("p.jsonl", b'{"prompt": 3}', r"p.jsonl:1: `prompt` must be a non-empty string"),
        ("p.jsonl", b"[" * 100_000, r"p.jsonl:1: cannot read JSON: .*recursion"),
        ("p.jsonl", b'{"prompt": "a", "n": ' + b"9" * 5000 + b"}", r"p.jsonl:1: cannot read JSON"),
    ],
)
def test_prompt_files_that_are_refused(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/") + expected):
        read_prompts(tmp_path / name)


def test_prompt_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no.txt: no such prompt file"):
        read_prompts(tmp_path / "no.txt")
    (tmp_path / "d.txt").mkdir()
    with pytest.raises(ValueError, match=r"d.txt: is a directory, not a prompt file"):
        read_prompts(tmp_path / "d.txt")
    (tmp_path / "l.txt").symlink_to(tmp_path / "l.txt")
    with pytest.raises(ValueError, match=r"l.txt: cannot be read: Too many levels"):
        read_prompts(tmp_path / "l.txt")


def manifest(**changes: Any) -> str:
    """A manifest as text, sealed."""
    return sealed_json(
        {
            "format_version": FORMAT_VERSION,
            "iteration": 3,
            "updates": 6,
            "dgpo_version": "0.2.0",
            "files": {"weights.safetensors": {"sha256": "0" * 64, "bytes": 12}},
            "timesteps": {"t_min": 0.5},
            "best_iteration": None,
            "best_score": None,
            "counters": {"skipped_updates": 0},
            "logs": {"metrics.jsonl": {"sha256": "1" * 64, "bytes": 5}},
            **changes,
        }
    )


def test_a_manifest_is_read() -> None:
    found = read_manifest(manifest(), "m.json")
    assert (found.iteration, found.updates, found.timesteps) == (3, 6, {"t_min": 0.5})
    assert found.files["weights.safetensors"].bytes == 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            manifest(format_version=2),
            "m.json: unknown checkpoint format version 2; this version of dgpo reads 3",
        ),
        (manifest(format_version=True), "m.json: unknown checkpoint format version True"),
        (manifest(format_version=None), "m.json: unknown checkpoint format version None"),
        ("{", "m.json: not JSON: "),
        ("[" * 100_000, "m.json: not JSON: .*recursion"),
        ("[]", "m.json: must be an object, not a list"),
        (manifest(iteration=-1), "m.json: iteration: must be at least 0, not -1"),
        (manifest(extra=1), "m.json: extra: unknown key"),
        (manifest(logs=None), "m.json: logs: must be a section of keys and values, not null"),
        (manifest().replace('"updates": 6', '"updates": 7'), "m.json: its content differs from what was saved"),
        (
            manifest(files={"w": {"sha256": "zz", "bytes": 1}}),
            "m.json: files.w.sha256: 'zz' is not allowed here: SHA-256",
        ),
    ],
)
def test_manifests_that_are_refused(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        read_manifest(text, "m.json")


def test_every_mistake_of_a_manifest_is_reported() -> None:
    data = json.loads(manifest())
    del data["updates"], data["iteration"]
    with pytest.raises(ValueError, match=r"iteration: is missing.*\n.*updates: is missing"):
        read_manifest(sealed_json(data), "m.json")


@pytest.mark.parametrize("model", [MetricsRecord, TimingRecord, EvaluationRecord])
def test_every_logged_number_is_explained(model: type[MetricsRecord | TimingRecord | EvaluationRecord]) -> None:
    assert all(field.description for field in model.model_fields.values())


def test_records_survive_json() -> None:
    record = EvaluationRecord(
        iteration=0, model="base", reward="r", role="monitor", value=0.5, low=0.4, high=0.6, n=10, missing=0,
        groups={"a": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}},
    )  # fmt: skip
    line = json.dumps(record.model_dump(mode="json"), allow_nan=False)
    assert EvaluationRecord.model_validate_json(line) == record


def test_a_line_of_a_run_before_bounds_were_logged_can_be_read() -> None:
    record = MetricsRecord(
        iteration=1, updates=1, reward={"mean": 0.5, "std": 0.1, "missing": 0}, rewards={}, zero_variance_groups=0,
        missing_rewards=0, residual=None, sigmoid=None, clip_fraction=None, dsm=None, dsm_reference=None, kl=None,
        extra={}, grad_norm=None, learning_rate=0.1, skipped_updates=0, optimized_members=1, skipped_members=0,
        change_norm=None, diversity=0.1, statistics={}, t_min=0.4, t_max=0.9, timesteps={"t_min": 0.3, "t_max": 1.0},
    )  # fmt: skip
    line = record.model_dump(mode="json")
    assert MetricsRecord.model_validate(line) == record
    del line["timesteps"]
    old = MetricsRecord.model_validate(line)
    assert (old.t_min, old.timesteps) == (0.4, {})


def test_a_role_is_one_of_three() -> None:
    record = {"iteration": 0, "model": "ema", "reward": "r", "value": 0.5, "low": 0.4, "high": 0.6, "n": 1}
    record |= {"missing": 0, "groups": {}}
    for role in ("target", "monitor", "statistic"):
        assert EvaluationRecord.model_validate(record | {"role": role}).role == role
    for wrong in (record, record | {"role": "reward"}):
        with pytest.raises(ValueError, match="role"):
            EvaluationRecord.model_validate(wrong)
