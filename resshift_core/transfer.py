"""One file over HTTPS into a `.part` file, going on where an earlier attempt stopped.

Proxies are those of the environment and the operating system, as urllib finds them (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
Nothing travels unencrypted except to this machine itself.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from .atomic_file import atomic_path
from .attended import Attended
from .checkpoint_file import HEAD, describe_text
from .errors import brief
from .version import __version__

log = logging.getLogger("resshift")

TIMEOUT_S = 30.0  # for a connection to stand, and for the next bytes to come
ATTEMPTS = 4  # in a row that bring the file no byte further
ASKING_S = 0.5  # between two calls of `on_progress`, which may stop the transfer, while nothing comes
BACKOFF_S = 1.0  # before the second of them; doubles every time
CHUNK = 1 << 18  # bytes
MAX_BYTES = 8 << 30  # where nobody has said how large the file is
PASSING = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses that may be different a moment later
NO_ISSUER = 20  # OpenSSL's number for a certificate whose issuer is not among those that are trusted
LOOPBACK = ("127.0.0.1", "localhost", "::1")

Progress = Callable[[int, "int | None"], None]


class TransferError(Exception):
    """The file cannot be had; the text is the reason, without a remedy."""


class StorageError(TransferError):
    """What came cannot be written to disk."""


class _Interrupted(Exception):
    """An attempt that ended early; another may go on from there. `hopeless`: unless not a byte has come so far."""

    def __init__(self, reason: str, hopeless: bool = False):
        super().__init__(reason)
        self.hopeless = hopeless


class _Changed(_Interrupted):
    """What is in the .part does not belong to what the server has now."""


# ------------------------------------------------------------------------------------------------- the .part file


@dataclass(frozen=True)
class _Origin:
    """What must not change between the attempts at one file; kept beside the .part, for the next run of the program."""

    url: str = ""
    validator: str = ""  # a strong ETag or a date, for If-Range
    total: int | None = None  # bytes


def origin_file(part: Path) -> Path:
    """Where the `_Origin` of a .part is kept."""
    return part.with_name(part.name + ".json")


def discard(part: Path) -> None:
    """Delete a .part and what belongs to it."""
    part.unlink(missing_ok=True)
    origin_file(part).unlink(missing_ok=True)


def bytes_of(part: Path) -> int:
    """Size of a file, 0 where there is none."""
    try:
        return part.stat().st_size
    except OSError:
        return 0


def _read_origin(part: Path) -> _Origin:
    try:
        origin = _Origin(**json.loads(origin_file(part).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return _Origin()
    sound = isinstance(origin.url, str) and isinstance(origin.validator, str) and isinstance(origin.total, (int, type(None)))
    return origin if sound else _Origin()


def _begin(part: Path, origin: _Origin) -> None:
    """Forget what was there. In this order, so that no crash leaves old bytes with a new origin."""
    discard(part)
    with atomic_path(origin_file(part)) as path:
        path.write_text(json.dumps(asdict(origin)), encoding="utf-8")


@contextmanager
def _storage(part: Path) -> Iterator[None]:
    """Failures of the disk, kept apart from those of the network, which are the same exception."""
    try:
        yield
    except OSError as error:
        raise StorageError(f"{part.parent} cannot be written ({error.strerror or error})") from error


# ----------------------------------------------------------------------------------------------------- the server


def is_allowed(url: str) -> bool:
    """https to anywhere, http to this machine only."""
    parts = urlsplit(url)
    return bool(parts.hostname) and (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in LOOPBACK))


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to http, nor to http on another machine."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        downgraded = req.type == "https" and urlsplit(newurl).scheme != "https"
        if downgraded or not is_allowed(newurl):
            fp.close()
            raise TransferError(f"the server redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _interruption(error: Exception, opening: bool) -> _Interrupted:
    """A failure of the connection in words. What fails at the very first opening is not tried again and again."""
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return _Interrupted(f"nothing came for {TIMEOUT_S:g} s", hopeless=opening)
    if isinstance(error, socket.gaierror):
        return _Interrupted("the server's name cannot be looked up, this machine seems to be offline", hopeless=True)
    if isinstance(error, ConnectionRefusedError):
        return _Interrupted("the connection was refused", hopeless=True)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _Interrupted(
            f"the server's certificate cannot be verified ({error.verify_message}{_remedy(error)})", hopeless=True
        )
    return _Interrupted(f"the connection failed ({error or type(error).__name__})")


def _remedy(error: ssl.SSLCertVerificationError) -> str:
    """What is to do on a Mac where no certificate can be verified, for Python has none that it trusts."""
    if sys.platform != "darwin" or error.verify_code != NO_ISSUER:
        return ""
    return '; if this Python is from python.org, run "Install Certificates.command" in its folder in Applications'


_certificates: list[str] = []


def also_trust(file: str) -> None:
    """Trust the certificates in a file, too. Hosts bring some: Python on Windows knows only those that another program has needed
    before, and that of python.org on a Mac knows none.
    """
    _certificates[:] = [file]


def _trusting() -> list[urllib.request.BaseHandler]:
    """What opens https so; nothing where there is no such file, or the user has chosen for all of Python."""
    if not _certificates or "SSL_CERT_FILE" in os.environ or "SSL_CERT_DIR" in os.environ:
        return []
    context = ssl.create_default_context()
    with contextlib.suppress(OSError):
        context.load_verify_locations(_certificates[0])
    return [urllib.request.HTTPSHandler(context=context)]


def _open(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    own = {"User-Agent": f"resshift/{__version__}", "Accept-Encoding": "identity"}
    try:
        request = urllib.request.Request(url, headers={**own, **headers})
        response = urllib.request.build_opener(_Redirects, *_trusting()).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            reason = f"the server answers {error.code} {error.reason}".rstrip()
        if error.code == 416:  # the rest that we asked for does not exist: the file became shorter
            raise _Changed("the file on the server changed") from error
        raise (_Interrupted if error.code in PASSING else TransferError)(reason) from error
    except (OSError, http.client.HTTPException) as error:
        raise _interruption(error, opening=True) from error
    except ValueError as error:  # UnicodeError among them: of this address, a proxy's, or one that the server redirects to
        raise TransferError(f"there is an address on the way that makes no sense ({brief(error)})") from error
    if response.status not in (200, 206):
        response.close()
        raise TransferError(f"the server answers {response.status} {response.reason}".rstrip())
    return response


def _read(response) -> bytes:
    """What has come, b"" at the end."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _interruption(error, opening=False) from error


