"""Proxies of the environment: which servers they apply to, and errors for unusable ones."""

from __future__ import annotations

import importlib.util
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import dgpo_core.system.hub as hub_module
from dgpo_core.errors import UserError
from dgpo_core.system.proxies import UnusableProxy, route
from dgpo_core.system.routed import Routed, certificates
from dgpo_remote.failures import Down, Refused
from dgpo_remote.service.http import Client

PROXY = {"HTTP_PROXY": "http://name:secret@proxy:3128"}
NAMES = [name for low in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (low, low.upper())]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*NAMES, "REQUEST_METHOD"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9", "http://127.9.9.9", "http://[::1]:4", "http://[::ffff:127.0.0.5]", "http://localhost",
        "http://LOCALHOST.:8", "http://a.b.localhost", "http://127.1", "http://2130706433", "http://0x7f000001",
        "http://0.0.0.0:5", "http://[::]:5",
    ],
)  # fmt: skip
def test_this_machine_is_never_reached_through_a_proxy(url: str) -> None:
    assert route(url, {"ALL_PROXY": "socks://nonsense"}) is None


@pytest.mark.parametrize(
    ("listed", "url", "direct"),
    [
        ("10.0.0.0/8", "http://10.3.4.5", True),
        ("10.0.0.0/8", "http://11.3.4.5", False),
        ("10.0.0.0/8", "http://[::ffff:10.1.1.1]", True),
        ("10.0.0.1/8", "http://10.3.4.5:8500", True),
        ("10.0.0.1", "http://10.0.0.1:8500", True),
        ("10.0.0.1", "http://10.0.0.11", False),
        ("10.0.0.1:8500", "http://10.0.0.1:8500", True),
        ("10.0.0.1:8501", "http://10.0.0.1:8500", False),
        ("10", "http://10.0.0.1", False),
        ("fd00::1", "http://[fd00::1]:8", True),
        ("[fd00::1]", "http://[fd00:0::1]:8", True),
        ("[FD00::1]:8", "http://[fd00::1]:8", True),
        ("[fd00::1]:9", "http://[fd00::1]:8", False),
        ("fd00::/8", "http://[fd12::1]:8", True),
        ("[fd00::]/8", "http://[fd12::1]:8", True),
        ("fd00::/8", "http://10.0.0.1", False),
        ("::/0", "http://10.0.0.1", False),
        ("gpu", "http://gpu:8", True),
        ("GPU", "http://gpu.", True),
        ("gpu", "http://gpu7", False),
        ("gpu:80", "http://gpu", True),
        ("gpu:8", "http://gpu:9", False),
        ("lab.org", "http://a.lab.org", True),
        (".lab.org", "http://a.lab.org", True),
        (".lab.org", "http://lab.org", True),
        ("*.lab.org", "http://a.lab.org", True),
        ("lab.org", "http://collab.org", False),
        ("bücher.example", "http://a.bücher.example", True),
        ("*", "http://gpu", True),
        ("a, *", "http://gpu", True),
        ("http://gpu:8/", "http://gpu:8", True),
        (" a ;b gpu", "http://gpu", True),
        (":::bad,[,],/,http://,10.0.0.0/99,%,,.,*.,gpu:x,\x00,gpu", "http://gpu", True),
        (":::bad,[,],/,http://,10.0.0.0/99,%,,.,*.,gpu:x,\x00", "http://gpu", False),
        ("", "http://gpu", False),
    ],
)
@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_what_no_proxy_lists_is_reached_directly(name: str, listed: str, url: str, direct: bool) -> None:
    assert (route(url, {name: listed, **PROXY}) is None) == direct


