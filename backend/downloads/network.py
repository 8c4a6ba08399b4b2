"""Asking strangers' servers: https only, never a machine inside this network, and a token only where it belongs.

A name is looked up once, every address that it has is checked, and the connection goes to one of those: a second
look-up could say something else. Redirects are followed here, one by one, each checked like the first address.
"""

import http.client
import ipaddress
import re
import socket
import ssl
import string
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from pydantic import BaseModel, SecretStr, ValidationError

from backend import __version__
from backend.errors import DownloadFailed, Refused

MAX_REDIRECTS = 8
MAX_JSON = 32 * 2**20
PATIENCE = 30.0
"""Seconds without a byte after which a server is given up."""
_REDIRECTS = (301, 302, 303, 307, 308)
_INSIDE = tuple(
    map(
        ipaddress.ip_network,
        ("100.64.0.0/10", "192.0.0.0/24", "2002::/16", "2001::/32", "64:ff9b::/96", "64:ff9b:1::/48", "fec0::/10"),
    )
)
"""Not meant for the whole world, or ways into an IPv4 network, though Python may call them global."""

Table = TypeVar("Table", bound=BaseModel)
Tokens = Mapping[str, SecretStr]
"""By the host that each is for."""
Resolve = Callable[[str, int], Collection[str]]


class Source(Protocol):
    """What bytes come from."""

    def read(self, amount: int, /) -> bytes: ...

    def read1(self, amount: int, /) -> bytes:
        """What has come by now, at most `amount` bytes; waits for the first."""
        ...


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in small letters."""
    url: str
    """After all redirects."""
    body: Source

    @property
    def length(self) -> int | None:
        """Bytes of the body, where the server says so."""
        text = self.headers.get("content-length", "")
        return int(text) if re.fullmatch(r"\d{1,15}", text) else None


def addresses_of(host: str, port: int) -> Collection[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


class Network:
    """`inside` are hosts, as `name:port`, that may lie in this network and be spoken to without https: for tests."""

    def __init__(
        self,
        tokens: Tokens | None = None,
        *,
        inside: Collection[str] = (),
        patience: float = PATIENCE,
        resolve: Resolve = addresses_of,
    ) -> None:
        self.tokens = tokens or {}
        self._inside = inside
        self.patience = patience
        self._resolve = resolve

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Answer]:
        """The answer to GET, whatever its status, after the redirects. Raises Refused or DownloadFailed."""
        for _ in range(MAX_REDIRECTS):
            parts = self.check(url)
            with closing(self._connection(parts)) as connection:
                given = _asked(connection, parts, {**(headers or {}), **self._credentials(parts)})
                target = given.headers.get("location")
                if given.status not in _REDIRECTS or not target:
                    yield given
                    return
                try:
                    url = urljoin(url, target)
                except ValueError:
                    raise DownloadFailed(f"{parts.hostname} redirects to no address: {target[:100]!r}") from None
        raise DownloadFailed(f"{parts.hostname} redirects in a circle")

    def table(self, url: str, of: type[Table]) -> Table:
        """The JSON that lies there, as it should be. Raises Refused or DownloadFailed."""
        with self.open(url, {"Accept": "application/json"}) as answer:
            check_status(answer)
            try:
                data = answer.body.read(MAX_JSON + 1)
            except (OSError, http.client.HTTPException) as error:
                raise DownloadFailed(f"{host_of(url)} broke off: {_said(error)}") from None
        if len(data) > MAX_JSON:
            raise DownloadFailed(f"{host_of(url)} answers more than {MAX_JSON >> 20} MB")
        try:
            return of.model_validate_json(data)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, wrong["loc"]))
            raise DownloadFailed(f"{host_of(url)} answers nonsense: {where or 'it'}: {wrong['msg'][:200]}") from None

    def check(self, url: str) -> SplitResult:
        """The parts of an address that may be spoken to; nothing is looked up. Raises Refused."""
        if re.search(r"[\s\x00-\x1f\x7f\\]", url) or len(url) > 4000:
            raise Refused(f"{url[:100]!r} is not an address: it holds characters that do not belong there")
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname, parts.port
        except ValueError:
            raise Refused(f"{url[:100]!r} is not an address") from None
        if host and parts.scheme == "http" and f"{host}:{parts.port}" in self._inside:
            return parts
        if parts.scheme != "https" or not host:
            raise Refused(f"{_shown(parts)} is refused: only addresses that begin with https:// are taken")
        if parts.username is not None or parts.password is not None:
            raise Refused("an address with a name or password in it is refused: it would be written down")
        return parts

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            found = self._resolve(host, port)
        except (OSError, UnicodeError):
            raise DownloadFailed(f"{host} is not known: is this machine on the internet?") from None
        if f"{host}:{port}" not in self._inside and not all(map(is_public, found)):
            raise Refused(f"{host} is refused: it is a machine inside this network")
        if not found:
            raise DownloadFailed(f"{host} has no address")
        return _Pinned(host, port, found, self.patience, is_secure=parts.scheme == "https")

    def _credentials(self, parts: SplitResult) -> dict[str, str]:
        token = self.tokens.get(parts.netloc)
        return {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}


class _Pinned(http.client.HTTPConnection):
    """A connection to the first that answers of addresses that have been checked, by the certificate's name."""

    def __init__(self, host: str, port: int, addresses: Collection[str], timeout: float, *, is_secure: bool) -> None:
        super().__init__(host, port, timeout=timeout)
        self._addresses = addresses
        self._is_secure = is_secure

    def connect(self) -> None:
        self.sock = self._reached()
        if self._is_secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)

    def _reached(self) -> socket.socket:
        *others, last = self._addresses
        for address in others:
            with suppress(OSError):  # IPv6 without a way out of this network, as a rule
                return socket.create_connection((address, self.port), self.timeout)
        return socket.create_connection((last, self.port), self.timeout)


