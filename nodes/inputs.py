"""The one table of the nodes: keys, titles, inputs, outputs and their explanations.

INPUT_TYPES, the locales, the help pages and the tests are made from it. Keys, input ids and their order are stored in
people's workflows: append, never rename or reorder; ranges may only become wider. Nothing here needs ComfyUI or torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ..resshift_core.inputs import (
    COLOR_FIX,
    KAPPA,
    NOISE,
    OVERLAP,
    SAMPLER,
    SCALE,
    SEED_MAX,
    STEPS,
    TILE,
    TILE_BATCH,
    WRAP,
    Input,
    P,
)  # fmt: skip
from ..resshift_core.inputs import SEED as PLAIN_SEED

MODEL = "RSHIFT_MODEL"
CATEGORY = "image/upscaling/ResShift"
ALIASES = ("super resolution", "upscale", "SR", "restore", "4x", "diffusion upscaler", "ResShift")


@dataclass(frozen=True)
class Output:
    kind: str
    name: str
    tooltip: str


@dataclass(frozen=True)
class Node:
    """One node; `notes` are the paragraphs of its help page."""

    key: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    notes: tuple[str, ...] = field(default=())


MODEL_SOCKET = Input("model", MODEL, "model", "A model from Load ResShift Model.")
LAZY_MODEL = replace(MODEL_SOCKET, extra=(("lazy", True),))  # loaded, or even downloaded, when the node asks for it
IMAGE = Input("image", "IMAGE", "image", "The picture, or the frames, to work on. RGB, RGBA (transparency is kept) or grey.")
SEED = replace(PLAIN_SEED, extra=(("control_after_generate", True),))
MASK = Input(
    "mask", "MASK", "mask",
    "White = ResShift's result, black = plain bicubic enlargement. With an inpainting model: white = fill in.",
    required=False,
)  # fmt: skip
HOLE = Input("mask", "MASK", "mask", "White = fill in, black = keep.")
UPSCALE_INPUTS = (MODEL_SOCKET, IMAGE, SEED, STEPS, KAPPA, P, SAMPLER, SCALE, COLOR_FIX, NOISE)
UPSCALED = Output("IMAGE", "image", "The result, with the channels that the input had.")

LOADER = Node(
    "LoadResShiftModel",
    "Load ResShift Model",
    "Loads a ResShift model: a built-in one, a published one (downloaded when first used) or a file of yours.",
    (
        Input(
            "model", "COMBO", "model",
            "builtin (faithful) and builtin-real (crisp: it removes noise, blur and JPEG, and invents texture) work immediately, "
            "offline, for any purpose (Apache-2.0). Names with a size in brackets are published models: they are downloaded when "
            "first used, and are for non-commercial use only (S-Lab License 1.0; SinSR: CC BY-NC-SA 4.0). The others are your files in "
            "models/resshift.",
            "builtin", choices="models",
        ),
        Input(
            "autoencoder", "COMBO", "autoencoder",
            "auto: the one that belongs to the model (downloaded when needed). Names with a size in brackets are published ones: "
            "choosing one downloads it when it is first used; they are for non-commercial use only. The others are files in "
            "models/resshift or models/vae. Ignored by models that contain theirs.",
            "auto", choices="autoencoders",
        ),
        Input(
            "dtype", "COMBO", "dtype",
            "Number format. auto: bf16 or fp16 where the hardware has it, else fp32; ComfyUI's own flags are respected.",
            "auto", choices=("auto", "fp32", "bf16", "fp16"),
        ),
    ),
    (Output(MODEL, "model", "For the other ResShift nodes."),),
    (
        "Files are looked for in `models/resshift`, in every folder that `extra_model_paths.yaml` lists under `resshift`, and "
        "(autoencoders) in `models/vae`. Downloads go to the first folder of models that can be written into, can be resumed, "
        "and are checked. Without internet, put the file there by hand; the error message names it.",
        "The kind of a network is read from its weights. What weights cannot tell (the number of steps) comes from the file's "
        "metadata or name: a renamed file should keep that part of its name, such as `realsr_x4_s15`.",
    ),
)  # fmt: skip

UPSCALE = Node(
    "ResShiftUpscaleImage",
    "ResShift Upscale",
    "Upscales pictures with a short diffusion chain (ResShift). Leave the numbers at 0 for the model's own settings.",
    (*UPSCALE_INPUTS, MASK),
    (UPSCALED,),
    (
        "Pictures larger than the model's tile are worked on in overlapping tiles, so beyond the input and the result (100 MB for "
        "each 4K frame) memory does not grow with the picture or the number of frames. When memory is short anyway, tiles "
        "become smaller and, at last, the processor takes over; nothing needs to be set.",
        "The curve on the node is sqrt(eta) over the steps t: at 0 the chain is at the sharp picture, at 1 at the input with noise; "
        "a run goes from right to left. Grey is the curve that the model was trained with, the shaded area the noise in units of "
        "the trained kappa.",
        "Frames of a film: connect them as one batch, set noise to shared, and keep the seed fixed.",
    ),
)

TILED = Node(
    "TiledResShiftUpscaleImage",
    "Tiled ResShift",
    "ResShift Upscale with the tiles in your hands: size, overlap, how many go together, and wrap-around for textures.",
    (*UPSCALE_INPUTS, TILE, OVERLAP, TILE_BATCH, WRAP, MASK),
    (UPSCALED,),
    (
        "All tiles share one noise field, so the same seed gives nearly the same picture at every tile size. Overlaps are "
        "blended smoothly.",
        "The node draws where the tiles lie and estimates the memory that one batch of tiles takes beside the weights.",
        "wrap-around makes textures that repeat without a seam: noise, context and blending all continue at the other side.",
    ),
)

INPAINT = Node(
    "ResShiftInpaint",
    "ResShift Inpaint",
    "Fills in the white part of the mask with an inpainting checkpoint; the rest of the picture stays as it is.",
    (LAZY_MODEL, IMAGE, HOLE, SEED, STEPS, KAPPA, P, SAMPLER, NOISE),
    (Output("IMAGE", "image", "The picture with the hole filled in."),),
    (
        "Needs an inpainting model: inpaint_imagenet_s4 for photographs, inpaint_face_s4 for faces. Both are made for pictures "
        "of about 256 pixels; larger ones are worked on in tiles of that size.",
        "A mask of another size is stretched to the picture. What lies under the mask is blanked before the model sees it. Where "
        "the mask is black everywhere, the picture comes back as it is, and the model is neither loaded nor downloaded.",
    ),
)

ADAPTER = Node(
    "ResShiftToUpscaleModel",
    "ResShift as Upscale Model",
    "Makes an upscale model that Upscale Image (using Model), Ultimate SD Upscale and other packs accept.",
    (
        MODEL_SOCKET,
        Input(
            "seed", "INT", "seed", "Start of the random numbers: the same seed gives the same picture.",
            0, 0, SEED_MAX, extra=(("control_after_generate", True),),
        ),
        STEPS, KAPPA, P, COLOR_FIX,
    ),
    (Output("UPSCALE_MODEL", "upscale_model", "For Upscale Image (using Model) and every node that takes such a model."),),
    (
        "Such nodes cut the picture into tiles of their own and do not say where a tile lies. The adapter therefore samples "
        "deterministically with noise that repeats every 480 pixels, the distance of the tiles of Upscale Image (using "
        "Model). Where you can choose, ResShift Upscale gives the better picture: one noise field and smooth blending.",
        "Many of these nodes drop transparency; ResShift Upscale keeps it.",
    ),
)  # fmt: skip

NODES = {node.key: node for node in (LOADER, UPSCALE, TILED, INPAINT, ADAPTER)}


def input_types(node: Node, lists: dict[str, list[str]]) -> dict[str, dict[str, tuple]]:
    """INPUT_TYPES of a node; `lists` holds the choices that are only known while running."""
    declared: dict[str, dict[str, tuple]] = {"required": {}, "optional": {}}
    for item in node.inputs:
        choices = lists[item.choices] if isinstance(item.choices, str) else list(item.choices)
        kind, options = item.declaration(choices)
        options["display_name"] = item.name  # where the page has no translation of ours, it would show the id
        declared["required" if item.required else "optional"][item.id] = kind, options
    declared["hidden"] = {"unique_id": "UNIQUE_ID"}
    return {group: inputs for group, inputs in declared.items() if inputs}
