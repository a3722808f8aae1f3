"""Workflows as people save them (the page's format) into what /prompt takes, by the rules of ComfyUI's page."""

from __future__ import annotations

import json
from pathlib import Path

SOCKETS_ONLY = ("IMAGE", "MASK", "LATENT", "MODEL", "UPSCALE_MODEL", "RSHIFT_MODEL", "*")


def has_widget(kind) -> bool:
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def widget_names(info: dict) -> list[str | None]:
    """Inputs in the order of `widgets_values`; None stands for a value that the page adds and the server never sees."""
    names: list[str | None] = []
    for group in ("required", "optional"):
        for name, declared in info["input"].get(group, {}).items():
            kind, options = declared[0], declared[1] if len(declared) > 1 else {}
            if not has_widget(kind):
                continue
            names.append(name)
            if options.get("control_after_generate") or options.get("image_upload"):
                names.append(None)
    return names


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """The graph for /prompt. Notes and other nodes that only the page knows are left out."""
    links = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    graph = {}
    for node in workflow["nodes"]:
        if node["type"] in ("Note", "MarkdownNote"):
            continue
        info, inputs = object_info[node["type"]], {}
        for name, value in zip(widget_names(info), node.get("widgets_values", [])):
            if name is not None:
                inputs[name] = value
        for socket in node.get("inputs", []):
            if socket.get("link") is not None:
                inputs[socket["name"]] = list(links[socket["link"]])
        graph[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return graph


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
