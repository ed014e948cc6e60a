"""Use one thread: on a busy machine, two OpenMP threads can be much slower than one."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
