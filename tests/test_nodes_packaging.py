"""What the registry and the Manager read: pyproject.toml, requirements.txt, install.py."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def installer():
    spec = importlib.util.spec_from_file_location("resshift_install", ROOT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project() -> dict:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class TestPyproject:
    def test_the_registrys_part(self):
        comfy = project()["tool"]["comfy"]
        assert set(comfy) == {"PublisherId", "DisplayName", "Icon", "requires-comfyui"}  # `web` would load scripts twice
        assert comfy["Icon"].startswith("https://") and (ROOT / "docs" / "images" / comfy["Icon"].rsplit("/", 1)[1]).is_file()

    def test_the_registrys_demands_on_the_rest(self):
        whole = project()["project"]
        assert "comfyui" not in whole["name"].lower() and re.fullmatch(r"[a-z0-9-]+", whole["name"])
        assert whole["urls"]["Repository"].startswith("https://") and whole["requires-python"]
        assert any(word.startswith("Operating System ::") for word in whole["classifiers"])
        known = ("NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal")  # to the registry, which drops all for one unknown
        assert {word.removeprefix("Environment :: GPU :: ") for word in whole["classifiers"] if "GPU" in word} == set(known)

    def test_the_version_stands_there(self):
        """The registry's program and ComfyUI's Manager do not ask setuptools."""
        from resshift_core.version import __version__

        assert project()["project"]["version"] == __version__ and "dynamic" not in project()["project"]

    def test_the_icon_is_square(self):
        from PIL import Image

        with Image.open(ROOT / "docs" / "images" / "comfyui-icon.png") as icon:
            assert icon.size[0] == icon.size[1] >= 256


class TestInstall:
    def test_requirements_leave_the_hosts_packages_alone(self):
        install = installer()
        names = {install.name_of(line) for line in install.required((ROOT / "requirements.txt").read_text(encoding="utf-8"))}
        assert names and not names & set(install.HOSTS_OWN)

    def test_only_what_is_missing(self, monkeypatch):
        install = installer()
        monkeypatch.setattr(install, "is_installed", lambda name: name == "einops")
        lines = ["einops>=0.4.1", "safetensors >= 0.4.2", "numpy>=3", "Pillow", "Torch==1.0"]
        assert install.missing(lines) == ["safetensors >= 0.4.2"]

    def test_nothing_is_upgraded_and_nothing_comes_along(self, monkeypatch):
        install, asked = installer(), []
        monkeypatch.setattr(install, "is_installed", lambda name: False)
        monkeypatch.setattr(install.subprocess, "call", lambda command: asked.append(command) or 0)
        assert install.main() == 0
        (command,) = asked
        assert "--no-deps" in command and not {"-U", "--upgrade", "--force-reinstall"} & set(command)

    def test_nothing_to_do_is_silent(self, monkeypatch, capsys):
        install = installer()
        monkeypatch.setattr(install, "is_installed", lambda name: True)
        monkeypatch.setattr(install.subprocess, "call", lambda command: pytest.fail("pip was called"))
        assert install.main() == 0 and capsys.readouterr().out == ""

    def test_what_is_here_is_found(self):
        install = installer()
        assert install.is_installed("safetensors") and install.is_installed("pytest")
        assert not install.is_installed("no-such-distribution-anywhere")
