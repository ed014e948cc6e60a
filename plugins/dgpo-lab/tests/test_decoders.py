"""`dgpo decoders`: the same latents by two decoders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny

from dgpo_cli.main import main
from dgpo_lab.commands.bench import _miniature
from dgpo_lab.decoders import lines, summary

NAN = float("nan")
SHORT = ["--set", "rollout.steps=2"]


def test_scores_are_compared_within_groups() -> None:
    full = torch.tensor([[0.1, 0.5, 0.3, 0.9], [5.0, 7.0, NAN, 6.5]], dtype=torch.float64)
    cheap = torch.tensor([[0.3, 0.6, 0.1, 1.4], [8.0, 9.5, 9.0, 7.5]], dtype=torch.float64)
    found = summary(full, cheap)
    first, second = (np.array([*row], dtype=float) for row in ([0.1, 0.5, 0.3, 0.9], [5.0, 7.0, 6.5]))
    third, fourth = (np.array([*row], dtype=float) for row in ([0.3, 0.6, 0.1, 1.4], [8.0, 9.5, 7.5]))
    a, b = (np.concatenate([x - x.mean(), y - y.mean()]) for x, y in ((first, second), (third, fourth)))
    assert found["samples"] == 7
    assert found["correlation"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found["same_sign"] == pytest.approx(np.mean(np.sign(a) == np.sign(b)))
    assert found["difference"] == pytest.approx(np.concatenate([third - first, fourth - second]).mean())
    assert lines({"mine": found})[-1].startswith("| mine | 2.9000 | 3.9143 | +1.0143 |")
    same = summary(torch.ones(2, 3), torch.ones(2, 3))
    assert (same["correlation"], same["same_sign"], same["difference"]) == (None, None, 0.0)


def run(capsys: pytest.CaptureFixture[str], directory: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and messages of the command on the miniature with few steps."""
    with pytest.raises(SystemExit) as caught:
        main(["decoders", str(_miniature(directory)), "-n", "2", "--limit", "2", *SHORT, *arguments])
    return int(caught.value.code or 0), *capsys.readouterr()


def test_a_run_without_a_tiny_decoder_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, tmp_path)
    assert code == 2
    assert "backbone.options.tiny_decoder: not set" in err


def test_the_table_of_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8,) * 4)
    sizes |= dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1,) * 4)
    AutoencoderTiny(latent_channels=4, **sizes).save_pretrained(tmp_path / "tiny")
    code, out, err = run(capsys, tmp_path, "--json", "--set", f"backbone.options.tiny_decoder={tmp_path / 'tiny'}")
    assert code == 0, err
    (found,) = json.loads(out).values()
    assert found["samples"] == 4
    assert found["full"] is not None
