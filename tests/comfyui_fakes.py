"""As much of ComfyUI's modules as the nodes use, with the signatures of 0.3.40 and 0.3.64; and the pack imported as it does.

What a real ComfyUI does with it is tested in test_comfyui.py.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import sys
import types
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


class InterruptProcessingException(Exception):
    pass


class ModelPatcher:
    """Moves a module between two devices, as ComfyUI's does for modules without patches."""

    def __init__(self, model, load_device, offload_device, size=0, weight_inplace_update=False):
        self.model, self.load_device, self.offload_device = model, load_device, offload_device
        self.moves: list[str] = []

    def patch_model(self, device_to=None, lowvram_model_memory=0, load_weights=True, force_patch_weights=False):
        self.moves.append("patch")
        self.model.to(device_to)

    def detach(self, unpatch_all=True):
        self.moves.append("detach")
        self.model.to(self.offload_device)
        return self.model


class Comfy:
    """The fake host: what it was asked is recorded, what it answers can be set."""

    def __init__(self, base: Path):
        self.base = base
        self.interrupted = False
        self.loads: list[tuple[list[ModelPatcher], int, bool]] = []
        self.freed: list[float | str] = []  # bytes, and "cache"
        self.progress: list[tuple[int, int, object]] = []
        self.texts: list[str] = []
        self.flags: dict[str, torch.dtype] = {}
        self.bf16 = False
        self.device = torch.device("cpu")
        self.vae_folder = base / "models" / "vae"
        self.folders: dict[str, tuple[list[str], set[str]]] = {"vae": ([str(self.vae_folder)], {".safetensors", ".pth"})}
        self.modules = {
            "comfy": types.ModuleType("comfy"),
            "comfy.model_management": self._model_management(),
            "comfy.model_patcher": self._module("comfy.model_patcher", ModelPatcher=ModelPatcher),
            "comfy.utils": self._utils(),
            "comfy.cli_args": self._cli_args(),
            "folder_paths": self._folder_paths(),
            "server": self._server(),
        }
        for name, module in self.modules.items():
            module.__spec__ = importlib.util.spec_from_loader(name, loader=None, is_package=name == "comfy")
            if "." in name:
                setattr(self.modules["comfy"], name.split(".")[1], module)
        self.modules["comfy"].__path__ = []

    @staticmethod
    def _module(name: str, **contents) -> types.ModuleType:
        module = types.ModuleType(name)
        vars(module).update(contents)
        return module

    def _model_management(self) -> types.ModuleType:
        def load_models_gpu(models, memory_required=0, force_patch_weights=False, minimum_memory_required=None,
                            force_full_load=False):  # fmt: skip
            self.loads.append((list(models), memory_required, force_full_load))
            for patcher in models:
                patcher.model.to(patcher.load_device)

        def throw_exception_if_processing_interrupted():
            if self.interrupted:
                self.interrupted = False
                raise InterruptProcessingException()

        def unet_dtype(device=None, model_params=0, supported_dtypes=(), weight_dtype=None):
            return self.flags.get("unet") or (torch.bfloat16 if self.bf16 else torch.float32)

        def unet_manual_cast(weight_dtype, inference_device, supported_dtypes=()):
            return self.flags.get("cast")

        def vae_dtype(device=None, allowed_dtypes=()):
            return self.flags.get("vae") or (allowed_dtypes[0] if self.bf16 else torch.float32)

        return self._module(
            "comfy.model_management",
            get_torch_device=lambda: self.device,
            extra_reserved_memory=lambda: self.flags.get("reserved", 400 << 20),
            unet_offload_device=lambda: torch.device("cpu"),
            vae_offload_device=lambda: torch.device("cpu"),
            intermediate_device=lambda: torch.device("cpu"),
            should_use_bf16=lambda device=None, model_params=0, prioritize_performance=True, manual_cast=False: self.bf16,
            unet_dtype=unet_dtype,
            unet_manual_cast=unet_manual_cast,
            vae_dtype=vae_dtype,
            load_models_gpu=load_models_gpu,
            free_memory=lambda memory_required, device, keep_loaded=(): self.freed.append(memory_required) or [],
            soft_empty_cache=lambda force=False: self.freed.append("cache"),
            throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
            InterruptProcessingException=InterruptProcessingException,
        )

    def _utils(self) -> types.ModuleType:
        host = self

        class ProgressBar:
            def __init__(self, total, node_id=None):
                self.total = total

            def update_absolute(self, value, total=None, preview=None):
                host.modules["comfy.model_management"].throw_exception_if_processing_interrupted()
                host.progress.append((value, total or self.total, preview))

        return self._module("comfy.utils", ProgressBar=ProgressBar)

    def _cli_args(self) -> types.ModuleType:
        class LatentPreviewMethod(enum.Enum):
            NoPreviews = "none"
            Auto = "auto"

        self.args = types.SimpleNamespace(preview_method=LatentPreviewMethod.Auto, preview_size=512)
        return self._module("comfy.cli_args", args=self.args, LatentPreviewMethod=LatentPreviewMethod)

    def _folder_paths(self) -> types.ModuleType:
        def add_model_folder_path(key, path, is_default=False):
            paths, suffixes = self.folders.setdefault(key, ([], set()))
            if path not in paths:
                paths.append(path)

        def get_filename_list(key):
            paths, suffixes = self.folders[key]
            found = {
                str(file.relative_to(folder))
                for folder in paths
                for file in Path(folder).rglob("*")
                if file.is_file() and (not suffixes or file.suffix in suffixes)
            }
            return sorted(found)

        def get_full_path(key, name):
            return next((os.path.join(p, name) for p in self.folders[key][0] if os.path.isfile(os.path.join(p, name))), None)

        return self._module(
            "folder_paths",
            models_dir=str(self.base / "models"),
            folder_names_and_paths=self.folders,
            add_model_folder_path=add_model_folder_path,
            get_folder_paths=lambda key: list(self.folders[key][0]),
            get_filename_list=get_filename_list,
            get_full_path=get_full_path,
            get_temp_directory=lambda: str(self.base / "temp"),
        )

    def _server(self) -> types.ModuleType:
        instance = types.SimpleNamespace(
            send_progress_text=lambda text, node_id, sid=None: self.texts.append(text), client_id="page", routes=Routes()
        )
        return self._module("server", PromptServer=types.SimpleNamespace(instance=instance))


class Routes(list):
    """The server's, which it takes over when all packs are imported; two of one path end it."""

    def get(self, path):
        def register(handler):
            self.append(types.SimpleNamespace(path=path, handler=handler))
            return handler

        return register


def import_pack(folder: Path) -> types.ModuleType:
    """As ComfyUI's load_custom_node does: a package named after its path."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
