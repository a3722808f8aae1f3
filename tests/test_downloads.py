"""Models from the registry: licence, mirror, checks, pins, folders, several processes at once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import socket
import subprocess
import sys
import textwrap
import threading
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import resshift_core as rs
from resshift_core import detection, downloads, registry, transfer
from resshift_core.checkpoint import load_autoencoder
from resshift_core.downloads import download_missing, download_url, download_with_autoencoder, missing_files
from resshift_core.pins import pin

from .file_server import PAGE, answer, redirect, say, status
from .standin import fill

CONTENT = random.Random(3).randbytes(200_000)
TINY = rs.VQGANConfig(ch=32, ch_mult=(1, 2), num_res_blocks=(1, 1), n_embed=16)
ROOT = Path(__file__).parent.parent


def known(name: str, content: bytes = CONTENT) -> registry.Entry:
    """The registry's entry with the size and hash of `content`."""
    return replace(registry.REGISTRY[name], size=len(content), sha256=hashlib.sha256(content).hexdigest())


def pth(state, **options) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def tiny_autoencoder(config=TINY) -> dict[str, torch.Tensor]:
    return fill(rs.VQGAN(config)).state_dict()


@pytest.fixture
def server(file_server, monkeypatch):
    """A mirror with the file of `realsr_x4_s4`, whose hash is known."""
    monkeypatch.setitem(registry.REGISTRY, "realsr_x4_s4", known("realsr_x4_s4"))
    server = file_server(CONTENT)
    monkeypatch.setenv("RESSHIFT_MIRROR", f"{server.url}/mirror/")
    return server


@pytest.fixture
def unhashed(file_server, monkeypatch):
    """A mirror with `vq_f8_face`, of which nobody has published size or hash, in a tiny edition."""
    monkeypatch.setitem(detection.PUBLISHED_VQGANS, "vq_f8_face", TINY)
    server = file_server(pth(tiny_autoencoder()))
    monkeypatch.setenv("RESSHIFT_MIRROR", server.url)
    return server


# --------------------------------------------------------------------------------------------------- the usual way


def test_the_file_lies_in_the_models_folder_and_nothing_else(server, models_dir):
    path = rs.download("realsr_x4_s4")
    assert path == models_dir / "resshift_realsrx4_s4_v3.pth" and path.read_bytes() == CONTENT
    assert os.listdir(models_dir) == [path.name]
    assert server.requests[0][0] == "/mirror/zsyOAOA/ResShift/releases/download/v2.0/resshift_realsrx4_s4_v3.pth"


def test_another_folder(server, tmp_path, models_dir):
    registry.add_models_dir(tmp_path / "host")
    assert rs.download("realsr_x4_s4", folder=tmp_path / "host").parent == tmp_path / "host"
    assert registry.get_entry("realsr_x4_s4").find().parent == tmp_path / "host" and not models_dir.exists()


def test_a_folder_that_is_not_searched_is_looked_into_all_the_same(server, tmp_path):
    path = rs.download("realsr_x4_s4", folder=tmp_path / "own")
    assert rs.download("realsr_x4_s4", folder=str(tmp_path / "own")) == path
    assert len(server.requests) == 1 and os.listdir(tmp_path / "own") == [path.name]
    path.write_bytes(CONTENT[:-1])
    assert rs.download("realsr_x4_s4", folder=tmp_path / "own") == path and path.read_bytes() == CONTENT


