"""Tells which proxy the environment names for a server. None leads to one's own machine."""

import ipaddress
import os
import re
from typing import Final, Literal, NamedTuple
from urllib.request import getproxies

Scheme = Literal["http", "https", "grpc"]

# gRPC's own variables, which have no capitals.
_GRPC: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_GRPC: Final = "no_grpc_proxy"
_AUTHORITY: Final = re.compile(r"(\[[^]]*\]|[^:]*)(?::(\d+))?")


class Proxy(NamedTuple):
    """A proxy, and the variable of the environment that names it."""

    url: str
    variable: str

    def __str__(self) -> str:
        """For messages: without the password that the URL may hold."""
        shown = re.sub("//.*@", "//", self.url)
        return f"the proxy {shown} that {self.variable} names"


def through(proxy: Proxy | None) -> str:
    """The end of a message about a server that was asked through `proxy`."""
    return "" if proxy is None else f", through {proxy}"


def split_authority(authority: str) -> tuple[str, int | None]:
    """Host, without brackets and in lower case, and port of `host:port`, where there is one."""
    found = _AUTHORITY.fullmatch(authority)
    host, port = found.groups() if found else (authority, None)
    host = host.replace("[", "").replace("]", "").rstrip(".").lower()
    return host, int(port) if port else None


def is_own_machine(host: str) -> bool:
    """Whether a host, as `split_authority` gives it, is this machine: its name or an address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = _address(host)
    return address is not None and (address.is_loopback or address.is_unspecified)


def proxy_of(scheme: Scheme, host: str, port: int | None) -> Proxy | None:
    """The proxy that leads to a server, None if the way is direct.

    For HTTP it is that of `http_proxy` or `https_proxy`, else of `all_proxy`, capitals or not. For
    gRPC it is that of `grpc_proxy`, else `https_proxy`, else `http_proxy`, if it is an HTTP proxy:
    gRPC knows no others.

    `no_proxy` (for gRPC `no_grpc_proxy`, if there is one) lists exceptions, with commas or spaces
    between them: names, each with all below it; addresses, in brackets or not; networks, such as
    10.0.0.0/8; any of them with a port; and `*`.

    Args:
      host: as `split_authority` gives it.
    """
    if is_own_machine(host):
        return None
    named = getproxies()
    exceptions = named.get("no", "")
    if scheme == "grpc":
        exceptions = os.environ.get(_NO_GRPC) or exceptions
        found = [(os.environ.get(name, ""), name) for name in _GRPC]
    else:
        found = [(named.get(kind, ""), _variable(kind)) for kind in (scheme, "all")]
    if any(_excepts(entry, scheme, host, port) for entry in re.split(r"[\s,]+", exceptions)):
        return None
    for url, variable in found:
        if url:
            proxy = Proxy(url if "://" in url else f"http://{url}", variable)
            known = scheme != "grpc" or proxy.url.startswith("http://")
            return proxy if known else None
    return None


def _variable(kind: str) -> str:
    name = f"{kind}_proxy"
    return name if os.environ.get(name) else name.upper()


def _excepts(entry: str, scheme: Scheme, host: str, port: int | None) -> bool:
    """Whether an entry of `no_proxy` means this server."""
    if entry == "*":
        return True
    only, separator, place = entry.rpartition("://")
    name, only_port = split_authority(place.partition("/")[0] if separator else place)
    if only not in ("", "all", scheme) or only_port not in (None, port):
        return False
    address = _address(host)
    if address is not None:
        try:
            return address in ipaddress.ip_network(name, strict=False)
        except ValueError:
            return False
    name = name.lstrip("*").lstrip(".")
    return bool(name) and f".{host}".endswith(f".{name}")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
