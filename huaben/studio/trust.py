"""Who may do what: hosts, origins, tokens, signed picture addresses, body and rate limits, response headers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from .store import Store

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MAX_BODY_BYTES = 26 * 2**20
COOKIE = "huaben"
LINK_HOURS = 12
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def is_loopback(host: str) -> bool:
    """Return whether an address is this machine's own."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def envelope(status: int, message: str, *, code: str = "", hint: str = "", param: str | None = None) -> dict[str, Any]:
    """Return an error in the form the OpenAI API gives it, with the studio's code and hint."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code or None, "hint": hint}}


class Gate:
    """Lets in what may come in, before anything of the application runs.

    Args:
        app: the application behind it.
        store: knows the accounts.
        hosts: names the studio is reached by, beside the loopback ones; empty allows any name once there are tokens.
        rate: writes an account may begin a minute.
    """

    def __init__(self, app: Any, store: Store, *, hosts: Iterable[str] = (), rate: int = 240) -> None:
        self.app, self.store, self.hosts = app, store, frozenset(host.lower() for host in hosts)
        self.limit = RateLimit(rate)
        self._accounts: tuple[float, list[tuple[str, str, str]]] = (0.0, [])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check one request and hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        send = _with_headers(send)
        refused = self._refusal(scope, headers)
        if refused is not None:
            await _answer(send, *refused)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_BODY_BYTES:
            await _answer(send, 413, envelope(413, "the request is too large, at most 26 MB", code="too_large"))
            return
        await self.app(scope, _limited(receive), send)

    def accounts(self) -> list[tuple[str, str, str]]:
        """Return (id, name, token hash) of every account; asked of the store every two seconds at most."""
        then, known = self._accounts
        if time.monotonic() - then > 2.0 or not known:
            known = [(account.id, account.name, account.token_hash) for account in self.store.accounts()]
            self._accounts = (time.monotonic(), known)
        return known

    def who(self, token: str) -> tuple[str, str] | None:
        """Return (id, name) of the account a token belongs to; every account is compared, in constant time each."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
        found = None
        for id, name, known in self.accounts():
            if secrets.compare_digest(digest, known):
                found = (id, name)
        return found

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, dict[str, Any]] | None:
        """Return status and body if the request must not pass; else leave the account in the scope."""
        host = _name_of(headers.get("host", ""))
        accounts = self.accounts()
        if not (is_loopback(host) or host in self.hosts or (accounts and not self.hosts)):
            return 421, envelope(421, f"this studio is not called {host!r}", code="host", hint="--allow-host NAME")
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
            foreign = origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
            if foreign or site not in ("none", "same-origin"):
                return 403, envelope(403, "the request comes from another site", code="origin")
        path = scope["path"]
        scope["account"] = scope["account_name"] = None
        if accounts:
            token = _token(headers)
            found = self.who(token) if token else None
            if found is None and not _open(path, scope["method"]):
                return 401, envelope(
                    401, "a token is needed", code="token", hint="ask for one: huaben studio token add"
                )
            if found is not None:
                scope["account"], scope["account_name"] = found
        else:
            client = (scope.get("client") or ("127.0.0.1", 0))[0]
            if not is_loopback(client) and client != "testclient":
                hint = "huaben studio token add NAME, then restart"
                return 401, envelope(401, "without tokens only this computer is served", code="token", hint=hint)
        key = scope["account"] or str((scope.get("client") or ("", 0))[0])
        if scope["method"] not in ("GET", "HEAD", "OPTIONS") and not self.limit.allows(key):
            return 429, envelope(429, "too many requests", code="rate", hint="wait a little")
        return None


def _open(path: str, method: str) -> bool:
    """Return whether a path is for everyone: the page itself, signed pictures, health, and signing in."""
    if path == "/api/v1/login":
        return method == "POST"
    return path in ("/", "/healthz", "/favicon.ico") or path.startswith(("/page/", "/pictures/"))


def _token(headers: dict[str, str]) -> str:
    """Return the token of a request, from its header or its cookie."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    for part in headers.get("cookie", "").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE:
            return value
    return ""


def _name_of(host: str) -> str:
    """Return a Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


class RateLimit:
    """So many beginnings a minute for each key, a quarter of them at once."""

    def __init__(self, per_minute: int) -> None:
        self.rate, self.room = per_minute / 60.0, max(8.0, per_minute / 4.0)
        self._left: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def allows(self, key: str) -> bool:
        """Take one; False if there is none left."""
        now = time.monotonic()
        with self._lock:
            if len(self._left) > 10_000:
                self._left.clear()
            left, then = self._left.get(key, (self.room, now))
            left = min(self.room, left + (now - then) * self.rate)
            self._left[key] = (left - 1.0 if left >= 1.0 else left, now)
            return left >= 1.0


class Signer:
    """Addresses of pictures that work for some hours without a token.

    Args:
        key: secret of this studio.
    """

    def __init__(self, key: str) -> None:
        self.key = key.encode()

    def url(self, sha256: str, *, name: str = "") -> str:
        """Return the address of a picture; the same one for hours, so that browsers may keep it."""
        until = (int(time.time()) // 3600 + LINK_HOURS) * 3600
        tail = f"&name={quote(name)}" if name else ""
        return f"/pictures/{sha256}.png?until={until}&key={self._sign(sha256, until)}{tail}"

    def allows(self, sha256: str, until: int, key: str) -> bool:
        """Return whether an address is ours and not too old."""
        expected = self._sign(sha256, until)
        return secrets.compare_digest(expected.encode(), key.encode("utf-8", "replace")) and until >= time.time()

    def _sign(self, sha256: str, until: int) -> str:
        return hmac.new(self.key, f"{sha256}:{until}".encode(), hashlib.sha256).hexdigest()[:32]


def _with_headers(send: Send) -> Send:
    """Add the safety headers to every response."""

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            names = {name.lower() for name, _ in message["headers"]}
            message["headers"] = [*message["headers"], *(pair for pair in HEADERS if pair[0] not in names)]
        await send(message)

    return sending


class BodyTooLarge(Exception):
    """More came than may."""


def _limited(receive: Receive) -> Receive:
    """Count a body that does not say its length, and stop when it is too large."""
    total = 0

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > MAX_BODY_BYTES:
            raise BodyTooLarge
        return message

    return receiving


async def _answer(send: Send, status: int, body: dict[str, Any]) -> None:
    """Send one JSON answer."""
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
