"""A few hundred corrupted things of a fixed seed; `python -m tests.fuzz --cases 5000` gives more of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dgpo_cli.main import main
from dgpo_kit.toy import run_data
from tests.fuzz.fuzzer import run
from tests.fuzz.subjects import SUBJECTS


def test_every_file_is_accepted_or_refused_in_words() -> None:
    *_, found = run(SUBJECTS["run-files"], cases=250, seed=0)
    assert found.failures == []
    for kind in ("run file", "small run", "ablation"):
        assert found.counts[kind, "refused"] > 40
        assert found.counts[kind, "accepted"] > 1, "a mutation need not be a mistake"


def test_every_prompt_file_is_read_or_refused_in_words() -> None:
    *_, found = run(SUBJECTS["prompt-files"], cases=150, seed=0)
    assert found.failures == []
    for kind in ("geneval", "ocr", "validate", "sample"):
        assert found.counts[f"prompts for {kind}", "accepted"] > 0
        assert found.counts[f"prompts for {kind}", "refused"] > 5


@pytest.mark.parametrize("cases", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_every_run_directory_is_read_or_refused_in_words(cases: int) -> None:
    *_, found = run(SUBJECTS["run-directories"], cases=cases, seed=0)
    assert found.failures == []
    assert found.counts.total() == cases


@pytest.mark.slow
def test_every_request_is_answered_in_words() -> None:
    *_, found = run(SUBJECTS["requests"], cases=400, seed=0)
    assert found.failures == []
    for kind in ("tensors", "json", "form", "check"):
        assert found.counts[f"request with {kind}", "accepted"] > 5
        assert found.counts[f"request with {kind}", "refused"] > 20


# What the fuzzer has found.


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"run": {"threads": 2**40}}, "run.threads: must be at most 1024"),
        ({"run": {"iterations": 10**400}}, "run.iterations"),
        ({"backbone": {"lora": {"rank": 2**63, "alpha": 4}}}, "backbone.lora.rank: must be at most 16384"),
        ({"timesteps": {"count": 2**40}}, "timesteps.count: must be at most 1000"),
    ],
)
def test_numbers_that_no_machine_can_hold(
    changes: dict[str, dict[str, object]], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = run_data(tmp_path)
    for section, values in changes.items():
        data[section] |= values
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(SystemExit) as caught:
        main(["validate", str(tmp_path / "run.yaml")])
    assert caught.value.code == 2
    assert complaint in capsys.readouterr().err


def test_options_of_a_value_that_are_no_mapping(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = Path(__file__).parents[2] / "examples" / "quickstart.yaml"
    values = ["uniform", {"use": "top-k", "options": 0.5}]
    ablation = {
        "name": "a",
        "base": str(base),
        "seeds": 1,
        "axes": [{"name": "w", "key": "weighting", "values": values}],
    }
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(ablation))
    with pytest.raises(SystemExit) as caught:
        main(["ablate", str(tmp_path / "a.yaml"), "--dry-run"])
    assert caught.value.code == 2
    assert "must be a section of keys and values, not 0.5" in capsys.readouterr().err
