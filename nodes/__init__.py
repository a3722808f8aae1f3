"""ComfyUI glue around resshift_core. inputs: the table of nodes; loader, upscaling, adapter: the nodes themselves."""

from .adapter import ResShiftToUpscaleModel
from .folders import register_folder
from .inputs import NODES
from .loader import LoadResShiftModel
from .upscaling import ResShiftInpaint, ResShiftUpscaleImage, TiledResShiftUpscaleImage

NODE_CLASS_MAPPINGS = {
    node.__name__: node
    for node in (
        LoadResShiftModel,
        ResShiftUpscaleImage,
        TiledResShiftUpscaleImage,
        ResShiftInpaint,
        ResShiftToUpscaleModel,
    )
}
NODE_DISPLAY_NAME_MAPPINGS = {key: NODES[key].title for key in NODE_CLASS_MAPPINGS}

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "register_folder"]
