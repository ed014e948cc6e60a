"""Which proxy, if any, the environment names for an address.

Read as curl, requests and Go read it, in one place for all that makes requests; the libraries underneath are told
what was decided here and read nothing themselves.
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
    """A proxy that an address would have to be asked through, and cannot."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy and where it is named. url: with its password, for the library that uses it, and never shown."""

    url: str
    variable: str

    def __str__(self) -> str:
        return f"the proxy {shown_address(self.url)} ({self.variable})"


def route(address: str, environment: Mapping[str, str] | None = None) -> Proxy | None:
    """The proxy for an address such as http://gpu-7:8500, or None where it is reached directly.

    This machine (127.0.0.0/8, ::1, localhost and names under it) always is, and so is what NO_PROXY lists: names with
    all names under them, addresses, networks such as 10.0.0.0/8, each with a port or without, and * for everything.
    Lower-case variables go before upper-case ones, and those of a scheme before ALL_PROXY. HTTP_PROXY is not read where
    REQUEST_METHOD is set: under CGI a visitor's header sets it. Raises UnusableProxy, in one sentence with what can be
    done, for a proxy that would be used and cannot be.
    """
    names = os.environ if environment is None else environment
    url = httpx.URL(address)
    host = _plain(url.raw_host.decode("ascii"))
    if _is_here(host):
        return None
    found = _named(url.scheme, names)
    if found is None and environment is None:
        found = _of_the_system(url.scheme, host)
    if found is None or _excepted(host, url.port or PORTS.get(url.scheme), names):
        return None
    problem = _problem(found)
    if problem is not None:
        raise UnusableProxy(
            f"{shown_address(address)} would be asked through {found}, which cannot be used: {problem}; to do without "
            f"a proxy there, add {host} to NO_PROXY"
        )
    return found


# -- the server ---------------------------------------------------------------------------------------------------


def _plain(host: str) -> str:
    """A host in one way of writing: lower case, no brackets, no dot at its end."""
    return host.strip("[]").rstrip(".").lower()


def _address(host: str) -> Address | None:
    """The address that a host is, if it is none with a name; 127.1 and 0x7f000001 are addresses as well."""
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


def _is_here(host: str) -> bool:
    address = _address(host)
    if address is not None:
        return address.is_loopback or address.is_unspecified
    return host == "localhost" or host.endswith(".localhost")


# -- the proxy ----------------------------------------------------------------------------------------------------


def _named(scheme: str, names: Mapping[str, str]) -> Proxy | None:
    """What the environment names. A lower-case variable that is set and empty hides the upper-case one."""
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


def _of_the_system(scheme: str, host: str) -> Proxy | None:
    """What the settings of macOS name where no variable of the environment does."""
    if platform.system() != "Darwin" or any(name in os.environ for name in VARIABLES):
        return None
    value = urllib.request.getproxies().get(scheme)
    if not value or urllib.request.proxy_bypass(host):
        return None
    return Proxy(value if "://" in value else f"http://{value}", SYSTEM)


def _problem(proxy: Proxy) -> str | None:
    """Why a proxy cannot be used, and what can be done about it."""
    scheme, _, rest = proxy.url.partition("://")
    scheme = scheme.lower()
    place = shown_address(rest)
    if scheme in ("socks", "socks4", "socks4a"):
        return f"{scheme}:// is not supported; where it speaks SOCKS 5, write socks5://{place}"
    if scheme not in USABLE:
        return f"{shown_address(scheme)}:// is none of {', '.join(USABLE)}; an HTTP proxy is written http://{place}"
    try:
        url = httpx.URL(proxy.url)
        whole = bool(url.host) and url.port != 0 and (url.port or 1) < 65536
        whole = whole and not any(c.isspace() or not c.isprintable() for c in proxy.url)
    except (httpx.InvalidURL, ValueError):
        whole = False
    if not whole:
        return "it is no address; write it like http://proxy:3128, with @ : / ? # in a password as %40 %3A %2F %3F %23"
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        return "SOCKS needs the package socksio: pip install 'httpx[socks]'"
    return None


# -- exceptions ---------------------------------------------------------------------------------------------------


def _excepted(host: str, port: int | None, names: Mapping[str, str]) -> bool:
    """Whether NO_PROXY lists a host. What is no entry at all is passed over."""
    listed = names.get("no_proxy", "").strip() or names.get("NO_PROXY", "").strip()
    return any(_matches(entry.lower(), host, port) for entry in re.split(r"[,;\s]+", listed) if entry)


def _matches(entry: str, host: str, port: int | None) -> bool:
    if entry == "*":
        return True
    entry = entry.partition("://")[2] or entry
    network = _network(entry)
    if network is None:
        entry, wanted = _parted(entry.rstrip("/"))
        if wanted is not None and wanted != port:
            return False
        if entry == "*":
            return wanted is not None
        network = _network(entry)
    if network is not None:
        address = _address(host)
        return address is not None and address in network  # never where one is of version 4 and the other of 6
    name = _ascii(entry.removeprefix("*").strip(".")) if entry else ""
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    """The network of an entry such as 10.0.0.0/8, [fd00::]/8 or one address."""
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


def _parted(entry: str) -> tuple[str, int | None]:
    """(host, port) of an entry."""
    host, colon, port = entry.rpartition(":")
    if colon and port.isascii() and port.isdecimal() and len(port) < 6 and (":" not in host or host.startswith("[")):
        return host, int(port)
    return entry, None


def _ascii(name: str) -> str:
    """A name as it is asked for on the network."""
    if name.isascii():
        return name
    try:
        return httpx.URL(f"http://{name}").raw_host.decode("ascii")
    except (httpx.InvalidURL, ValueError):
        return name
