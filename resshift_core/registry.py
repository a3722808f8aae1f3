"""The one table of models that can be had by name: what they are, where they lie, and under which licence."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import InputError

S_LAB = "S-Lab License 1.0 (non-commercial)"
CC_NC = "CC BY-NC-SA 4.0 (non-commercial)"
RESSHIFT_RELEASE = "https://github.com/zsyOAOA/ResShift/releases/download/v2.0/"
SINSR_RELEASE = "https://github.com/wyf0912/SinSR/releases/download/v1.0/"

WEIGHTS_DIR = Path(__file__).parent / "weights"
DEPTH = 4  # levels of folders below the search folders that are looked into


@dataclass(frozen=True)
class Variant:
    """What the shapes of a published network cannot tell."""

    steps: int
    min_noise_level: float
    scale: int
    task: str
    autoencoder: str  # registry name
    default_steps: int = 0  # 0 = steps

    kappa: float = 2.0
    p: float = 0.3
    sqrt_eta_T: float = 0.99


VARIANTS = {
    "realsr_x4_s15": Variant(15, 0.04, 4, "sr", "vq_f4"),
    "realsr_x4_s4": Variant(4, 0.2, 4, "sr", "vq_f4"),
    "bicsr_x4_s4": Variant(4, 0.2, 4, "sr", "vq_f4"),
    "realsr_x2_s4": Variant(4, 0.2, 2, "sr", "vq_f4"),
    "inpaint_imagenet_s4": Variant(4, 0.2, 1, "inpaint", "vq_f4"),
    "inpaint_face_s4": Variant(4, 0.2, 1, "inpaint", "vq_f4_face"),
    "faceir_s4": Variant(4, 0.2, 1, "face", "vq_f8_face"),
    "sinsr_x4_s1": Variant(15, 0.04, 4, "sr", "vq_f4", default_steps=1),
}


@dataclass(frozen=True)
class Entry:
    """One downloadable or bundled file. `size` in bytes and `sha256` are None where they are not known to us."""

    name: str
    file: str
    task: str  # "sr", "inpaint", "face" or "autoencoder"
    licence: str
    url: str = ""  # empty: the file is part of this package
    variant: str = ""
    scale: int = 1
    steps: int = 0
    size: int | None = None
    sha256: str | None = None

    @property
    def bundled(self) -> bool:
        return not self.url

    @property
    def size_words(self) -> str:
        """"478 MB"; where nobody has published it, from the number of weights: those of a kind have the same layers."""
        unknown = "about 310 MB" if self.task == "autoencoder" else "about 480 MB"
        return f"{round(self.size / 1e6)} MB" if self.size else unknown

    def find(self) -> Path | None:
        """Where the file lies on this machine, or None."""
        if self.bundled:
            path = WEIGHTS_DIR / self.file
            return path if path.is_file() else None
        return find_file(self.file)


def _published(name: str, file: str, variant: str, size=None, sha256=None, release=RESSHIFT_RELEASE, licence=S_LAB):
    kind = VARIANTS[variant]
    steps = kind.default_steps or kind.steps
    return Entry(name, file, kind.task, licence, release + file, variant, kind.scale, steps, size, sha256)


def _autoencoder(name: str, file: str, size=None, sha256=None):
    return Entry(name, file, "autoencoder", S_LAB, RESSHIFT_RELEASE + file, size=size, sha256=sha256)


_ENTRIES = (
    Entry("builtin", "builtin.safetensors", "sr", "Apache-2.0", scale=4, steps=4),
    Entry("builtin-real", "builtin-real.safetensors", "sr", "Apache-2.0", scale=4, steps=4),
    _published("realsr_x4_s15_v1", "resshift_realsrx4_s15_v1.pth", "realsr_x4_s15"),
    _published("realsr_x4_s15_v2", "resshift_realsrx4_s15_v2.pth", "realsr_x4_s15"),
    _published(
        "realsr_x4_s4", "resshift_realsrx4_s4_v3.pth", "realsr_x4_s4", 477917058,
        "878da888bbbe10b8b0d4ff179c2de3059fd8a4cf2c705942a77a7f3b23ea1efd",
    ),
    _published("bicsr_x4_s4", "resshift_bicsrx4_s4.pth", "bicsr_x4_s4"),
    _published("inpaint_imagenet_s4", "resshift_inpainting_imagenet_s4.pth", "inpaint_imagenet_s4"),
    _published(
        "inpaint_face_s4", "resshift_inpainting_face_s4.pth", "inpaint_face_s4", 478403130,
        "bf3a1691d4ad46958f7abe847f9afce632400112d9e9cd8fb5253c33da4cec02",
    ),
    _published("faceir_s4", "resshift_faceir_s4.pth", "faceir_s4"),
    _published("sinsr_x4_s1", "SinSR_v1.pth", "sinsr_x4_s1", release=SINSR_RELEASE, licence=CC_NC),
    _autoencoder(
        "vq_f4", "autoencoder_vq_f4.pth", 221364711,
        "e967eaa2c380152811c53e312990d6967a8a957c4f7590f19490ec72110b2889",
    ),
    _autoencoder(
        "vq_f4_face", "celeba256_vq_f4_dim3_face.pth", 221364711,
        "770a2d8888ad51d84ceeda5f9b64ee19b2688bc1e88d1139e3a1eea0a3b9501a",
    ),
    _autoencoder("vq_f8_face", "ffhq512_vq_f8_dim8_face.pth"),
)  # fmt: skip
REGISTRY = {entry.name: entry for entry in _ENTRIES}


def models_dir() -> Path:
    """Where downloads go: `RESSHIFT_MODELS_DIR`, else the user's data folder of the operating system.

    Raises:
        InputError: this user has no home folder, and the variable names none without it.
    """
    try:
        return _models_dir()
    except RuntimeError as error:
        raise InputError(
            "This user has no home folder, so there is no place for models. Name one in the environment: RESSHIFT_MODELS_DIR."
        ) from error


def _models_dir() -> Path:
    chosen = os.environ.get("RESSHIFT_MODELS_DIR", "")
    if sys.platform == "win32":  # `set NAME="a b" && ...` of cmd.exe keeps the quotes and the blank after them
        chosen = chosen.strip(' "')
    if chosen:
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "resshift" / "models"


def first_writable(folders: Iterable[Path]) -> Path:
    """The first of a host's folders that a download could be written into; where there is none, the first."""
    folders = list(folders)
    return next((folder for folder in folders if can_be_written(nearest(folder))), folders[0])


