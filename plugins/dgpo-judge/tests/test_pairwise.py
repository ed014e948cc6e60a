"""The comparison by another reward is its rank transform, with average ranks for ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from dgpo_core.contracts import RewardModel
from dgpo_core.errors import UserError
from dgpo_core.plugins.registry import get_registry
from dgpo_core.types import Prompt, Scores
from dgpo_judge.options import PairwiseOptions
from dgpo_judge.pairwise import PairwiseReward
from dgpo_schemas.base import UseBlock

CPU = torch.device("cpu")


class Listed(RewardModel):
    """The value of a sample is its first pixel; nan is missing."""

    range = (-1e9, 1e9)

    def provenance(self) -> dict[str, str]:
        return {"model": "listed"}

    def score(self, media: torch.Tensor, prompts: object) -> Scores:
        values = media[:, 0, 0, 0]
        return Scores(values, values.isnan())


def compared(values: list[float], monkeypatch: pytest.MonkeyPatch, **options: float) -> Scores:
    monkeypatch.setattr(type(get_registry()), "create", lambda *a, **k: Listed(None, device=CPU))
    reward = PairwiseReward(PairwiseOptions(reward=UseBlock(use="listed"), **options), device=CPU)
    media = torch.tensor(values)[:, None, None, None].expand(-1, 3, 2, 2)
    return reward.score_group(media, Prompt("x"), [("k", i) for i in range(len(values))])


@given(st.lists(st.sampled_from([0.0, 1.0, 2.5, -3.0]), min_size=2, max_size=12))
def test_ranks(values: list[float]) -> None:
    with pytest.MonkeyPatch.context() as patched:
        scores = compared(values, patched)
    expected = (rankdata(values) - 1) / (len(values) - 1)
    assert scores.values.tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert not scores.missing.any()


def test_missing_members(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = compared([3.0, float("nan"), 1.0], monkeypatch)
    assert scores.missing.tolist() == [False, True, False]
    assert scores.values[[0, 2]].tolist() == [1.0, 0.0]
    assert scores.diagnostics[0]["subscores"] == {"value": 3.0}
    assert scores.diagnostics[1]["reason"] == "the reward gave no value"
    assert compared([3.0, float("nan")], monkeypatch).missing.all()


def test_a_tie_band(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compared([0.0, 0.2, 1.0], monkeypatch, tie_band=0.25).values.tolist() == [0.25, 0.25, 1.0]


def test_group_rewards_are_refused() -> None:
    inner = {"use": "pairwise", "options": {"reward": {"use": "ocr"}}}
    with pytest.raises(UserError, match="pairwise: the reward pairwise compares the samples of a prompt already"):
        PairwiseReward(PairwiseOptions(reward=inner), device=CPU)


def test_it_reports_what_its_reward_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_registry()), "create", lambda *a, **k: Listed(None, device=CPU))
    reward = PairwiseReward(PairwiseOptions(reward=UseBlock(use="listed")), device=CPU)
    assert reward.provenance() == {"model": "listed"}


def test_it_scores_what_its_reward_scores() -> None:
    reward = PairwiseReward(PairwiseOptions(reward={"use": "ocr"}), device=CPU)
    assert reward.media == {"image", "video"}
    reward.close()
