"""ResShift for ComfyUI. ComfyUI imports this folder as a package named after its path; everything else passes it by."""

import importlib.util
from pathlib import Path

NODE_CLASS_MAPPINGS: dict = {}
NODE_DISPLAY_NAME_MAPPINGS: dict = {}
WEB_DIRECTORY = "./web"
__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]


def _in_comfyui() -> bool:
    """Imported as a package by ComfyUI, not collected by pytest or pip."""
    return bool(__package__) and all(importlib.util.find_spec(name) for name in ("comfy", "folder_paths"))


if _in_comfyui():
    from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, register_folder

    register_folder()
    try:  # the page's plots need it, the nodes do not
        from .nodes.routes import add_routes

        add_routes(Path(__file__).parent)
    except Exception as error:
        import logging

        logging.getLogger("resshift").warning("The curves on the ResShift nodes are not available: %s", error)