@pytest.mark.parametrize(
    ("names", "url", "used"),
    [
        (PROXY, "http://gpu", "the proxy http://proxy:3128 (HTTP_PROXY)"),
        (PROXY, "https://gpu", "None"),
        ({"HTTPS_PROXY": "a:1"}, "https://gpu", "the proxy http://a:1 (HTTPS_PROXY)"),
        ({"ALL_PROXY": "a:1", "HTTP_PROXY": "b:2"}, "http://gpu", "the proxy http://b:2 (HTTP_PROXY)"),
        ({"ALL_PROXY": "a:1", "HTTP_PROXY": "b:2"}, "https://gpu", "the proxy http://a:1 (ALL_PROXY)"),
        ({"all_proxy": "a:1", "ALL_PROXY": "b:2"}, "http://gpu", "the proxy http://a:1 (all_proxy)"),
        ({"http_proxy": "", "HTTP_PROXY": "b:2"}, "http://gpu", "None"),
        ({"HTTP_PROXY": " ", "ALL_PROXY": " a:1 "}, "http://gpu", "the proxy http://a:1 (ALL_PROXY)"),
        ({"HTTP_PROXY": "b:2", "REQUEST_METHOD": "GET"}, "http://gpu", "None"),
        ({"http_proxy": "b:2", "REQUEST_METHOD": "GET"}, "http://gpu", "the proxy http://b:2 (http_proxy)"),
        ({"no_proxy": "", "NO_PROXY": "gpu", **PROXY}, "http://gpu", "None"),
    ],
)
def test_which_variable_counts(names: dict[str, str], url: str, used: str) -> None:
    assert str(route(url, names)) == used


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("socks://u:secret@p:1080", "socks:// is not supported; if the proxy supports SOCKS 5, write socks5://p:1080"),
        ("socks4a://p:1080", "socks4a:// is not supported; if"),
        (
            "quic://u:secret@p:1",
            "quic:// is not one of http, https, socks5, socks5h; for an HTTP proxy, write http://p:1",
        ),
        ("http://u:se#cret@p:1", "invalid address; write it like http://proxy:3128, with @ :"),
        ("http://u:secret@p:99999", "invalid address"),
        ("http://", "invalid address"),
        ("http://a b", "invalid address"),
        ("http://[::1", "invalid address"),
        ("\x1b[31m", "invalid address"),
        ('"http://p:1"', "is not one of http, https"),
    ],
)
def test_proxies_that_cannot_be_used(value: str, message: str) -> None:
    with pytest.raises(UnusableProxy) as caught:
        route("http://u:secret@gpu:8500/x", {"all_proxy": value})
    found = str(caught.value)
    assert found.startswith("http://gpu:8500/x: cannot connect through the proxy ")
    assert "(all_proxy): " in found
    assert message in found
    assert found.endswith("to connect without a proxy, add gpu to NO_PROXY")
    assert "secret" not in found
    assert "cret" not in found
    assert found.isprintable()


def test_socks_wants_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnusableProxy, match=r"SOCKS requires the package socksio: pip install 'httpx\[socks\]'"):
        route("http://gpu", {"ALL_PROXY": "socks5://p:1080"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert str(route("http://gpu", {"ALL_PROXY": "socks5h://p"})) == "the proxy socks5h://p (ALL_PROXY)"


# -- requests through them ----------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[Callable[[bytes], str]]:
    """`proxy(b"HTTP/1.1 ...")`: a proxy that sends this response to every request."""
    made: list[socket.socket] = []

    def start(answer: bytes) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        made.append(listening)

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listening.getsockname()[1]}"

    yield start
    for one in made:
        one.shutdown(socket.SHUT_RDWR)
        one.close()


def client(url: str = "http://gpu.invalid:8500") -> Client:
    return Client("rewards.0", None, 1, [url])


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_unreachable_proxy_is_named(
    monkeypatch: pytest.MonkeyPatch, free_port: Callable[[], int], scheme: str
) -> None:
    port = free_port()
    monkeypatch.setenv("ALL_PROXY", f"http://name:secret@127.0.0.1:{port}")
    url = f"{scheme}://gpu.invalid:8500"
    with pytest.raises(Down) as caught:
        client(url).ask("GET", url, timeout=5)
    assert str(caught.value).startswith("ConnectError: ")
    assert str(caught.value).endswith(f" through the proxy http://127.0.0.1:{port} (ALL_PROXY)")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_requires_a_password_is_named(
    monkeypatch: pytest.MonkeyPatch, proxy: Callable[[bytes], str], scheme: str
) -> None:
    place = proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    monkeypatch.setenv("ALL_PROXY", place)
    url = f"{scheme}://gpu.invalid:8500"
    with pytest.raises(Refused, match=rf"^the proxy http://{place} \(ALL_PROXY\) requires a user name and password"):
        client(url).ask("GET", url, timeout=5)


def test_an_error_page_of_a_proxy_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: Callable[[bytes], str]
) -> None:
    page = b"<html>\x1b[31m\xe2\x80\xaeno</html>"
    head = f"HTTP/1.1 502 Bad\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n".encode()
    place = proxy(head + page)
    monkeypatch.setenv("HTTP_PROXY", place)
    with pytest.raises(Down) as caught:
        client().ask("GET", "http://gpu.invalid:8500", timeout=5)
    assert str(caught.value) == (
        r"status 502: '<html>\x1b[31m\u202eno</html>' through the proxy "
        f"http://{place} (HTTP_PROXY)"
    )