def test_a_home_is_meant_by_a_tilde(server, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    registry.add_models_dir("~/models")
    assert rs.download("realsr_x4_s4", folder="~/models").parent == tmp_path / "models"
    assert registry.get_entry("realsr_x4_s4").find().parent == tmp_path / "models"


@pytest.mark.parametrize("error", [InterruptedError("enough"), TimeoutError("too long"), BrokenPipeError()])
def test_what_progress_raises_is_not_taken_for_a_failure_of_the_disk(server, error):
    def stop(done, total):
        raise error

    with pytest.raises(type(error)) as raised:
        rs.download("realsr_x4_s4", on_progress=stop)
    assert raised.value is error


def test_what_is_there_is_not_fetched_again(server):
    path = rs.download("realsr_x4_s4")
    assert rs.download("realsr_x4_s4") == path and len(server.requests) == 1
    path.rename(path.with_suffix(".safetensors"))  # as `convert` names it
    assert rs.download("realsr_x4_s4").suffix == ".safetensors" and len(server.requests) == 1


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[:-1] + b"!", b"", PAGE], ids=["short", "flipped", "empty", "page"])
def test_a_damaged_copy_is_replaced_where_it_lies(server, tmp_path, caplog, content):
    registry.add_models_dir(tmp_path)
    path = tmp_path / "ResShift_RealSRx4_s4_v3.PTH"  # people's own spelling
    path.write_bytes(content)
    assert rs.download("realsr_x4_s4") == path and path.read_bytes() == CONTENT
    assert "not usable and will be replaced" in caplog.text


STRANGERS = {
    "weights": lambda: pth({"mine": torch.ones(3)}), "training": lambda: pth({"mine": torch.ones(3), "args": Namespace(a=1)}),
    "legacy": lambda: pth({"mine": torch.ones(3)}, _use_new_zipfile_serialization=False),
    "safetensors": lambda: save({"mine": torch.ones(3)}),
}  # fmt: skip


@pytest.mark.parametrize("kind", STRANGERS)
def test_other_weights_under_the_name_are_moved_aside(server, models_dir, caplog, kind, monkeypatch):
    """They may be somebody's own work, also where this torch would not open them."""
    monkeypatch.setattr(torch, "__version__", "2.3.1 (pretended)")
    models_dir.mkdir(parents=True)
    path, own = models_dir / "resshift_realsrx4_s4_v3.pth", STRANGERS[kind]()
    path.write_bytes(own)
    assert rs.download("realsr_x4_s4") == path and path.read_bytes() == CONTENT
    aside = path.with_name(f"{path.name}.{hashlib.sha256(own).hexdigest()[:8]}")
    assert aside.read_bytes() == own and sorted(models_dir.iterdir()) == [path, aside]
    assert f"kept as {aside.name}" in caplog.text