def nearest(folder: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    above = (folder, *folder.absolute().parents)
    return next((place for place in above if os.path.exists(place)), above[-1])  # `Path.exists` fails in a locked folder


def can_be_written(folder: Path) -> bool:
    """Whether it is a folder that new files can be put into."""
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return False
    return sys.platform != "win32" or _takes_a_file(folder)  # whose `os.access` knows nothing of permissions


def _takes_a_file(folder: Path) -> bool:
    probe = folder / f".resshift-{os.getpid()}-{time.monotonic_ns()}"
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        probe.unlink()
    except OSError:
        return False
    return True


_extra_dirs: list[Path] = []


def add_models_dir(path: str | os.PathLike) -> None:
    """Also look for model files in `path`: hosts have folders of their own. Searched after `models_dir()`."""
    path = Path(os.path.abspath(os.path.expanduser(path)))
    if path not in _extra_dirs:
        _extra_dirs.append(path)


def search_dirs() -> list[Path]:
    """Folders searched for model files, first match wins."""
    try:
        return [models_dir(), *_extra_dirs]
    except InputError:  # whoever wants to store something there is told
        return list(_extra_dirs)


def find_file(file: str, exact: bool = False) -> Path | None:
    """`file`, or the same stem converted to .safetensors, in the search folders or below; letter case does not matter.

    All search folders themselves come first, then what lies in them. Of two that lie side by side it is the converted one,
    which every torch opens; `exact` takes it only where `file` itself is not there.
    """
    for depth in (0, DEPTH):
        for folder in search_dirs():
            if (found := find_in(folder, file, exact, depth)) is not None:
                return found
    return None


def find_in(folder: Path, file: str, exact: bool = False, depth: int = 0) -> Path | None:
    """As `find_file`, in one folder and `depth` levels below it."""
    wanted = [f"{Path(file).stem}.safetensors".lower(), file.lower()]
    for names in _names(folder, depth):
        for name in reversed(wanted) if exact else wanted:
            if name in names:
                return names[name]
    return None


def _names(folder: Path, depth: int) -> Iterator[dict[str, Path]]:
    """{lower-case name: path} of the files in a folder, then in each below it, `depth` levels down."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        files = {entry.name.lower(): Path(entry.path) for entry in entries if entry.is_file()}
        folders = [entry.path for entry in entries if depth and entry.is_dir()]
    except OSError:  # not there (yet), or not ours to look into
        return
    yield files
    for below in folders:
        yield from _names(Path(below), depth - 1)


def get_entry(name: str) -> Entry:
    """The registry's entry of that name.

    Raises:
        InputError: there is none; the text lists the names.
    """
    if name not in REGISTRY:
        raise InputError(kind_not_model(name) or f"There is no model called {name!r}. Known are: {', '.join(REGISTRY)}.")
    return REGISTRY[name]


def kind_not_model(name: str) -> str:
    """For a word of `VARIANTS` that is no model's name: a sentence that says which models are of that kind. Else ""."""
    if name not in VARIANTS or name in REGISTRY:
        return ""
    if models := [entry.name for entry in REGISTRY.values() if entry.variant == name]:
        return f"{name} is a kind of model, not a model. Of that kind are: {', '.join(models)}."
    return (
        f"{name} is a kind of model of which no weights were published. Give a file of your own in place of the name, and say "
        f"--variant {name} where its weights leave it open."
    )


def list_models() -> list[dict]:
    """The registry as dictionaries: name, file, task, scale, steps, size, sha256, licence, variant, url, present.

    size: bytes, as published, else of the file on this machine, else None. present: a published file of another size is not.
    """
    return [_described(entry, entry.find()) for entry in REGISTRY.values()]


def _described(entry: Entry, path: Path | None) -> dict:
    size = path.stat().st_size if path else None
    whole = path is not None and (entry.size in (None, size) or path.name.lower() != entry.file.lower())
    return {**asdict(entry), "size": entry.size or size, "present": whole}
