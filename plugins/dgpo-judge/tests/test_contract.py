"""The contract tests, one per requirement, against the demo server."""

from __future__ import annotations

from dgpo_judge.demo_server import Server
from dgpo_kit import Given, contract_tests
from dgpo_kit.given import prompts_of

SERVER = Server()
URLS = {"urls": [SERVER.url]}

test_contract = contract_tests(
    "dgpo-judge",
    {
        "judge": Given(URLS),
        "judge-pairs": Given(URLS),
        "judge-list": Given(URLS),
        "pairwise": Given({"reward": {"use": "judge", "options": URLS}}, prompts=prompts_of(["a red square"])),
    },
)