@pytest.mark.parametrize("kind", ["weights", "safetensors"])
def test_half_of_a_file_is_not_kept(server, models_dir, kind):
    models_dir.mkdir(parents=True)
    path, own = models_dir / "resshift_realsrx4_s4_v3.pth", STRANGERS[kind]()
    path.write_bytes(own[: len(own) * 3 // 4])
    assert rs.download("realsr_x4_s4") == path and list(models_dir.iterdir()) == [path]


def test_damaged_notes_are_told_before_anybody_is_asked(server, models_dir):
    path = rs.download("realsr_x4_s4")
    (models_dir / "resshift-hashes.json").write_text("{")
    with pytest.raises(rs.CheckpointError, match="resshift-hashes.json cannot be read"):
        rs.download("realsr_x4_s4", confirm=lambda entry: pytest.fail("asked for nothing"))
    assert path.exists()


def test_hosts_fetch_what_is_missing_and_touch_nothing_else(server, models_dir, monkeypatch):
    monkeypatch.setitem(registry.REGISTRY, "vq_f4", known("vq_f4"))
    models_dir.mkdir(parents=True)
    path = models_dir / "resshift_realsrx4_s4_v3.pth"
    path.write_bytes(b"not what the registry says")
    asked = []
    made = download_missing("realsr_x4_s4", confirm=lambda entry: asked.append(entry.name) or True)
    assert made == [models_dir / "autoencoder_vq_f4.pth"] and asked == ["vq_f4"]
    assert path.read_bytes() == b"not what the registry says" and len(server.requests) == 1
    assert (
        download_missing("realsr_x4_s4") == [] and missing_files("sinsr_x4_s1", with_autoencoder=False)[0].name == "sinsr_x4_s1"
    )


def test_a_file_that_somebody_else_fetched_meanwhile_is_not_fetched_again(server, models_dir, monkeypatch):
    """Two models with one autoencoder: whoever comes second has looked for it before the first was done."""
    monkeypatch.setitem(registry.REGISTRY, "vq_f4", known("vq_f4"))
    monkeypatch.setitem(registry.REGISTRY, "bicsr_x4_s4", known("bicsr_x4_s4"))
    inner = []

    def second(entry):
        if not inner:
            inner.append(entry)
            rs.download("vq_f4")
        return True

    download_with_autoencoder("bicsr_x4_s4", confirm=second)
    assert [request[0].split("/")[-1] for request in server.requests].count("autoencoder_vq_f4.pth") == 1


def test_a_file_that_cannot_be_opened_is_a_sentence(server, monkeypatch):
    path = rs.download("realsr_x4_s4")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(downloads, "_check", refuse)
    with pytest.raises(rs.DownloadError, match=f"{path.name} cannot be opened .*Permission denied.* Check its permissions"):
        rs.download("realsr_x4_s4")


@pytest.mark.parametrize("variable, value", [
    ("RESSHIFT_MIRROR", "https://mirror.example/spiegel-ü"), ("https_proxy", "http://proxy..x:80"),
])  # fmt: skip
def test_addresses_that_make_no_sense_are_sentences(models_dir, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(rs.DownloadError, match="address on the way that makes no sense|looked up|connection"):
        rs.download("realsr_x4_s4")


@pytest.mark.parametrize("target", ["https://[::1/x", f"https://{'a' * 70}.example/x", "https://a..example/x"])
def test_redirects_to_nowhere_are_sentences(server, target):
    server.script = [redirect(target)]
    with pytest.raises(rs.DownloadError, match="could not be downloaded"):
        rs.download("realsr_x4_s4")


@pytest.mark.parametrize("total", ["a lot", [1], 1.5])
def test_notes_beside_a_part_that_make_no_sense_are_forgotten(server, models_dir, total):
    models_dir.mkdir(parents=True)
    part = models_dir / "resshift_realsrx4_s4_v3.pth.part"
    part.write_bytes(CONTENT[:100])
    transfer.origin_file(part).write_text(json.dumps({"url": "x", "validator": "", "total": total}))
    assert rs.download("realsr_x4_s4").read_bytes() == CONTENT


def test_progress(server):
    seen = []
    rs.download("realsr_x4_s4", on_progress=lambda *at: seen.append(at))
    assert seen[0] == (0, len(CONTENT)) and seen[-1] == (len(CONTENT), len(CONTENT))


def test_unknown_names(server):
    with pytest.raises(rs.InputError, match="no model called 'realsr'.*realsr_x4_s4"):
        rs.download("realsr")


def test_the_built_in_model_is_never_fetched(server, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "WEIGHTS_DIR", tmp_path)
    with pytest.raises(rs.DownloadError, match="part of this package"):
        rs.download("builtin")
    (tmp_path / "builtin.safetensors").write_bytes(b"x")
    assert download_with_autoencoder("builtin") == [tmp_path / "builtin.safetensors"]
    assert not server.requests


# ---------------------------------------------------------------------------------------------------- the licence


def test_the_licence_is_told_before_the_first_byte(server):
    requests_then = []
    handler = logging.Handler()
    handler.emit = lambda record: "S-Lab License 1.0" in record.getMessage() and requests_then.append(len(server.requests))
    logging.getLogger("resshift").addHandler(handler)
    try:
        rs.download("realsr_x4_s4")
    finally:
        logging.getLogger("resshift").removeHandler(handler)
    assert requests_then == [0]


def test_a_person_is_asked_before_the_first_byte(server, caplog):
    asked = []

    def confirm(entry):
        asked.append((entry.licence, len(server.requests)))
        return True

    rs.download("realsr_x4_s4", confirm=confirm)
    assert asked == [(registry.S_LAB, 0)]
    assert "licence" not in caplog.text and "License" not in caplog.text  # who asks has shown it


def test_no_means_no(server, models_dir):
    with pytest.raises(rs.Cancelled, match="was not downloaded.*S-Lab"):
        rs.download("realsr_x4_s4", confirm=lambda entry: False)
    assert not server.requests and not models_dir.exists()


def test_a_model_comes_with_its_autoencoder(server, monkeypatch):
    monkeypatch.setitem(registry.REGISTRY, "vq_f4", known("vq_f4"))
    asked = []

    def confirm(entry):
        asked.append((entry.name, len(server.requests)))
        return True

    paths = download_with_autoencoder("realsr_x4_s4", confirm=confirm)
    assert [path.name for path in paths] == ["resshift_realsrx4_s4_v3.pth", "autoencoder_vq_f4.pth"]
    assert asked == [("realsr_x4_s4", 0), ("vq_f4", 0)]  # both questions first
    assert download_with_autoencoder("vq_f4") == [paths[1]]


# ------------------------------------------------------------------------------------------- what came is not the file


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (say(CONTENT[:-1] + b"!", "application/octet-stream"), "Its sha256 is .*published file is"),
        (say(PAGE), "a web page came instead"),
        (say(b"Not Found", "application/octet-stream"), "has 9 bytes, the published one 200000"),
        (answer(length=-10), "has 199990 bytes"),
        (answer(length=10), "has 200010 bytes"),
        (status(403), "403 Forbidden"),
        (status(404), "404 Not Found"),
    ],
    ids=["flipped", "page", "text", "too short", "too long", "403", "404"],
)
def test_anything_else_is_refused(server, models_dir, reply, told):
    server.script = [reply]
    with pytest.raises(rs.DownloadError, match=told) as error:
        rs.download("realsr_x4_s4")
    assert "resshift_realsrx4_s4_v3.pth" in str(error.value) and str(models_dir) in str(error.value)
    assert os.listdir(models_dir) == []


def test_parts_that_do_not_fit_together_are_fetched_again(server, models_dir):
    """Bytes of an older release from an earlier run, and a server that cannot tell."""
    models_dir.mkdir()
    (models_dir / "resshift_realsrx4_s4_v3.pth.part").write_bytes(b"old" * 1000)
    server.script = [answer(etag=False)]
    assert rs.download("realsr_x4_s4").read_bytes() == CONTENT
    assert server.ranges() == ["bytes=3000-", None]


def test_a_broken_download_goes_on_in_the_next_run(server, models_dir):
    server.script = [answer(cut=80_000), status(404)]
    with pytest.raises(rs.DownloadError, match="80000 bytes are kept, and another try goes on from there"):
        rs.download("realsr_x4_s4")
    assert rs.download("realsr_x4_s4").read_bytes() == CONTENT and server.sent == len(CONTENT)
    assert os.listdir(models_dir) == ["resshift_realsrx4_s4_v3.pth"]


# --------------------------------------------------------------------------------------------- nobody knows the hash


def test_an_unknown_hash_is_shown_and_noted(unhashed, models_dir, caplog):
    path = rs.download("vq_f8_face")
    digest = hashlib.sha256(unhashed.content).hexdigest()
    assert digest in caplog.text
    assert json.loads((models_dir / "resshift-hashes.json").read_text())[path.name]["sha256"] == digest
    assert sorted(os.listdir(models_dir)) == [path.name, "resshift-hashes.json"]
    config, state = load_autoencoder("vq_f8_face")
    assert config == TINY and torch.equal(state["quantize.embedding.weight"], tiny_autoencoder()["quantize.embedding.weight"])


def test_a_noted_file_may_not_change(unhashed):
    path = rs.download("vq_f8_face")
    right, other = path.read_bytes(), tiny_autoencoder()
    other["quantize.embedding.weight"] = other["quantize.embedding.weight"] + 1
    path.write_bytes(pth(other))
    with pytest.raises(rs.CheckpointError, match="not the file that was downloaded at first"):
        load_autoencoder("vq_f8_face")
    unhashed.content = pth(other)
    with pytest.raises(rs.DownloadError, match="resshift-hashes.json says"):
        rs.download("vq_f8_face")
    unhashed.content = right
    assert rs.download("vq_f8_face").read_bytes() == right
    load_autoencoder("vq_f8_face")


def missing(state):
    return {key: value for key, value in state.items() if key != "post_quant_conv.bias"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (lambda: pth(missing(tiny_autoencoder())), r"1 weights are missing \(first: post_quant_conv.bias\)"),
        (lambda: pth(tiny_autoencoder(replace(TINY, n_embed=8))), r"wrong shape \(first: quantize.embedding.weight"),
        (lambda: pth({"conv_first.weight": torch.zeros(3)}), "should be an autoencoder.*conv_first.weight"),
        (lambda: pth(tiny_autoencoder())[:-1000], "cannot be read as weights"),
        (lambda: b"\0" * 5000, "neither a .safetensors nor a torch file"),
        (lambda: b'{"message": "Not Found"}', "It is text"),
        (lambda: PAGE, "a web page came"),
    ],
    ids=["missing key", "shape", "foreign", "truncated", "zeros", "json", "page"],
)
def test_without_a_hash_the_contents_must_be_right(unhashed, models_dir, content, told):
    unhashed.script = [say(content(), "application/octet-stream")]
    with pytest.raises(rs.DownloadError, match=told):
        rs.download("vq_f8_face")
    assert os.listdir(models_dir) == []


