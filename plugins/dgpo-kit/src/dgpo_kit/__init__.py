"""Test kit for plugins.

In `conftest.py`, `pytest_plugins = ["dgpo_kit"]` provides the fixture `toy_run`: a training run of two iterations on a
toy model, with the components that you name. In a test module,

    from dgpo_kit import contract_tests

    test_contract = contract_tests("dgpo-brightness")

creates one test per requirement of every component that the distribution declares. `contracts` has the same checks as
functions, `toy` the toy model. Importing this package imports neither torch nor pytest.
"""

from __future__ import annotations

from dgpo_kit.collecting import contract_tests
from dgpo_kit.given import Given, NeedsInput, prompts_of

__all__ = ["Given", "NeedsInput", "contract_tests", "prompts_of"]

pytest_plugins = ["dgpo_kit.fixtures"]  # only pytest imports it
