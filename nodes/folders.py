"""Where ComfyUI keeps model files, and what the loader lists."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import folder_paths

from ..resshift_core import registry
from ..resshift_core.checkpoint_file import SUFFIXES
from ..resshift_core.transfer import also_trust

KEY = "resshift"
AUTO = "auto"
VAE = "vae/"  # prefix of files that lie in ComfyUI's folder for autoencoders
LICENCES = {registry.S_LAB: "S-Lab 1.0, non-commercial", registry.CC_NC: "CC BY-NC-SA 4.0, non-commercial"}


def register_folder() -> None:
    """Tell ComfyUI of models/resshift, unless the user's own configuration has it under any spelling."""
    key = folder_key()
    folder_paths.add_model_folder_path(key, os.path.join(folder_paths.models_dir, KEY))
    paths, _ = folder_paths.folder_names_and_paths[key]
    folder_paths.folder_names_and_paths[key] = (paths, set(SUFFIXES))
    for folder in (*paths, *folder_paths.get_folder_paths("vae")):
        registry.add_models_dir(folder)
    with contextlib.suppress(ImportError):  # it comes with ComfyUI's own downloads
        import certifi

        also_trust(certifi.where())


def folder_key() -> str:
    """The key under which ComfyUI knows our folder; people write it with capitals in extra_model_paths.yaml."""
    return next((key for key in folder_paths.folder_names_and_paths if key.lower() == KEY), KEY)


def download_folder() -> Path:
    """The first folder of the key that can be written: the user's own where there is one."""
    return registry.first_writable(map(Path, folder_paths.get_folder_paths(folder_key())))


def label(entry: registry.Entry) -> str:
    """What the combo shows for a model of the registry. Stored in workflows: `plain_name` undoes it."""
    if entry.bundled:
        return entry.name
    return f"{entry.name} [{entry.size_words}, {LICENCES.get(entry.licence, entry.licence)}]"


def plain_name(value: str) -> str:
    """The registry's name, or the file's, with the separators of this machine; sizes in a label may have changed since."""
    name = value.split(" [", 1)[0]
    own = value.lower().endswith(SUFFIXES)  # a file may be called "realsr_x4_s4 [mine].safetensors"
    return name if name in registry.REGISTRY and not own else value.replace("\\", "/")


def _files(key: str, prefix: str = "") -> list[str]:
    names = (name.replace("\\", "/") for name in folder_paths.get_filename_list(key))
    models = (name for name in names if name.lower().endswith(SUFFIXES))
    return [prefix + name for name in models if not os.path.basename(name).startswith("._")]  # macOS' companions of files


def _catalogue(*, autoencoders: bool) -> list[registry.Entry]:
    return [entry for entry in registry.REGISTRY.values() if (entry.task == "autoencoder") == autoencoders]


def choice_lists() -> dict[str, list[str]]:
    """The combos' contents: the registry whole, downloaded or not, then the files that are none of it."""
    known = {entry.file.lower() for entry in registry.REGISTRY.values() if not entry.bundled}
    own = [name for name in _files(folder_key()) if os.path.basename(name).lower() not in known]
    models = [label(entry) for entry in _catalogue(autoencoders=False)]
    autoencoders = [AUTO, *(label(entry) for entry in _catalogue(autoencoders=True)), *own, *_files("vae", VAE)]
    return {"models": models + own, "autoencoders": autoencoders}


def locate(value: str) -> str | Path | None:
    """A choice -> the registry's name, or the path of a file that exists, or None."""
    name = plain_name(value)
    if name in registry.REGISTRY:
        return name
    places = [(folder_key(), name)]
    if name.startswith(VAE):  # else it lies in a folder of ours that is called so
        places.insert(0, ("vae", name[len(VAE) :]))
    found = (
        folder_paths.get_full_path(key, inside) or folder_paths.get_full_path(key, inside.replace("/", os.sep))
        for key, inside in places
    )
    return next((Path(path) for path in found if path), None)