def _validator(response) -> str:
    """What If-Range may carry: a strong ETag, else the date of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _total(response, start: int) -> int | None:
    """Bytes of the whole file by the server's words, or None where it does not say."""
    if response.status == 206:
        given = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", response.headers.get("Content-Range", "").strip())
        if given is None or int(given.group(1)) != start:
            raise _Changed("the server sends another part of the file than the one asked for")
        if given.group(3) != "*":
            return int(given.group(3))
    length = response.headers.get("Content-Length", "")
    return start + int(length) if length.isdecimal() and len(length) <= 18 else None


# --------------------------------------------------------------------------------------------------- the transfer


class _Told:
    """Hands progress on, and again where there is none."""

    def __init__(self, on_progress: Progress | None, done: int, total: int | None):
        self._on_progress, self._last = on_progress, (done, total)

    def __call__(self, done: int, total: int | None) -> None:
        self._last = done, total
        self.again()

    def again(self) -> None:
        if self._on_progress is not None:
            self._on_progress(*self._last)


@dataclass(frozen=True)
class Transfer:
    """What is fetched, and where to. `size`: bytes that the file must have, None if nobody has published it."""

    url: str
    part: Path
    size: int | None = None
    on_progress: Progress | None = None  # (bytes so far, bytes in all or None), also while nothing comes; may raise to stop

    def run(self) -> bool:
        """Fetch the file. Returns whether it was put together from the answers to several requests.

        Raises:
            TransferError: the server has no such file, or something else in its place, or the connection broke too often.
            StorageError: the disk is full, or the folder cannot be written.
        """
        told = _Told(self.on_progress, bytes_of(self.part), self.size)
        with Attended(told.again, ASKING_S) as attended:
            return self._run(attended, told)

    def _run(self, attended: Attended, told: _Told) -> bool:
        kept = best = bytes_of(self.part)
        failures, attempts = 0, 0
        while True:
            attempts += 1
            try:
                self._attempt(attended, told)
                return kept > 0 or attempts > 1
            except _Interrupted as error:
                reason = error
            if isinstance(reason, _Changed):
                with _storage(self.part):
                    discard(self.part)
            have = bytes_of(self.part)
            failures = 0 if have > best else failures + 1
            best = max(best, have)
            if failures >= ATTEMPTS or (reason.hopeless and have == kept):
                raise TransferError(str(reason)) from reason
            wait = BACKOFF_S * 2 ** max(0, failures - 1)
            log.warning("%s: %s; trying again in %g s.", self.url, reason, wait)
            attended(time.sleep, wait)

    def _attempt(self, attended: Attended, told: _Told) -> None:
        """One request, from the first missing byte on."""
        origin = _read_origin(self.part)
        origin = origin if origin.url == self.url else _Origin()
        start = bytes_of(self.part) if self.size or origin.validator else 0  # a rest must be known to fit
        goal = self.size or origin.total
        if start and start == goal:
            return
        if goal and start > goal:
            start = 0
        headers = {"Range": f"bytes={start}-"} if start else {}
        if start and origin.validator:
            headers["If-Range"] = origin.validator
        response = attended(_open, self.url, headers)
        try:
            start = start if response.status == 206 else 0
            total, head = _total(response, start), attended(_read, response)
            self._check(response, head, start, total, origin)
            with _storage(self.part):
                if not start:
                    _begin(self.part, _Origin(self.url, _validator(response), total))
            self._receive(lambda: attended(_read, response), head, start, total, told)
        finally:
            attended.later(response.close)

    def _check(self, response, head: bytes, start: int, total: int | None, origin: _Origin) -> None:
        """Refuse what is obviously not the file, or not the rest of it, before it is stored."""
        if response.headers.get_content_type() == "text/html" or (not start and describe_text(head[:HEAD]) == "a web page"):
            raise TransferError("a web page came instead of the file, perhaps the login page of this network")
        if self.size is not None and total is not None and total != self.size:
            raise TransferError(f"the file on the server has {total} bytes, the published one {self.size}")
        now = _validator(response)
        if start and ((origin.validator and now and now != origin.validator) or (origin.total and total != origin.total)):
            raise _Changed("the file on the server changed")

    def _receive(self, read: Callable[[], bytes], chunk: bytes, done: int, total: int | None, told: _Told) -> None:
        """Append the body, of which `chunk` is the beginning, to the `done` bytes that are there."""
        expected = self.size or total
        limit = expected or MAX_BYTES
        free = shutil.disk_usage(self.part.parent).free
        if expected and free < expected - done:
            raise StorageError(f"{self.part.parent} has {free} bytes of room, and {expected - done} are to come")
        told(done, expected)
        with _storage(self.part):
            file = open(self.part, "ab" if done else "wb")
        with file:
            while chunk:
                if done + len(chunk) > limit:
                    raise TransferError(f"the server sends more than {limit} bytes")
                with _storage(self.part):
                    file.write(chunk)
                    file.flush()
                done += len(chunk)
                told(done, expected)
                chunk = read()
        if expected is not None and done < expected:
            raise _Interrupted(f"the connection broke off after {done} of {expected} bytes")
