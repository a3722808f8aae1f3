"""One file over HTTP: every way in which a server or a network may fail, against a server that does."""

from __future__ import annotations

import errno
import os
import random
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections import namedtuple

import pytest

from resshift_core import transfer
from resshift_core.transfer import StorageError, Transfer, TransferError, discard, is_allowed, origin_file

from .file_server import PAGE, answer, chunked, redirect, say, stall, status

CONTENT = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)


@pytest.fixture
def server(file_server):
    return file_server(CONTENT)


@pytest.fixture
def part(tmp_path):
    return tmp_path / "model.pth.part"


def fetch(server, part, size=None, on_progress=None) -> bytes:
    Transfer(f"{server.url}/model.pth", part, size, on_progress).run()
    return part.read_bytes()


def test_one_request_and_rising_progress(server, part):
    seen = []
    assert fetch(server, part, on_progress=lambda *at: seen.append(at)) == CONTENT
    assert len(server.requests) == 1
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_broken_connection_is_resumed(server, part, size):
    server.script = [answer(cut=100_000), answer(cut=100_000)]
    assert fetch(server, part, size) == CONTENT
    assert server.ranges() == [None, "bytes=100000-", "bytes=200000-"]
    assert server.sent == len(CONTENT)  # not a byte twice


def test_the_next_run_goes_on_from_there(server, part):
    server.script = [answer(cut=100_000), status(404)]
    with pytest.raises(TransferError, match="404"):
        fetch(server, part)
    assert part.read_bytes() == CONTENT[:100_000]
    server.requests.clear()
    assert fetch(server, part) == CONTENT
    headers = server.requests[0][1]
    assert (headers["Range"], headers["If-Range"]) == ("bytes=100000-", '"1"')


def test_a_stop_keeps_what_came(server, part):
    def stop(done, total):
        if done > 50_000:
            raise KeyboardInterrupt

    server.script = [answer(pause=0.01)]
    with pytest.raises(KeyboardInterrupt):
        fetch(server, part, on_progress=stop)
    assert 50_000 < part.stat().st_size < len(CONTENT)
    assert fetch(server, part) == CONTENT and server.ranges()[-1] is not None


def test_without_a_validator_only_a_known_size_is_resumed(server, part):
    """Nobody could tell whether the rest belongs to the same file; a known file's hash is checked at the end."""
    server.script = [answer(cut=100_000, etag=False), answer(etag=False)]
    assert fetch(server, part) == CONTENT
    assert server.ranges() == [None, None]
    discard(part)
    server.requests.clear()
    server.script = [answer(cut=100_000, etag=False), answer(etag=False)]
    assert fetch(server, part, len(CONTENT)) == CONTENT
    assert server.ranges() == [None, "bytes=100000-"]


def test_a_server_that_ignores_range(server, part):
    server.script = [answer(cut=100_000), answer(ranges=False)]
    assert fetch(server, part) == CONTENT
    assert len(server.requests) == 2


def test_a_server_that_ignores_range_and_always_breaks(server, part):
    server.script = [answer(ranges=False, cut=100_000) for _ in range(50)]
    with pytest.raises(TransferError, match="broke off after 100000 of 300000 bytes"):
        fetch(server, part)
    assert len(server.requests) == 1 + transfer.ATTEMPTS


@pytest.mark.parametrize("conditions", [True, False], ids=["If-Range kept", "If-Range ignored"])
@pytest.mark.parametrize("etag", [True, False], ids=["new ETag", "no ETag"])
def test_the_file_changes_between_attempts(server, part, conditions, etag):
    """With or without the server's help, no mixture of two files comes out."""
    server.script = [answer(cut=100_000, after=lambda: change(server)), answer(conditions=conditions, etag=etag)]
    assert fetch(server, part) == OTHER


def change(server):
    server.content, server.etag = OTHER, '"2"'


def test_the_file_became_shorter(server, part):
    part.write_bytes(OTHER)
    origin_file(part).write_text(f'{{"url": "{server.url}/model.pth", "validator": "\\"1\\"", "total": 400000}}')
    assert fetch(server, part) == CONTENT
    assert server.ranges() == ["bytes=310000-", None]  # 416, then from the beginning


def test_leftovers_of_unknown_origin_are_not_used(server, part):
    part.write_bytes(OTHER[:1000])
    assert fetch(server, part) == CONTENT
    part.write_bytes(OTHER)  # longer than the file can be
    assert fetch(server, part, len(CONTENT)) == CONTENT


def test_no_crash_leaves_old_bytes_with_a_new_origin(server, part, monkeypatch):
    """Else the next run would go on from bytes of another file."""

    def crash(path):
        raise KeyboardInterrupt

    part.write_bytes(OTHER[:1000])
    monkeypatch.setattr(transfer, "atomic_path", crash)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, part)
    assert not part.exists() and not origin_file(part).exists()