def test_a_file_placed_by_hand_is_checked_and_noted(unhashed, models_dir):
    models_dir.mkdir()
    path = models_dir / "ffhq512_vq_f8_dim8_face.pth"
    path.write_bytes(unhashed.content)
    assert rs.download("vq_f8_face") == path and not unhashed.requests
    assert path.name in json.loads((models_dir / "resshift-hashes.json").read_text())


def test_an_old_torch_cannot_check_contents(unhashed, models_dir, monkeypatch):
    """It is told before hundreds of megabytes are fetched in vain."""
    monkeypatch.setattr(torch, "__version__", "2.3.1")
    with pytest.raises(rs.DownloadError, match="Update torch to 2.6 or later, or convert"):
        rs.download("vq_f8_face")
    assert not unhashed.requests and not models_dir.exists()


def test_an_old_torch_leaves_a_file_placed_by_hand(unhashed, models_dir, monkeypatch, caplog):
    """Nothing is said to be replaced, for nothing is fetched; a file that was noted and has changed is told as such."""
    models_dir.mkdir()
    path = models_dir / "ffhq512_vq_f8_dim8_face.pth"
    path.write_bytes(unhashed.content)
    monkeypatch.setattr(torch, "__version__", "2.3.1")
    with pytest.raises(
        rs.DownloadError, match=f"{path.name} is there and cannot be checked on this torch.*Update torch to 2.6"
    ):
        rs.download("vq_f8_face")
    pin(path, hashlib.sha256(unhashed.content).hexdigest())
    assert rs.download("vq_f8_face") == path
    path.write_bytes(unhashed.content[:-1])
    with pytest.raises(rs.DownloadError, match="Update torch to 2.6"):
        rs.download("vq_f8_face")
    assert "not usable. " in caplog.text and "will be replaced" not in caplog.text
    assert path.read_bytes() == unhashed.content[:-1] and not unhashed.requests