def is_public(address: str) -> bool:
    """Whether it belongs to a machine that all the world may speak to."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    ip = getattr(ip, "ipv4_mapped", None) or ip
    is_special = ip.is_multicast or ip.is_reserved or ip.is_unspecified
    return ip.is_global and not is_special and not any(ip in each for each in _INSIDE if each.version == ip.version)


def host_of(url: str) -> str:
    return urlsplit(url).hostname or ""


def check_status(answer: Answer) -> None:
    """Raises DownloadFailed, with what can be done about it, for all but an answer with content."""
    if answer.status in (200, 206):
        return
    host = host_of(answer.url)
    said = {
        401: f"{host} wants to know who asks: save a token for it, and accept the model's licence on its page",
        403: f"{host} does not give it to you: accept the model's licence on its page, and save a token for it",
        404: f"there is nothing at this address of {host}",
        410: f"it is not at {host} any more",
        429: f"{host} has been asked too often; try again later",
    }
    raise DownloadFailed(said.get(answer.status, f"{host} answers with error {answer.status}; try again later"))


def _asked(connection: http.client.HTTPConnection, parts: SplitResult, headers: Mapping[str, str]) -> Answer:
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    path = quote(path, safe=string.punctuation)  # as browsers copy it, there may be letters of any script in it
    try:
        usual = {"User-Agent": f"Atelier/{__version__}", "Accept-Encoding": "identity"}
        connection.request("GET", path, headers={**usual, **headers})
        answer = connection.getresponse()
    except (OSError, http.client.HTTPException, UnicodeError, ValueError) as error:
        raise DownloadFailed(f"{parts.hostname} does not answer: {_said(error)}") from None
    return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, parts.geturl(), answer)


def _said(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it takes too long"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__)[:200]


def _shown(parts: SplitResult) -> str:
    """An address without what may be secret in it."""
    return repr(f"{parts.scheme}://{parts.hostname or ''}{parts.path}"[:100])