def test_a_complete_part_needs_no_request(server, part):
    part.write_bytes(CONTENT)
    assert fetch(server, part, len(CONTENT)) == CONTENT
    assert not server.requests


def test_a_length_that_is_too_long(server, part):
    """The server promises more than it has: it is asked for the rest a few times, and not believed."""
    server.script = [answer(length=500) for _ in range(50)]
    with pytest.raises(TransferError):
        fetch(server, part)
    assert len(server.requests) < 50
    discard(part)
    server.script = [answer(length=500)]
    with pytest.raises(TransferError, match="has 300500 bytes, the published one 300000"):
        fetch(server, part, len(CONTENT))


def test_a_length_that_is_too_short(server, part):
    server.script = [answer(length=-500)]
    with pytest.raises(TransferError, match="has 299500 bytes, the published one 300000"):
        fetch(server, part, len(CONTENT))
    assert not part.exists()


def test_no_length_at_all(server, part):
    server.script = [chunked(CONTENT)]
    assert fetch(server, part) == CONTENT
    server.script = [chunked(CONTENT[:-1])]
    assert fetch(server, part, len(CONTENT)) == CONTENT
    discard(part)
    server.script = [chunked(CONTENT + b"more")]
    with pytest.raises(TransferError, match="more than 300000 bytes"):
        fetch(server, part, len(CONTENT))


def test_endless_files_end(server, part, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_BYTES", 200_000)
    server.script = [chunked(CONTENT)]
    with pytest.raises(TransferError, match="more than 200000 bytes"):
        fetch(server, part)


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_with_status_200(server, part, content_type):
    server.script = [say(PAGE, content_type)]
    with pytest.raises(TransferError, match="a web page came instead of the file"):
        fetch(server, part, len(CONTENT))
    assert len(server.requests) == 1 and not part.exists()


def test_a_web_page_does_not_cost_what_came_before(server, part):
    server.script = [answer(cut=100_000), say(PAGE)]
    with pytest.raises(TransferError, match="web page"):
        fetch(server, part)
    assert part.read_bytes() == CONTENT[:100_000]


@pytest.mark.parametrize("code", [401, 403, 404, 410, 418])
def test_a_refusal_is_final(server, part, code):
    server.script = [status(code)]
    with pytest.raises(TransferError, match=f"the server answers {code}"):
        fetch(server, part)
    assert len(server.requests) == 1 and not part.exists()


def test_trouble_that_passes(server, part):
    server.script = [status(500), status(503), status(429)]
    assert fetch(server, part) == CONTENT


def test_trouble_that_stays(server, part):
    server.script = [status(500)] * 50
    with pytest.raises(TransferError, match="the server answers 500"):
        fetch(server, part)
    assert len(server.requests) == transfer.ATTEMPTS


def test_a_stalled_connection(server, part, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_S", 2)  # more than a busy machine needs for the first 100,000 bytes
    server.script = [stall(100_000)]
    assert fetch(server, part) == CONTENT
    assert server.ranges() == [None, "bytes=100000-"]


def test_a_server_that_never_answers(server, part, monkeypatch):
    monkeypatch.setattr(transfer, "TIMEOUT_S", 0.3)
    server.script = [lambda handler: server.stopping.wait(20)]
    with pytest.raises(TransferError, match="nothing came for 0.3 s"):
        fetch(server, part)


@pytest.mark.parametrize("reply", ["stalls", "never answers", "is asked again later"])
def test_who_wants_no_more_need_not_wait_for_what_does_not_come(server, part, monkeypatch, reply):
    monkeypatch.setattr(transfer, "ASKING_S", 0.05)
    monkeypatch.setattr(transfer, "BACKOFF_S", 15)
    server.script = [
        {
            "stalls": stall(100_000),
            "never answers": lambda handler: server.stopping.wait(20),
            "is asked again later": status(503),
        }[reply]
    ]
    calls = []

    def stop_at_the_third(done, total):
        calls.append((done, total))
        if len(calls) > 2 and calls[-1] == calls[-3]:
            raise InterruptedError("Cancel")

    began = time.monotonic()
    with pytest.raises(InterruptedError, match="Cancel"):
        fetch(server, part, on_progress=stop_at_the_third)
    assert time.monotonic() - began < 5
    assert calls[-1] == ((100_000, len(CONTENT)) if reply == "stalls" else (0, None))
    if reply == "stalls":  # what had come stays for the next try
        assert fetch(server, part) == CONTENT and server.ranges() == [None, "bytes=100000-"]


def test_nobody_there(server, part):
    server.stop()
    with pytest.raises(TransferError, match="refused|failed"):
        fetch(server, part)
    assert not part.exists()


def test_redirects_within_the_rules_are_followed(server, part):
    server.script = [redirect("/elsewhere"), answer(cut=100_000), redirect(f"{server.url}/third")]
    assert fetch(server, part) == CONTENT
    assert [path for path, _ in server.requests] == ["/model.pth", "/elsewhere", "/model.pth", "/third"]
    assert server.ranges()[-1] == "bytes=100000-"


@pytest.mark.parametrize(
    "url", ["http://models.example/model.pth", "http://192.0.2.1/x", "ftp://models.example/x", "file:///etc/hosts"]
)
def test_redirects_out_of_the_rules_are_refused(server, part, url):
    server.script = [redirect(url)]
    with pytest.raises((TransferError), match="redirects to|302"):
        fetch(server, part)
    assert len(server.requests) == 1 and not part.exists()


def test_no_redirect_from_https_to_http_even_on_this_machine():
    request = urllib.request.Request("https://models.example/model.pth")
    handler = transfer._Redirects()
    with open(os.devnull, "rb") as body, pytest.raises(TransferError, match="http://127.0.0.1/x, which is not https"):
        handler.redirect_request(request, body, 302, "Found", {}, "http://127.0.0.1/x")
    with open(os.devnull, "rb") as body:
        assert (
            handler.redirect_request(request, body, 302, "Found", {}, "https://cdn.example/x").full_url
            == "https://cdn.example/x"
        )


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://models.example/x", True),
        ("http://localhost:8000/x", True),
        ("http://127.0.0.1/x", True),
        ("http://[::1]:80/x", True),
        ("http://models.example/x", False),
        ("http://127.0.0.1.models.example/x", False),
        ("http://localhost@models.example/x", False),
        ("ftp://127.0.0.1/x", False),
        ("file:///x", False),
        ("models.example", False),
        ("https://", False),
    ],
)
def test_which_addresses_are_allowed(url, allowed):
    assert is_allowed(url) is allowed