# ------------------------------------------------------------------------------------------------ mirror and network


def test_without_a_mirror_the_address_is_the_registry_s():
    entry = registry.get_entry("sinsr_x4_s1")
    assert download_url(entry) == "https://github.com/wyf0912/SinSR/releases/download/v1.0/SinSR_v1.pth"


@pytest.mark.parametrize("mirror", ["https://mirror.example/gh", "https://mirror.example/gh/", " https://mirror.example/gh "])
def test_a_mirror_replaces_the_host(monkeypatch, mirror):
    monkeypatch.setenv("RESSHIFT_MIRROR", mirror)
    url = download_url(registry.get_entry("sinsr_x4_s1"))
    assert url == "https://mirror.example/gh/wyf0912/SinSR/releases/download/v1.0/SinSR_v1.pth"


@pytest.mark.parametrize(
    "mirror",
    ["http://mirror.example", "mirror.example", "ftp://mirror.example", "https://", "https://m.example/?a=b", "https://[x",
     "https://m.example:port", "https://user:secret@m.example", "file:///models"],
)  # fmt: skip
def test_unsafe_and_misspelt_mirrors_are_refused(monkeypatch, mirror):
    monkeypatch.setenv("RESSHIFT_MIRROR", mirror)
    with pytest.raises(rs.DownloadError, match="RESSHIFT_MIRROR is .*https://mirror.example/path"):
        rs.download("realsr_x4_s4")


