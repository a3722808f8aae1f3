"""Model files: opened safely, recognised by their keys and shapes, loaded, and saved as one .safetensors.

No code in a file ever runs. What shapes cannot tell (steps, scale, task) comes from `variant=`, then from the file's own
metadata, then from the registry by sha256, then from the file's name; if it is still open, the error lists the choices.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .device import resolve_device, resolve_dtype
from .errors import CheckpointError, InputError
from .model import ModelConfig, ResShiftModel
from .registry import REGISTRY, VARIANTS, Entry, find_file, models_dir, search_dirs
from .unet import UNetConfig
from .vqgan import VQGAN, VQGANConfig

log = logging.getLogger("resshift")

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
CONFIG_KEY = "resshift_config"  # of the metadata: ModelConfig as JSON
WRAPPERS = ("state_dict", "params_ema", "ema", "params", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")
BUFFERS = ("relative_position_index", "attn_mask")  # recomputed, never loaded
SHAPE_TELLS_NOTHING = (
    f"Its weights fit several models that differ in steps and scale. Say which one it is with variant=: {', '.join(VARIANTS)}."
)


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        if hasattr(hashlib, "file_digest"):
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------- reading


def _pickles_are_safe() -> bool:
    """`weights_only=True` of torch before 2.6 can be broken out of (CVE-2025-32434)."""
    major, minor = re.match(r"(\d+)\.(\d+)", torch.__version__).groups()
    return (int(major), int(minor)) >= (2, 6)


def _read_safetensors(path: Path) -> tuple[dict, dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})


def _read_pickle(path: Path) -> dict:
    if not _pickles_are_safe() and sha256_of(path) not in {entry.sha256 for entry in REGISTRY.values()}:
        raise CheckpointError(
            f"{path.name} is a pickle, which torch {torch.__version__} cannot open safely. Update torch to 2.6 or later, or "
            "convert the file on a machine that has it: resshift convert IN OUT.safetensors."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def read_file(path: str | os.PathLike) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(weights with canonical keys, metadata) of a .safetensors, .pth, .pt or .ckpt file. Tensors on the CPU as stored.

    Raises:
        CheckpointError: the file is missing, damaged, of another kind or unsafe.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"There is no file {path}. Check the path, or see `resshift models` for names.")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path.name} is empty (0 bytes). Download or copy it again.")
    with open(path, "rb") as file:
        head = file.read(512).lstrip()
    if head[:1] == b"<":
        raise CheckpointError(
            f"{path.name} is a web page, not a model: the download went to a page instead of the file. Download it again."
        )
    if path.suffix.lower() not in SUFFIXES:
        raise CheckpointError(f"{path.name} is not a model file; known endings are {', '.join(SUFFIXES)}.")
    try:
        if path.suffix.lower() == ".safetensors":
            state, metadata = _read_safetensors(path)
        else:
            state, metadata = _read_pickle(path), {}
    except CheckpointError:
        raise
    except SafetensorError as error:
        raise CheckpointError(f"{path.name} is damaged or no .safetensors file ({error}). Get it again.") from error
    except Exception as error:  # torch.load raises a dozen kinds for a file that is not what it should be
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path.name} cannot be read as weights ({reason}). It is damaged, or holds more than tensors, which is refused "
            "because such files can run code."
        ) from error
    return canonical(state, path.name), metadata


def canonical(state, name: str = "the file") -> dict[str, torch.Tensor]:
    """Unwrap nested dictionaries, strip prefixes of DataParallel and torch.compile, drop buffers.

    Raises:
        CheckpointError: there is no dictionary of tensors in it.
    """
    for _ in range(4):  # wrappers may nest
        if not isinstance(state, dict):
            break
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), dict)), None)
        if inner is None:
            break
        state = inner
    if not isinstance(state, dict) or not any(isinstance(value, torch.Tensor) for value in state.values()):
        raise CheckpointError(f"{name} holds no weights: there is no dictionary of tensors in it.")
    weights = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None):
        weights = {key[len(prefix) :]: value for key, value in weights.items()}
    return {key: value for key, value in weights.items() if not key.endswith(BUFFERS)}


# ---------------------------------------------------------------------------------------------------- recognising


def is_unet(state: dict) -> bool:
    return "input_blocks.0.0.weight" in state and "time_embed.0.weight" in state


def is_autoencoder(state: dict) -> bool:
    return "encoder.conv_in.weight" in state and "quantize.embedding.weight" in state


def _indices(state: dict, pattern: str) -> list[int]:
    found = {int(match.group(1)) for key in state if (match := re.match(pattern, key))}
    return sorted(found)


def detect_unet(state: dict[str, torch.Tensor]) -> UNetConfig:
    """The network's configuration from its tensor shapes.

    Not deducible: the nominal size (64 is assumed, as published), the kind of mask of shifted windows ("resshift").

    Raises:
        KeyError, IndexError, ValueError: the keys are not those of this architecture.
    """
    width = state["time_embed.0.weight"].shape[1]
    mult, blocks = [], [0]
    for i in _indices(state, r"input_blocks\.(\d+)\.")[1:]:
        if f"input_blocks.{i}.0.op.weight" in state:
            blocks.append(0)
        else:
            channels = state[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0]
            if blocks[-1] == 0:
                mult.append(channels // width)
            blocks[-1] += 1
    stages = len(_indices(state, r"feature_extractor\.(\d+)\.op\."))
    out_channels = state["out.2.weight"].shape[0]
    trunk = max(0, len(_indices(state, r"trunk\.(\d+)\.")) - 1)
    swin = "input_blocks.1.1.patch_embed.proj.weight" in state
    first = "feature_extractor.0.weight" if stages else None
    lq_channels = state[first].shape[1] if first else 3
    in_channels = out_channels
    settings = {}
    if swin:
        layer = "input_blocks.1.1."
        swin_channels = state[layer + "patch_embed.proj.weight"].shape[0]
        entries, heads = state[layer + "blocks.0.attn.relative_position_bias_table"].shape
        settings = {
            "swin_channels": swin_channels,
            "swin_depth": len(_indices(state, r"input_blocks\.1\.1\.blocks\.(\d+)\.")),
            "head_channels": swin_channels // heads,
            "window": (int(entries**0.5) + 1) // 2,
            "mlp_ratio": state[layer + "blocks.0.mlp.fc1.weight"].shape[0] / swin_channels,
        }
    norm = "none"
    if "out.0.weight" in state:
        norm = "group" if "out.0.bias" in state else "position"
    return UNetConfig(
        in_channels=in_channels,
        out_channels=out_channels,
        mask=lq_channels == 4,
        lq_stages=stages,
        model_channels=width,
        channel_mult=tuple(mult),
        num_res_blocks=blocks[0],
        norm=norm,
        trunk_blocks=trunk,
        **(settings or {"swin_depth": 0}),
    )


def detect_autoencoder(state: dict[str, torch.Tensor]) -> VQGANConfig:
    """The VQGAN's configuration from its tensor shapes; nothing is left open.

    Raises:
        KeyError, ZeroDivisionError: the keys are not those of a VQGAN.
    """
    ch = state["encoder.conv_in.weight"].shape[0]
    levels = _indices(state, r"encoder\.down\.(\d+)\.")
    blocks = tuple(len(_indices(state, rf"encoder\.down\.{i}\.block\.(\d+)\.")) for i in levels)
    mult = tuple(state[f"encoder.down.{i}.block.0.conv2.weight"].shape[0] // ch for i in levels)
    n_embed, embed_dim = state["quantize.embedding.weight"].shape
    return VQGANConfig(ch, mult, blocks, state["encoder.conv_out.weight"].shape[0], embed_dim, n_embed)


def _variant_from_name(name: str) -> str:
    """Published file names, and names people give to renamed copies, carry the kind: `..._realsrx4_s4_v3`, `SinSR`."""
    stem = name.lower().replace("-", "_")
    for entry in REGISTRY.values():
        if entry.variant and Path(entry.file).stem.lower() in stem:
            return entry.variant
    if "sinsr" in stem:
        return "sinsr_x4_s1"
    for variant in VARIANTS:
        task, *_, steps = variant.split("_")
        if task in stem.replace("inpainting", "inpaint") and re.search(rf"(?<![0-9a-z]){steps}(?![0-9])", stem):
            if ("face" in variant) == ("face" in stem) and ("x2" in variant) == ("x2" in stem):
                return variant
    return ""


def _fits(variant: str, unet: UNetConfig) -> bool:
    """Whether shapes allow the variant."""
    kind = VARIANTS[variant]
    stages = {("sr", 4): 0, ("sr", 2): 1, ("inpaint", 1): 2, ("face", 1): 3}[(kind.task, kind.scale)]
    return unet.lq_stages == stages and unet.mask == (kind.task == "inpaint")


def find_variant(unet: UNetConfig, path: Path, asked: str | None, metadata: dict[str, str]) -> str:
    """The word of `VARIANTS` that a published network goes by, in the order of the module's docstring.

    Raises:
        CheckpointError: it stays open, or the shapes contradict the word that was asked for.
    """
    candidates = [variant for variant in VARIANTS if _fits(variant, unet)]
    if asked:
        if asked not in VARIANTS:
            raise InputError(f"variant is {asked!r}; known are {', '.join(VARIANTS)}.")
        if asked not in candidates:
            raise CheckpointError(
                f"{path.name} is not a {asked} model: its low-resolution branch has {unet.lq_stages} stages. "
                f"It may be: {', '.join(candidates) or 'none that is known'}."
            )
        stored = metadata.get("variant") or _variant_from_name(path.name)
        if stored and stored != asked:
            log.warning("%s says that it is %s; it is used as %s, as asked.", path.name, stored, asked)
        return asked
    if metadata.get("variant") in candidates:
        return metadata["variant"]
    if len(candidates) == 1:
        return candidates[0]
    sizes = {entry.size for entry in REGISTRY.values() if entry.sha256}
    if path.stat().st_size in sizes:  # hashing half a gigabyte takes a second: only where it can help
        digest = sha256_of(path)
        for entry in REGISTRY.values():
            if entry.sha256 == digest and entry.variant in candidates:
                return entry.variant
    named = _variant_from_name(path.name)
    if named in candidates:
        return named
    raise CheckpointError(f"{path.name}: {SHAPE_TELLS_NOTHING}")


def _config_of_published(unet: UNetConfig, autoencoder: VQGANConfig, variant: str) -> ModelConfig:
    kind = VARIANTS[variant]
    entry = next((entry for entry in REGISTRY.values() if entry.variant == variant), None)
    return ModelConfig(
        unet,
        autoencoder,
        steps=kind.steps,
        kappa=kind.kappa,
        p=kind.p,
        min_noise_level=kind.min_noise_level,
        sqrt_eta_T=kind.sqrt_eta_T,
        default_steps=kind.default_steps or kind.steps,
        scale=kind.scale,
        task=kind.task,
        tile={4: 128, 2: 128, 1: 512 if kind.task == "face" else 256}[kind.scale],
        overlap={4: 16, 2: 32, 1: 64}[kind.scale],
        variant=variant,
        name=variant,
        licence=entry.licence if entry else "unknown",
    )


# ---------------------------------------------------------------------------------------------------- loading


def _check_state(module: torch.nn.Module, state: dict[str, torch.Tensor], name: str) -> None:
    """Strict comparison of keys and shapes, told as a sentence."""
    wanted = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    wrong = [key for key in wanted if key in state and tuple(state[key].shape) != wanted[key]]
    if missing or unknown or wrong:
        parts = []
        if missing:
            parts.append(f"{len(missing)} weights are missing (first: {missing[0]})")
        if unknown:
            parts.append(f"{len(unknown)} are unknown (first: {unknown[0]})")
        if wrong:
            key = wrong[0]
            parts.append(f"{len(wrong)} have a wrong shape (first: {key} {tuple(state[key].shape)}, not {wanted[key]})")
        raise CheckpointError(f"{name} does not fit its architecture: {'; '.join(parts)}. Get the original file.")
    bad = [key for key, value in state.items() if not value.is_floating_point()]
    if bad:
        raise CheckpointError(f"{name}: the weight {bad[0]} is {state[bad[0]].dtype}, not floating point.")


def resolve_path(model: str | os.PathLike, entry: Entry | None = None) -> Path:
    """A registry name or a path -> the file on this machine.

    Raises:
        CheckpointError: a registered model that is not here yet, with the ways to get it; or no such file.
    """
    entry = entry or REGISTRY.get(str(model))
    if entry is not None and not Path(model).is_file():
        path = entry.find()
        if path is None and entry.bundled:
            raise CheckpointError(f"The weights of {entry.name} are missing from this installation. Install it again.")
        if path is None:
            raise CheckpointError(
                f"{entry.name} ({entry.file}, {entry.licence}) is not on this machine. Run `resshift download {entry.name}`, "
                f"or put the file from {entry.url} into {models_dir()}."
            )
        return path
    path = Path(model).expanduser()
    if path.is_file():
        return path
    found = find_file(path.name) if path.name == str(model) else None
    if found is not None:
        return found
    folders = ", ".join(str(folder) for folder in search_dirs())
    raise CheckpointError(f"There is no model file {model!s}, nor a model of that name in {folders}. See `resshift models`.")


def load_autoencoder(path: str | os.PathLike) -> tuple[VQGANConfig, dict[str, torch.Tensor]]:
    """(configuration, weights) of an autoencoder file.

    Raises:
        CheckpointError: the file is not a VQGAN.
    """
    path = resolve_path(path)
    state, _ = read_file(path)
    if not is_autoencoder(state):
        inner = {key[len("autoencoder.") :]: value for key, value in state.items() if key.startswith("autoencoder.")}
        if not is_autoencoder(inner):
            what = "a diffusion network" if is_unet(state) else "something else"
            raise CheckpointError(
                f"{path.name} is not an autoencoder but {what}. Published ones are called autoencoder_vq_f4.pth."
            )
        state = inner
    try:
        config = detect_autoencoder(state)
        with torch.device("meta"):
            shapes = VQGAN(config)
    except Exception as error:
        raise CheckpointError(f"{path.name} looks like a VQGAN, but its shapes make no sense ({error}).") from error
    _check_state(shapes, state, path.name)
    return config, state


def _load_own(path: Path, state: dict, metadata: dict[str, str]) -> ResShiftModel:
    """A file that `save_model` wrote: configuration in the metadata, both networks' weights."""
    try:
        config = ModelConfig.from_dict(json.loads(metadata[CONFIG_KEY]))
        with torch.device("meta"):
            model = ResShiftModel(config, metadata)
    except Exception as error:
        raise CheckpointError(
            f"{path.name} carries a configuration that this version cannot read ({error}). Update ResShift, or get the file again."
        ) from error
    return _fill(model, state, path.name)


