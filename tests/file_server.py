"""A web server on this machine that serves one file well, or in the ways in which servers and networks go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGE = b"<!DOCTYPE html>\n<html><body>Please log in to this network.</body></html>"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FileServer

    def do_GET(self):
        self.server.requests.append((self.path, dict(self.headers)))
        script = self.server.script
        (script.pop(0) if script else serve)(self)

    def do_CONNECT(self):
        self.server.requests.append((f"CONNECT {self.path}", dict(self.headers)))
        self.send_error(502)

    def log_message(self, *args):
        pass


class FileServer(ThreadingHTTPServer):
    """Every request takes the next answer of `script`; when that is empty, `content` is served as it should be.

    `requests` are the (path, headers) that came; `sent` counts the bytes of bodies.
    """

    daemon_threads = True

    def __init__(self, content: bytes, etag: str = '"1"'):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.etag = content, etag
        self.script: list[Callable[[_Handler], None]] = []
        self.requests: list[tuple[str, dict]] = []
        self.sent = 0
        self.stopping = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def ranges(self) -> list[str | None]:
        """The Range of every request."""
        return [headers.get("Range") for _, headers in self.requests]

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that hung up is no news."""


def _start_of(handler: _Handler) -> int:
    """The first byte wanted, 0 where no part is asked for, or the file is another one now."""
    wanted = handler.headers.get("Range", "")
    if not wanted or handler.headers.get("If-Range") not in (None, handler.server.etag):
        return 0
    return int(wanted.removeprefix("bytes=").removesuffix("-"))


def _send(handler: _Handler, body: bytes, cut: int | None, pause: float = 0.0, piece: int = 1 << 16) -> None:
    """The body up to `cut` bytes, after which the connection breaks; `pause` seconds before every piece."""
    for i in range(0, len(body[:cut]), piece):
        if pause and handler.server.stopping.wait(pause):
            break
        data = body[:cut][i : i + piece]
        handler.server.sent += len(data)  # first: the client has its bytes before this thread runs on
        handler.wfile.write(data)
    if cut is not None:
        handler.close_connection = True


def serve(handler, *, ranges=True, conditions=True, cut=None, length=None, etag=True, pause=0.0, after=None) -> None:
    """Serve the content.

    ranges: False ignores Range. conditions: False ignores If-Range. cut: bytes of the body after which the connection
    breaks. length: added to the true Content-Length; None leaves it true. etag: False sends none. pause: seconds between
    pieces. after: called when all is sent.
    """
    server = handler.server
    if not conditions:
        del handler.headers["If-Range"]
    start = _start_of(handler) if ranges else 0
    if start >= len(server.content) and start:
        return handler.send_error(416)
    body = server.content[start:]
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content) + (length or 0)}")
    if etag:
        handler.send_header("ETag", server.etag)
    handler.send_header("Content-Type", "application/octet-stream")
    handler.send_header("Content-Length", str(len(body) + (length or 0)))
    handler.end_headers()
    if length:
        handler.close_connection = True
    _send(handler, body[: len(body) + min(0, length or 0)], cut, pause)
    if after is not None:
        after()


def answer(**how):
    """An answer for `script`: `serve` with these settings."""
    return lambda handler: serve(handler, **how)


def status(code: int):
    return lambda handler: handler.send_error(code)


def redirect(url: str):
    def reply(handler):
        handler.send_response(302)
        handler.send_header("Location", url)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return reply


def say(body: bytes, content_type: str = "text/html"):
    """Another body with status 200."""

    def reply(handler):
        handler.send_response(200)
        handler.send_header("Content-Type", content_type)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def chunked(body: bytes):
    """A body without Content-Length."""

    def reply(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))

    return reply


def stall(bytes_before: int):
    """The connection stays open, but nothing comes any more."""

    def reply(handler):
        server = handler.server
        handler.send_response(200)
        handler.send_header("ETag", server.etag)
        handler.send_header("Content-Length", str(len(server.content)))
        handler.end_headers()
        _send(handler, server.content, bytes_before)
        handler.wfile.flush()
        server.stopping.wait(20)

    return reply