def test_a_request_goes_through_its_proxy(monkeypatch: pytest.MonkeyPatch, proxy: Callable[[bytes], str]) -> None:
    body = json.dumps({"a": 1}).encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
    monkeypatch.setenv("HTTP_PROXY", proxy(head + body))
    assert client().ask_json("GET", "http://gpu.invalid:8500/x", timeout=5) == {"a": 1}


def test_an_unusable_proxy_is_an_error_only_if_it_applies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://p:1080")
    client("http://127.0.0.1:1").close()
    with pytest.raises(UserError, match=r"^rewards.0.service.urls: http://gpu:8500: cannot connect through the proxy "):
        client("http://gpu:8500")
    monkeypatch.setenv("NO_PROXY", "gpu")
    client("http://gpu:8500").close()


def test_other_clients_report_an_unusable_proxy_at_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks://p:1080")
    made: Any = Routed(httpx)
    with (
        httpx.Client(transport=made, trust_env=False) as one,
        pytest.raises(httpx.ConnectError, match=r"socks:// is not supported"),
    ):
        one.get("http://gpu:8500")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """`hub()`: huggingface_hub's client after `prepare_hub`, or None if it keeps its own."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    set_factory: list[Any] = []
    monkeypatch.setattr(hub_module, "_prepared", False)
    monkeypatch.setattr(huggingface_hub, "set_client_factory", set_factory.append, raising=False)
    made: list[Any] = []

    def prepared() -> Any:
        hub_module.prepare_hub()
        made.extend(factory() for factory in set_factory)
        return made[-1] if made else None

    yield prepared
    for one in made:
        one.close()


def test_the_hub_keeps_its_client_without_proxies(hub: Callable[[], Any]) -> None:
    assert hub() is None


@pytest.mark.parametrize("value", ["socks://p:1", "socks5://p:1", "http://127.0.0.1:1", "http://p:99999"])
@pytest.mark.parametrize("offline", [True, False])
def test_the_hub_reports_an_unusable_proxy_at_the_request(
    monkeypatch: pytest.MonkeyPatch, hub: Callable[[], Any], value: str, offline: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import httpx as library

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "socksio" else object())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setenv("ALL_PROXY", value)
    monkeypatch.setenv("NO_PROXY", "[::1],10.0.0.0/8,:::")
    client = hub()
    expected = errors.OfflineModeIsEnabled if offline else library.ConnectError
    for _ in range(2):
        with pytest.raises(expected):
            client.get("https://hub.invalid/model/config.json")
    reported = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(reported) == (0 if offline else 1)
    assert all(f"the proxy {value} (ALL_PROXY)" in line for line in reported)


# -- certificates ---------------------------------------------------------------------------------------------------


def test_certificates_of_the_environment_are_trusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    usual = certificates(True).get_ca_certs()
    assert len(usual) > 50
    one = tmp_path / "one.pem"
    one.write_text(ssl.DER_cert_to_PEM_cert(certificates(True).get_ca_certs(binary_form=True)[0]))
    monkeypatch.setenv("SSL_CERT_FILE", str(one))
    assert certificates(True).get_ca_certs() == usual[:1]
    used: Any = Routed(httpx)._transport(None, True)
    assert used._pool._ssl_context.get_ca_certs() == usual[:1]
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match=r"^SSL_CERT_FILE: '.*none.pem' cannot be read as certificates"):
        client("https://gpu:1")
    client("http://gpu:1").close()
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert certificates(True).get_ca_certs() == []
    assert certificates(False).verify_mode == ssl.CERT_REQUIRED
