"""What the libraries say to nobody in particular is not said, and what they were told by others stays."""

from __future__ import annotations

import logging

import diffusers.utils.logging
import pytest

from dgpo_diffusers.libraries import quiet


def test_warnings_of_libraries_are_left_out_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="bitsandbytes")  # the command line sets it for its process
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
    said = diffusers.utils.logging.get_verbosity()
    with quiet():
        kernels.warning("no kernels")
        kernels.error("broken")
        assert diffusers.utils.logging.get_verbosity() == logging.ERROR
    kernels.warning("later")
    assert caplog.messages == ["broken", "later"]
    assert diffusers.utils.logging.get_verbosity() == said