def test_the_proxy_of_the_environment_is_used(server, part, monkeypatch):
    """http goes through HTTP_PROXY with the whole address, https through HTTPS_PROXY as a tunnel, unless NO_PROXY names it."""
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("https_proxy", server.url)
    Transfer("http://localhost:9/model.pth", part).run()
    assert part.read_bytes() == CONTENT and server.requests[0][0] == "http://localhost:9/model.pth"
    discard(part)
    with pytest.raises(TransferError, match="502"):
        Transfer("https://models.example/model.pth", part).run()
    assert server.requests[1][0] == "CONNECT models.example:443"
    seen = len(server.requests)
    monkeypatch.setenv("no_proxy", "localhost")
    with pytest.raises(TransferError, match="refused|failed"):
        Transfer("http://localhost:9/model.pth", part).run()
    assert len(server.requests) == seen


def test_a_full_disk_is_noticed_before_and_while_writing(server, part, monkeypatch):
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: usage(10**6, 10**6 - 5, 5))
        with pytest.raises(StorageError, match="has 5 bytes of room, and 300000 are to come"):
            fetch(server, part)

    class Full:
        """A file on a disk with room for 100 000 bytes."""

        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            if self.file.tell() + len(data) > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(data)

        def flush(self):
            self.file.flush()

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "CHUNK", 1 << 14)
        patch.setattr(transfer, "open", lambda path, mode: Full(open(path, mode)), raising=False)
        with pytest.raises(StorageError, match="No space left|cannot be written"):
            fetch(server, part)
    assert 0 < part.stat().st_size <= 100_000
    assert fetch(server, part) == CONTENT and server.ranges()[-1] is not None


def test_https_trusts_the_hosts_certificates_too_unless_the_user_has_chosen(monkeypatch):
    """Windows and Macs: what Python itself knows is not all that servers show."""
    asked = []
    monkeypatch.setattr(transfer, "_certificates", [])
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda self, path=None, cadata=None: asked.append(path))
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert transfer._trusting() == []
    transfer.also_trust("all.pem")
    (handler,) = transfer._trusting()
    assert "all.pem" in asked and handler._context.verify_mode == ssl.CERT_REQUIRED and handler._context.check_hostname
    monkeypatch.setenv("SSL_CERT_FILE", "mine.pem")
    assert transfer._trusting() == [] and asked.count("all.pem") == 1


@pytest.mark.parametrize("code, system, told", [(20, "darwin", True), (10, "darwin", False), (20, "linux", False)])
def test_a_mac_that_trusts_nobody_is_told_the_remedy(code, system, told, monkeypatch):
    """Python of python.org, before the program beside it has fetched certificates; pip has its own."""
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, "unable to get local issuer certificate"
    monkeypatch.setattr(transfer.sys, "platform", system)
    words = str(transfer._interruption(urllib.error.URLError(error), opening=True))
    assert words.startswith("the server's certificate cannot be verified (unable to get local issuer certificate")
    assert ("Install Certificates.command" in words) == told