def _fill(model: ResShiftModel, state: dict[str, torch.Tensor], name: str) -> ResShiftModel:
    """Give a model built on the meta device its weights, after a strict check."""
    for part in ("unet", "autoencoder"):
        module = getattr(model, part)
        own = {key[len(part) + 1 :]: value for key, value in state.items() if key.startswith(part + ".")}
        _check_state(module, own, name)
        module.load_state_dict(own, strict=True, assign=True)
    stray = [key for key in state if not key.startswith(("unet.", "autoencoder."))]
    if stray:
        raise CheckpointError(f"{name} holds {len(stray)} weights that no part of a model uses (first: {stray[0]}).")
    return model.eval()


def _load_published(path: Path, state: dict, metadata: dict, autoencoder, variant: str | None) -> ResShiftModel:
    try:
        unet = detect_unet(state)
    except Exception as error:
        raise CheckpointError(
            f"{path.name} looks like a ResShift network, but its shapes make no sense ({error!r})."
        ) from error
    word = find_variant(unet, path, variant, metadata)
    vq_config, vq_state = load_autoencoder(autoencoder or VARIANTS[word].autoencoder)
    if vq_config.latent_channels != unet.out_channels:
        raise CheckpointError(
            f"The autoencoder has {vq_config.latent_channels} latent channels, {path.name} works in {unet.out_channels}. "
            f"{word} belongs with {VARIANTS[word].autoencoder}."
        )
    config = _config_of_published(unet, vq_config, word)
    try:
        with torch.device("meta"):
            model = ResShiftModel(config, metadata)
    except Exception as error:
        raise CheckpointError(f"{path.name} describes a network that cannot be built ({error}).") from error
    joined = {f"unet.{key}": value for key, value in state.items()}
    joined.update({f"autoencoder.{key}": value for key, value in vq_state.items()})
    return _fill(model, joined, path.name)


