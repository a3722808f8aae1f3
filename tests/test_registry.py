"""The table of models against the published facts, and where files are looked for."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import resshift_core as rs
from resshift_core import registry
from resshift_core.cli import main
from resshift_core.errors import InputError
from resshift_core.registry import REGISTRY, VARIANTS, add_models_dir, find_file, get_entry, models_dir

from .linked_folder import link_folder

# As the releases and the papers give them: file, T, m, scale, steps of a run, autoencoder, bytes, start of the sha256.
PUBLISHED = {
    "realsr_x4_s15_v1": ("resshift_realsrx4_s15_v1.pth", 15, 0.04, 4, 15, "vq_f4", None, None),
    "realsr_x4_s15_v2": ("resshift_realsrx4_s15_v2.pth", 15, 0.04, 4, 15, "vq_f4", None, None),
    "realsr_x4_s4": ("resshift_realsrx4_s4_v3.pth", 4, 0.2, 4, 4, "vq_f4", 477917058, "878da888bbbe10b8"),
    "bicsr_x4_s4": ("resshift_bicsrx4_s4.pth", 4, 0.2, 4, 4, "vq_f4", None, None),
    "inpaint_imagenet_s4": ("resshift_inpainting_imagenet_s4.pth", 4, 0.2, 1, 4, "vq_f4", None, None),
    "inpaint_face_s4": ("resshift_inpainting_face_s4.pth", 4, 0.2, 1, 4, "vq_f4_face", 478403130, "bf3a1691d4ad4695"),
    "faceir_s4": ("resshift_faceir_s4.pth", 4, 0.2, 1, 4, "vq_f8_face", None, None),
    "sinsr_x4_s1": ("SinSR_v1.pth", 15, 0.04, 4, 1, "vq_f4", None, None),
    "vq_f4": ("autoencoder_vq_f4.pth", 0, 0, 1, 0, "", 221364711, "e967eaa2c3801528"),
    "vq_f4_face": ("celeba256_vq_f4_dim3_face.pth", 0, 0, 1, 0, "", 221364711, "770a2d8888ad51d8"),
    "vq_f8_face": ("ffhq512_vq_f8_dim8_face.pth", 0, 0, 1, 0, "", None, None),
}


BUILTINS = ("builtin", "builtin-real")


def test_every_published_model_is_there_and_nothing_is_made_up():
    assert set(REGISTRY) == {*BUILTINS, *PUBLISHED}


@pytest.mark.parametrize("name", PUBLISHED)
def test_entries_are_as_published(name):
    file, trained, noise, scale, steps, autoencoder, size, sha256 = PUBLISHED[name]
    entry = REGISTRY[name]
    assert (entry.name, entry.file, entry.size, entry.scale, entry.steps) == (name, file, size, scale, steps)
    assert entry.url.startswith("https://github.com/") and entry.url.endswith("/" + file)
    assert (entry.sha256 is None) == (sha256 is None) and (entry.sha256 or "").startswith(sha256 or "")
    assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
    if autoencoder:
        kind = VARIANTS[entry.variant]
        assert (kind.steps, kind.min_noise_level, kind.autoencoder) == (trained, noise, autoencoder)
        assert (kind.kappa, kind.p, kind.sqrt_eta_T) == (2.0, 0.3, 0.99)


def test_licences_say_what_is_not_free():
    for entry in REGISTRY.values():
        assert ("non-commercial" in entry.licence) != (entry.name in BUILTINS), entry.name
    assert "CC BY-NC-SA 4.0" in REGISTRY["sinsr_x4_s1"].licence and "S-Lab" in REGISTRY["vq_f4"].licence


def test_the_words_for_variant():
    assert list(VARIANTS) == [
        "realsr_x4_s15", "realsr_x4_s4", "bicsr_x4_s4", "realsr_x2_s4", "inpaint_imagenet_s4", "inpaint_face_s4",
        "faceir_s4", "sinsr_x4_s1",
    ]  # fmt: skip
    assert all(kind.autoencoder in REGISTRY for kind in VARIANTS.values())


def test_list_models(models_dir):
    models_dir.mkdir()
    (models_dir / "SinSR_v1.pth").write_bytes(b"")
    rows = {row["name"]: row for row in rs.list_models()}
    wanted = {"name", "file", "task", "scale", "steps", "size", "sha256", "licence", "url", "present"}
    assert list(rows) == list(REGISTRY) and all(wanted <= set(row) for row in rows.values())
    assert rows["sinsr_x4_s1"]["present"] and not rows["realsr_x4_s4"]["present"]


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(rs.InputError, match="'realsr'.*realsr_x4_s15_v1.*vq_f8_face"):
        get_entry("realsr")


def test_a_kind_is_told_from_a_model():
    with pytest.raises(rs.InputError, match="realsr_x4_s15 is a kind.* Of that kind are: realsr_x4_s15_v1, realsr_x4_s15_v2.$"):
        get_entry("realsr_x4_s15")
    with pytest.raises(rs.InputError, match="no weights were published. Give a file of your own.*--variant realsr_x2_s4"):
        get_entry("realsr_x2_s4")
    assert not any(registry.kind_not_model(name) for name in (*REGISTRY, "nothing"))


def test_the_documentation_says_the_same():
    text = (Path(__file__).parent.parent / "docs" / "models.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    for entry in REGISTRY.values():
        row = rows[entry.name]
        assert f"`{entry.file}`" in row and entry.licence.split(" (")[0].replace("License ", "") in row
        assert entry.size is None or f"{entry.size:,} bytes".replace(",", " ") in row
        assert entry.variant == "" or f"`{VARIANTS[entry.variant].autoencoder}`" in row
        assert entry.sha256 is None or entry.sha256 in rows[entry.file]
    assert all(f"`{word}`" in text for word in VARIANTS)


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/resshift/models"),
        ("linux", {}, "~/.local/share/resshift/models"),
        ("darwin", {}, "~/Library/Application Support/resshift/models"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/resshift/models"),
        ("win32", {}, "~/AppData/Local/resshift/models"),
        ("linux", {"RESSHIFT_MODELS_DIR": "~/mine"}, "~/mine"),
        ("win32", {"RESSHIFT_MODELS_DIR": '"~/my models" '}, "~/my models"),  # as `set ... && ...` of cmd.exe keeps it
    ],
)
def test_the_models_folder_of_every_system(monkeypatch, platform, environment, folder):
    for name in ("RESSHIFT_MODELS_DIR", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert models_dir() == Path(folder).expanduser()


@pytest.mark.parametrize("chosen", [None, "~nobody-of-that-name/x"])
def test_without_a_home_folder(monkeypatch, tmp_path, chosen, capsys):
    """A service, or a container under a number that no user has."""
    for name in ("RESSHIFT_MODELS_DIR", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if chosen:
        monkeypatch.setenv("RESSHIFT_MODELS_DIR", chosen)

    def nowhere(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nowhere)
    monkeypatch.setattr(Path, "expanduser", nowhere)
    with pytest.raises(InputError, match="no home folder.*RESSHIFT_MODELS_DIR"):
        models_dir()
    add_models_dir(tmp_path)
    touch(tmp_path / "autoencoder_vq_f4.pth")
    assert get_entry("vq_f4").find() and not get_entry("realsr_x4_s4").find()
    assert main(["models"]) == 0
    assert main(["download", "realsr_x4_s4"]) == 2
    assert "no home folder" in capsys.readouterr().err


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_files_are_found_in_every_spelling(models_dir):
    assert find_file("SinSR_v1.pth") is None
    path = touch(models_dir / "SINSR_V1.pth")
    assert find_file("SinSR_v1.pth") == path and get_entry("sinsr_x4_s1").find() == path


def test_a_converted_file_counts(models_dir):
    converted = touch(models_dir / "SinSR_v1.safetensors")
    assert find_file("SinSR_v1.pth") == converted
    original = touch(models_dir / "SinSR_v1.pth")
    assert find_file("SinSR_v1.pth") == converted  # torch before 2.6 would not open the other
    assert get_entry("sinsr_x4_s1").find() == converted
    assert find_file("SinSR_v1.pth", exact=True) == original
    converted.unlink()
    assert find_file("SinSR_v1.pth") == original


def test_parts_locks_and_folders_are_no_models(models_dir):
    for name in ("SinSR_v1.pth.part", "SinSR_v1.pth.lock", "SinSR_v1.pth.part.json"):
        touch(models_dir / name)
    (models_dir / "SinSR_v1.pth").mkdir()
    assert find_file("SinSR_v1.pth") is None


def test_folders_of_a_host_come_second(models_dir, tmp_path):
    rs.add_models_dir(tmp_path / "missing")
    rs.add_models_dir(str(tmp_path / "host"))
    rs.add_models_dir(tmp_path / "host")
    assert registry.search_dirs() == [models_dir, tmp_path / "missing", tmp_path / "host"]
    second = touch(tmp_path / "host" / "x.pth")
    assert find_file("x.pth") == second
    first = touch(models_dir / "x.pth")
    assert find_file("x.pth") == first


def test_a_folder_stays_the_same_when_the_program_goes_elsewhere(models_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rs.add_models_dir("host")
    monkeypatch.chdir("/")
    assert registry.search_dirs()[-1] == tmp_path / "host"


def test_a_file_where_a_folder_should_be(tmp_path):
    rs.add_models_dir(touch(tmp_path / "file"))
    assert find_file("x.pth") is None


def test_files_in_folders_of_the_search_folders_are_found(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr("resshift_core.registry.search_dirs", lambda: [first, second])
    deep = first / "published v1.5" / "x4" / "X.pth"
    for path in (deep, second / "x.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (first / "x.pth").mkdir()  # a folder of that name is no file
    assert find_file("x.pth") == second / "x.safetensors"  # what lies on top comes first
    (second / "x.safetensors").unlink()
    assert find_file("x.pth") == deep
    link_folder(first / "loop", first)
    assert find_file("y.pth") is None
    assert find_file("x.pth").name == "X.pth"
