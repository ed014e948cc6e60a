"""Select the proxy for an address from environment variables.

Follows the conventions of curl, requests and Go. All HTTP clients of dgpo use this module; the libraries that they are
built on do not read the variables themselves.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import platform
import re
import socket
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from dgpo_core.system.proxy_names import VARIABLES
from dgpo_schemas.addresses import shown_address

__all__ = ["Proxy", "UnusableProxy", "route"]

USABLE = ("http", "https", "socks5", "socks5h")
PORTS = {"http": 80, "https": 443}
SYSTEM = "the system's settings"
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class UnusableProxy(Exception):
    """A selected proxy is invalid or not supported."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and the variable that names it. url: includes the password; never show it."""

    url: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {shown_address(self.url)} ({self.variable})"


def route(address: str, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """Return the proxy for an address such as http://gpu-7:8500, or None for a direct connection.

    Connections to this machine (127.0.0.0/8, ::1, localhost and its subdomains) are always direct, as are those to
    entries of NO_PROXY: host names including their subdomains, addresses, networks such as 10.0.0.0/8, each with an
    optional port, and * for all hosts. Lower-case variables take precedence over upper-case ones, and those of a scheme
    over ALL_PROXY. HTTP_PROXY is ignored if REQUEST_METHOD is set, because under CGI a request header sets it.
    Raises UnusableProxy, whose message includes the remedy, if the selected proxy cannot be used.
    """
    names = os.environ if environment is None else environment
    url = httpx.URL(address)
    host = _plain(url.raw_host.decode("ascii"))
    if _is_local(host):
        return None
    found = _from_environment(url.scheme, names)
    if found is None and environment is None:
        found = _from_system(url.scheme, host)
    if found is None or _excepted(host, url.port or PORTS.get(url.scheme), names):
        return None
    problem = _problem(found)
    if problem is not None:
        raise UnusableProxy(
            f"{shown_address(address)}: cannot connect through {found}: {problem}; to connect without a proxy, add "
            f"{host} to NO_PROXY"
        )
    return found


# -- the server ---------------------------------------------------------------------------------------------------


def _plain(host: str) -> str:
    """Normalize a host: lower case, no brackets, no trailing dot."""
    return host.strip("[]").rstrip(".").lower()


def _address(host: str) -> Address | None:
    """Parse a host as an IP address, including forms such as 127.1 and 0x7f000001; None for a host name."""
    try:
        found: Address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if not re.fullmatch(r"(0x[0-9a-f]*|[0-9]+)(\.(0x[0-9a-f]*|[0-9]+)){0,3}", host):
            return None
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, ValueError):
            return None
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found


def _is_local(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


# -- the proxy ----------------------------------------------------------------------------------------------------


def _from_environment(scheme: str, names: Mapping[str, str]) -> Proxy | None:
    """Return the proxy of an environment variable. An empty lower-case variable hides the upper-case one."""
    for name in (f"{scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if variable == "HTTP_PROXY" and "REQUEST_METHOD" in names:
                continue
            if variable not in names:
                continue
            if value := names[variable].strip():
                return Proxy(value if "://" in value else f"http://{value.lstrip('/')}", variable)
            break
    return None


def _from_system(scheme: str, host: str) -> Proxy | None:
    """Return the proxy of the macOS settings if no environment variable is set."""
    if platform.system() != "Darwin" or any(name in os.environ for name in VARIABLES):
        return None
    value = urllib.request.getproxies().get(scheme)
    if not value or urllib.request.proxy_bypass(host):
        return None
    return Proxy(value if "://" in value else f"http://{value}", SYSTEM)


def _problem(proxy: Proxy) -> str | None:
    """Return why a proxy cannot be used, with the remedy, or None if it can."""
    scheme, _, rest = proxy.url.partition("://")
    scheme = scheme.lower()
    place = shown_address(rest)
    if scheme in ("socks", "socks4", "socks4a"):
        return f"{scheme}:// is not supported; if the proxy supports SOCKS 5, write socks5://{place}"
    if scheme not in USABLE:
        return f"{shown_address(scheme)}:// is not one of {', '.join(USABLE)}; for an HTTP proxy, write http://{place}"
    try:
        url = httpx.URL(proxy.url)
        valid = bool(url.host) and url.port != 0 and (url.port or 1) < 65536
        valid = valid and not any(c.isspace() or not c.isprintable() for c in proxy.url)
    except (httpx.InvalidURL, ValueError):
        valid = False
    if not valid:
        return "invalid address; write it like http://proxy:3128, with @ : / ? # in a password as %40 %3A %2F %3F %23"
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "SOCKS requires the package socksio: pip install 'httpx[socks]'"
    return None


# -- exceptions ---------------------------------------------------------------------------------------------------


def _excepted(host: str, port: int | None, names: Mapping[str, str]) -> bool:
    """Return whether NO_PROXY lists a host. Invalid entries are ignored."""
    listed = names.get("no_proxy", "").strip() or names.get("NO_PROXY", "").strip()
    return any(_matches(entry.lower(), host, port) for entry in re.split(r"[,;\s]+", listed) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    entry = entry.partition("://")[2] or entry
    network = _network(entry)
    if network is None:
        entry, listed_port = _split_port(entry.rstrip("/"))
        if listed_port is not None and listed_port != port:
            return False
        if entry == "*":
            return listed_port is not None
        network = _network(entry)
    if network is not None:
        address = _address(host)
        return address is not None and address in network  # False for an IPv4 address and an IPv6 network
    name = _ascii(entry.removeprefix("*").strip(".")) if entry else ""
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """Parse an entry such as 10.0.0.0/8, [fd00::]/8 or a single address; None for a host name."""
    address, slash, length = entry.partition("/")
    address = address.removeprefix("[").removesuffix("]").partition("%")[0]
    try:
        found = ipaddress.ip_network(f"{address}{slash}{length}", strict=False)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Network):
        mapped = found.network_address.ipv4_mapped
        if mapped is not None and found.prefixlen >= 96:
            return ipaddress.IPv4Network((mapped, found.prefixlen - 96), strict=False)
    return found


def _split_port(entry: str) -> tuple[str, int | None]:
    """Split an entry into host and port."""
    host, colon, port = entry.rpartition(":")
    if colon and port.isascii() and port.isdecimal() and len(port) < 6 and (":" not in host or host.startswith("[")):
        return host, int(port)
    return entry, None


def _ascii(name: str) -> str:
    """Return a host name in its ASCII (IDNA) form."""
    if name.isascii():
        return name
    try:
        return httpx.URL(f"http://{name}").raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        return name
