"""What every test starts from: an empty models folder, no mirror, two threads; and fixtures of models."""

from __future__ import annotations

import os

import pytest
import torch

from resshift_core import checkpoint_file, registry, transfer
from resshift_core.device import cpu_has_fp16

from . import gpu, standin
from .file_server import FileServer


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_configure(config):
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(config, items):
    """Skip what this machine, or this call, is not meant to run; the reason says how to run it.

    The pretended card comes last: where it is the first to go backward, autograd gets threads that forked processes refuse.
    """
    items.sort(key=lambda item: "test_pretended_card" in item.nodeid)
    skips = {}
    if not config.getoption("--slow"):
        skips["slow"] = "takes longer than a minute: run pytest --slow"
    if gpu.find() is None:
        skips["cuda"] = "needs a GPU"
    if not cpu_has_fp16():
        skips["fp16"] = "this torch does not compute fp16 on a processor"
    if not (os.environ.get("COMFYUI_DIR") or os.environ.get("WEBUI_DIR")):
        skips["host"] = "needs a checkout of a host: set COMFYUI_DIR or WEBUI_DIR"
    for item in items:
        for word, reason in skips.items():
            if item.get_closest_marker(word):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def models_dir(tmp_path_factory, monkeypatch):
    """No test sees, or writes into, the models of the person who runs it. Gives the (not yet existing) folder."""
    folder = tmp_path_factory.mktemp("home") / "models"
    monkeypatch.setenv("RESSHIFT_MODELS_DIR", str(folder))
    monkeypatch.delenv("RESSHIFT_MIRROR", raising=False)
    monkeypatch.setattr(registry, "_extra_dirs", [])
    return folder


@pytest.fixture(autouse=True)
def trusted_pickles(monkeypatch):
    """On torch before 2.6 pickles of strangers are refused. Those of the tests are our own; tests of the refusal set a version."""
    if not checkpoint_file.pickles_are_safe():
        monkeypatch.setattr(checkpoint_file.torch, "__version__", "2.6.0 (pretended)")


@pytest.fixture
def one_thread():
    """For small tensors: two threads would wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def published_model():
    """published_model(variant) -> the full-size model with stand-in weights (0.7 GB); made once per session.

    Do not change it: other tests get the same object.
    """
    made = {}

    def get(variant: str):
        if variant not in made:
            made[variant] = standin.standin_model(standin.published_config(variant))
        return made[variant]

    yield get
    made.clear()


@pytest.fixture
def small_model():
    """small_model(**overrides) -> a fast space-to-depth model with stand-in weights; see standin.small_model."""
    return standin.small_model


@pytest.fixture
def file_server(monkeypatch):
    """file_server(content) -> a FileServer on this machine; reached directly, and failures are retried without waiting."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")  # also keeps urllib from asking the operating system
    monkeypatch.setattr(transfer, "BACKOFF_S", 0.01)
    servers = []

    def start(content: bytes) -> FileServer:
        servers.append(FileServer(content))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