def load_model(
    model: str | os.PathLike = "builtin",
    *,
    autoencoder: str | os.PathLike | None = None,
    variant: str | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> ResShiftModel:
    """Load a model by name or file.

    Args:
        model: "builtin", another name of `list_models()`, or a path to .safetensors, .pth, .pt or .ckpt.
        autoencoder: file or registry name; None = the one that belongs to the model.
        variant: which published kind a file is, where its shapes leave it open; wins over the file's own metadata.
        device: "auto" (CUDA, XPU, MPS, else CPU), or anything torch knows.
        dtype: "auto" (bf16 where the hardware has it, else fp16 on CUDA, else fp32), "fp32", "bf16", "fp16", or a
            torch.dtype.

    Raises:
        CheckpointError: the file is missing, damaged, foreign, unsafe, or leaves its kind open.
        InputError: device, dtype or variant is unknown.
    """
    where = resolve_device(device)
    kind = resolve_dtype(dtype, where)
    entry = REGISTRY.get(str(model)) if not Path(model).is_file() else None
    path = resolve_path(model, entry)
    state, metadata = read_file(path)
    if CONFIG_KEY in metadata:
        loaded = _load_own(path, state, metadata)
        if variant and variant != loaded.config.variant:
            raise InputError(f"{path.name} carries its own configuration; variant={variant!r} cannot change it.")
        if autoencoder is not None:
            log.warning("%s contains its autoencoder; %s is not used.", path.name, autoencoder)
    elif is_unet(state):
        known = entry.variant if entry is not None else None
        loaded = _load_published(path, state, metadata, autoencoder, variant or known)
    elif is_autoencoder(state):
        raise CheckpointError(f"{path.name} is an autoencoder. Choose a diffusion model, and give this file as autoencoder=.")
    else:
        some = ", ".join(sorted(state)[:3])
        raise CheckpointError(f"{path.name} is not a ResShift model: its weights are called {some} ...")
    if entry is not None and not loaded.config.name:
        loaded.config = replace(loaded.config, name=entry.name)
    return loaded.to(where, kind)


# ---------------------------------------------------------------------------------------------------- saving


def save_weights(state: dict[str, torch.Tensor], metadata: dict[str, str], path: str | os.PathLike) -> Path:
    """Write a .safetensors by atomic rename: the file is there whole or not at all.

    Raises:
        InputError: the name does not end in .safetensors.
        CheckpointError: the folder cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".safetensors":
        raise InputError(f"{path.name} must end in .safetensors.")
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, part, metadata=metadata)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(part, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written ({error}).") from error
    finally:
        if part is not None and os.path.exists(part):
            os.unlink(part)
    return path


def save_model(model: ResShiftModel, path: str | os.PathLike, metadata: dict[str, str] | None = None) -> Path:
    """One .safetensors with UNet, autoencoder and configuration, in the dtype the model has now.

    `load_model` of the result needs neither `autoencoder=` nor `variant=`. `metadata` adds strings to those the model came
    with.

    Raises:
        InputError: the name does not end in .safetensors.
        CheckpointError: the folder cannot be written.
    """
    stored = {
        **model.metadata,
        **(metadata or {}),
        "format": "pt",
        "licence": model.config.licence,
        CONFIG_KEY: json.dumps(model.config.to_dict()),
    }
    return save_weights(model.state_dict(), {key: str(value) for key, value in stored.items()}, path)


def convert(source: str | os.PathLike, target: str | os.PathLike, variant: str | None = None) -> Path:
    """Rewrite any readable model file as .safetensors with canonical keys and the stored dtype.

    A published network keeps its own file (its autoencoder stays apart) and gets its variant written into the metadata
    where it can be told.

    Raises:
        CheckpointError, InputError: as `read_file` and `save_weights`.
    """
    source = resolve_path(source)
    state, metadata = read_file(source)
    if is_unet(state) and CONFIG_KEY not in metadata:
        try:
            unet = detect_unet(state)
        except Exception as error:
            raise CheckpointError(
                f"{source.name} looks like a ResShift network, but its shapes make no sense ({error!r})."
            ) from error
        try:
            metadata["variant"] = find_variant(unet, source, variant, metadata)
        except CheckpointError:
            if variant:
                raise
            log.warning("%s: %s The converted file will ask again.", source.name, SHAPE_TELLS_NOTHING)
    return save_weights(state, {**metadata, "format": "pt"}, target)