def test_offline_is_one_sentence_with_address_and_folder(models_dir, monkeypatch, file_server):
    def offline(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", offline)
    start = time.monotonic()
    with pytest.raises(rs.DownloadError) as error:
        rs.download("realsr_x4_s4")
    text = str(error.value)
    assert registry.REGISTRY["realsr_x4_s4"].url in text and f"put it into {models_dir}" in text and "offline" in text
    assert text.endswith(".") and text.count(". ") == 0
    assert time.monotonic() - start < 5 and os.listdir(models_dir) == []


def test_a_folder_that_cannot_be_written(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("RESSHIFT_MODELS_DIR", str(tmp_path / "file" / "models"))
    with pytest.raises(
        rs.DownloadError, match="cannot be stored in .*choose a folder that can be written with RESSHIFT_MODELS_DIR"
    ):
        rs.download("realsr_x4_s4")
    assert not server.requests


def test_a_full_disk_keeps_what_came(server, models_dir, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(rs.DownloadError, match="has 1000 bytes of room, and 200000 are to come; make room"):
        rs.download("realsr_x4_s4")
    assert not (models_dir / "resshift_realsrx4_s4_v3.pth").exists()


# ------------------------------------------------------------------------------------------------- several at once

DOWNLOADER = """
import sys
from argparse import Namespace
from dataclasses import replace
import resshift_core as rs
from resshift_core import registry
registry.REGISTRY["realsr_x4_s4"] = replace(registry.REGISTRY["realsr_x4_s4"], size=int(sys.argv[1]), sha256=sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
print(rs.download("realsr_x4_s4"), flush=True)
"""


@pytest.fixture
def downloader():
    """downloader() -> another process that waits for a line, then downloads."""
    processes = []

    def start():
        command = [sys.executable, "-c", textwrap.dedent(DOWNLOADER), str(len(CONTENT)), hashlib.sha256(CONTENT).hexdigest()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_two_processes_share_one_download(server, models_dir, downloader):
    server.script = [answer(pause=0.1)]
    pair = [downloader(), downloader()]
    for process in pair:
        assert process.stdout.readline().strip() == "ready"
    for process in pair:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in pair:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert out.strip().endswith("resshift_realsrx4_s4_v3.pth")
    assert (models_dir / "resshift_realsrx4_s4_v3.pth").read_bytes() == CONTENT
    assert os.listdir(models_dir) == ["resshift_realsrx4_s4_v3.pth"] and len(server.requests) == 1


def test_a_killed_process_leaves_something_to_go_on_from(server, models_dir, downloader):
    server.script = [answer(pause=0.3)]
    process = downloader()
    process.stdin.write("\n")
    process.stdin.flush()
    part = models_dir / "resshift_realsrx4_s4_v3.pth.part"
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    came = part.stat().st_size
    assert 0 < came < len(CONTENT)
    assert rs.download("realsr_x4_s4").read_bytes() == CONTENT
    assert server.ranges()[-1] == f"bytes={came}-" and os.listdir(models_dir) == ["resshift_realsrx4_s4_v3.pth"]


def test_threads_share_one_download_and_see_its_progress(server):
    server.script = [answer(pause=0.15)]
    seen, paths = [[], []], [None, None]

    def work(i):
        paths[i] = rs.download("realsr_x4_s4", on_progress=lambda *at: seen[i].append(at[0]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert paths[0] == paths[1] and paths[0].read_bytes() == CONTENT and len(server.requests) == 1
    assert all(max(progress) > 0 for progress in seen)
