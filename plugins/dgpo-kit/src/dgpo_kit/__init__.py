"""The kit for tests of plugins.

In `conftest.py`, `pytest_plugins = ["dgpo_kit"]` gives the fixture `toy_run`: a training run of two
iterations on a toy model, with the components that you name. In a test module

    from dgpo_kit import contract_tests

    test_contract = contract_tests("dgpo-brightness")

makes a test of every promise of every component that the distribution declares. `contracts` has the same checks to call
one by one, `toy` the toy model. Importing this package imports nothing heavy, pytest included."""

from __future__ import annotations

from dgpo_kit.collecting import contract_tests
from dgpo_kit.given import Given, NeedsInput, prompts_of

__all__ = ["Given", "NeedsInput", "contract_tests", "prompts_of"]

pytest_plugins = ["dgpo_kit.fixtures"]  # so that only pytest imports it
