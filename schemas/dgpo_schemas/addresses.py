"""Validation and display of service and proxy URLs that users write."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from urllib.parse import SplitResult, urlsplit

from dgpo_schemas.text import clean

__all__ = ["EXAMPLE", "service_address", "shown_address"]

EXAMPLE = "http://gpu-7:8500"
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/*(?=[^/\s])")
HOST = re.compile(r"[^\s/?#@\[\]:%\\<>^`{|}\"]+")


def shown_address(text: str) -> str:
    """Format a URL, valid or not, for a message: on one line, without the user name and password before its last @."""
    scheme, mark, rest = text.rpartition("://") if text.count("://") == 1 else ("", "", text)
    if "@" in rest:
        rest = rest.rpartition("@")[2]
    elif "@" in text:
        scheme, mark, rest = "", "", text.rpartition("@")[2]
    return clean(scheme + mark + rest, 200)


def service_address(text: str) -> str:
    """Return `text` if it is a valid service URL: http or https, a host, and optionally a port and a path.

    Raises ValueError that states the problem and proposes a valid URL.
    """
    problem = _problem(text)
    if problem is None:
        return text
    proposal = _proposal(text)
    if _problem(proposal) is not None or proposal == text:
        proposal = EXAMPLE
    shown = shown_address(text)
    raise ValueError(f"'{shown}' is not a valid service URL: {problem}; write {shown_address(proposal)}")


def _problem(text: str) -> str | None:
    """Return what is wrong with a URL, or None if it is valid."""
    if not text.strip():
        return "it is empty"
    if any(c.isspace() or not c.isprintable() for c in text):
        return "it contains white space or an invisible character"
    if not text.startswith(("http://", "https://")):
        return "it must begin with http:// or https://"
    try:
        parts = urlsplit(text)
        host = parts.hostname or ""
    except ValueError:
        return "the brackets do not contain an IPv6 address" if "[" in text or "]" in text else "the host is invalid"
    authority = parts.netloc.rpartition("@")[2]
    if authority.count(":") > 1 and not authority.startswith("["):
        return "an IPv6 address must be in brackets"
    if "@" in text and "@" not in parts.netloc:
        return "a slash, ? or # in a password must be written as %2F, %3F or %23"
    if not _is_port(parts):
        return "the port must be a number from 1 to 65535"
    if not host:
        return "it has no host"
    if parts.query or parts.fragment or text.endswith(("?", "#")):
        return "it must end with the path, without ? or #"
    if authority.startswith("["):
        return None if _is_ipv6(host) else "the brackets do not contain an IPv6 address"
    return None if _is_host(host) else "the host is invalid"


def _is_host(host: str) -> bool:
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return bool(HOST.fullmatch(host)) and not host.startswith(".") and ".." not in host


def _is_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _proposal(text: str) -> str:
    """Guess the intended URL."""
    text = unicodedata.normalize("NFKC", text)
    text = "".join(c for c in text if c.isprintable() and not c.isspace())
    if re.fullmatch(r"\w*:?/*", text) and not text.isalnum():
        return EXAMPLE
    scheme, rest = "http", text.lstrip("/")
    bare = rest.partition("/")[0]
    if not (_is_ipv6(bare) or re.fullmatch(r"[^:/@]+:\d+", bare)) and (found := SCHEME.match(text)):
        scheme = "https" if re.fullmatch(r"h\w*s", found[1].lower()) else "http"
        rest = text[found.end() :]
    rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    authority, slash, path = rest.partition("/")
    user, at, place = authority.rpartition("@")
    if place.count(":") > 1 and not place.startswith("["):
        before, _, port = place.rpartition(":")
        if _is_ipv6(before) and port.isdecimal() and int(port[:9]) >= 1024:  # more likely a port than a group
            place = f"[{before}]:{port}"
        elif _is_ipv6(place):
            place = f"[{place}]"
    host, colon, port = place.rpartition(":")
    if colon and not host.count("[") > host.count("]") and not (port.isdecimal() and 0 < int(port[:9]) < 65536):
        place = f"{host}:8500"
    return f"{scheme}://{user}{at}{place}{slash}{path}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
