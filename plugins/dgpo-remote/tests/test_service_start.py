"""Errors at the start of a run with a reward behind servers."""

# ruff: noqa: F401, F811 - fixtures are imported to be found

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from dgpo_core.errors import UserError
from dgpo_remote.service.service import ServiceReward
from dgpo_schemas.sections.rewards import RewardBlock
from dgpo_schemas.service import PROTOCOL
from tests.scripted import (
    DESCRIPTION,
    HTML,
    Answer,
    Make,
    Samples,
    Scripted,
    Serve,
    _impatient,
    as_json,
    script,
    service,
)


# -- errors at the start --------------------------------------------------------------------------------------------
def refused(make: Make, use: str = "conv", **block: Any) -> str:
    with pytest.raises(UserError) as caught:
        make(use, **block)
    return str(caught.value)


def test_unavailable_servers_are_reported(
    make: Make, free_port: Callable[[], int], caplog: pytest.LogCaptureFixture
) -> None:
    urls = [f"http://127.0.0.1:{free_port()}", "http://name:password@127.0.0.1:1"]
    message = refused(make, service=service(*urls))
    first, *rest = message.splitlines()
    assert first == "rewards.0.service.urls: no server responds; start one with `dgpo serve`:"
    assert rest[0].startswith(f"  {urls[0]}: ConnectError")
    assert rest[1].startswith("  http://127.0.0.1:1: ConnectError")
    assert "password" not in message + caplog.text
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]  # logged once, at the first failure
    assert record.getMessage().startswith(f"rewards.0.service: waiting for {urls[0]} (ConnectError: ")
    assert "refused" in record.getMessage()
    assert record.getMessage().endswith("; up to 0.3 s more; then the run stops")


def test_errors_of_the_client_are_not_retried(make: Make, samples: Samples, serve: Serve) -> None:
    reward = make("conv", service=service(serve("conv"), retries=3))
    assert isinstance(reward, ServiceReward)
    calls: list[Any] = []

    def broken(server: Any) -> Any:
        calls.append(server)
        raise ValueError("a mistake in this program")

    with pytest.raises(ValueError, match="a mistake in this program"):
        reward._ask(broken, "")
    assert len(calls) == 1
    assert reward.score(*samples(2)).missing.tolist() == [False, False]


def test_a_server_that_is_loading_gets_more_time(script: Callable[..., Scripted], make: Make) -> None:
    loading = as_json({"error": {"kind": "busy", "message": "the service is loading"}}, 503)
    server = script(reward=[loading, loading, loading, as_json(DESCRIPTION)])
    assert make("conv", service=service(server)).range == (0.0, 1.0)
    message = refused(make, service=service(script(reward=[loading]), timeout=0.3))
    assert message.endswith("the service is loading")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (HTML, "is not a dgpo reward service: it did not respond with a JSON object: '<html>"),
        ((404, *HTML[1:]), "is not a dgpo reward service: it responds with status 404: '<html>"),
        (as_json({"detail": "Not Found"}, 404), "is not a dgpo reward service: it responds with status 404: '{"),
        (as_json([1]), "is not a dgpo reward service: it did not respond with a JSON object"),
        (as_json({"protocol": PROTOCOL}), "is not a dgpo reward service: its description is invalid"),
        (as_json({"error": {"kind": "request", "message": "Not Found"}}, 404), "responds: Not Found"),
        (
            as_json(DESCRIPTION | {"protocol": 7, "dgpo": "7.0"}),
            "(dgpo 7.0) uses protocol version 7, this dgpo",
        ),
        (as_json({}), "(dgpo of unknown version) uses protocol version None"),
        (as_json(DESCRIPTION | {"use": "other"}), "serves other, but `use` of rewards.0 is conv"),
    ],
)
def test_servers_that_serve_something_else(
    script: Callable[..., Scripted], make: Make, answer: Answer, message: str
) -> None:
    server = script(reward=[answer])
    found = refused(make, service=service(server))
    assert found.startswith(f"rewards.0.service.urls: {server.url} ")
    assert message in found


def test_options_that_differ(script: Callable[..., Scripted], make: Make) -> None:
    server = script()
    assert make("conv", service=service(server), options={"scale": 1}).range == (0.0, 1.0)
    found = refused(make, service=service(server), options={"seed": 5})
    assert found.endswith("serves conv with options.seed: 0, but `options.seed` of rewards.0 is 5")
    found = refused(make, service=service(server), options={"sede": {"a": 1}})
    assert found.endswith("options.sede: 'nothing', but `options.sede` of rewards.0 is {'a': 1}")
    other = script(reward=[as_json(DESCRIPTION | {"options": {"seed": 1, "scale": 1.0}})])
    assert f"{other.url} serves conv with other options than the other servers" in refused(
        make, service=service(server, other)
    )


def test_servers_with_different_models_are_not_mixed(script: Callable[..., Scripted], make: Make) -> None:
    """A description without provenance is that of an earlier version."""
    models = ({"model": "a"}, {"model": "b"}, {})
    one, other, without = (script(reward=[as_json(DESCRIPTION | {"provenance": model})]) for model in models)
    same = script(reward=[as_json(DESCRIPTION | {"provenance": {"model": "a"}})])
    assert make("conv", service=service(one, same)).provenance() == {"model": "a"}
    found = refused(make, service=service(one, other))
    assert found.endswith(f"{other.url} serves conv with {{'model': 'b'}}, the other servers with {{'model': 'a'}}")
    assert make("conv", service=service(without)).provenance() == {}
    assert make("conv", service=service(script())).provenance() == {}


def test_tokens(serve: Serve, make: Make, samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("conv", token="right")
    monkeypatch.delenv("REWARD_TOKEN", raising=False)
    found = refused(make, service=service(server, token_variable="REWARD_TOKEN"))
    assert found.startswith("rewards.0.service.token_variable: the environment variable REWARD_TOKEN is not set")
    monkeypatch.setenv("REWARD_TOKEN", "wrong")
    found = refused(make, service=service(server, token_variable="REWARD_TOKEN"))
    assert "the token in the environment variable REWARD_TOKEN does not match the server's" in found
    assert "set service.token_variable to the environment variable" in refused(make, service=service(server))
    monkeypatch.setenv("REWARD_TOKEN", "right\n")
    reward = make("conv", service=service(server, token_variable="REWARD_TOKEN"))
    assert reward.score(*samples(1)).missing.tolist() == [False]


@pytest.mark.parametrize("url", ["gpu-7:8500", "ftp://x", "http://", ""])
def test_invalid_urls_are_refused_by_the_schema(url: str) -> None:
    with pytest.raises(ValidationError, match=r"service.urls.0"):
        RewardBlock.model_validate({"use": "conv", "service": {"urls": [url]}})


def test_invalid_urls_are_refused_by_the_client(make: Make) -> None:
    found = refused(make, service={"urls": ["http://name:word@\u2603.example"]})
    assert found == (
        "rewards.0.service.urls: 'http://\u2603.example' is not a valid URL; write it like http://gpu-7:8500"
    )
