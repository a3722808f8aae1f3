"""Gives a node's class everything that ComfyUI asks of it from the table in inputs.py."""

from __future__ import annotations

from .folders import choice_lists
from .inputs import ALIASES, CATEGORY, NODES, input_types


def described(cls):
    """Class decorator: INPUT_TYPES, RETURN_TYPES, DESCRIPTION and the like, by the class's name."""
    node = NODES[cls.__name__]
    cls.INPUT_TYPES = classmethod(lambda cls: input_types(node, choice_lists()))
    cls.RETURN_TYPES = tuple(output.kind for output in node.outputs)
    cls.RETURN_NAMES = tuple(output.name for output in node.outputs)
    cls.OUTPUT_TOOLTIPS = tuple(output.tooltip for output in node.outputs)
    cls.DESCRIPTION = node.description
    cls.CATEGORY = CATEGORY
    cls.SEARCH_ALIASES = list(ALIASES)
    cls.FUNCTION = "run"
    cls.HAS_INTERMEDIATE_OUTPUT = "IMAGE" in cls.RETURN_TYPES  # newer ComfyUI: the slider's pictures come again from the cache
    return cls
