"""Text on a node while it runs, where this version of ComfyUI can show it."""

from __future__ import annotations

import inspect
import logging

log = logging.getLogger("resshift")

NO_MARKUP = {ord(letter): None for letter in "<>&[]"}  # pages of 2025 take such text for HTML, and it may name what a file says


def show_text(node_id: str | None, text: str) -> None:
    """Show a line on the node in the user's page; silently nothing where there is no page or no such feature."""
    if node_id is None:
        return
    text = text.translate(NO_MARKUP)
    try:
        from server import PromptServer

        server = PromptServer.instance
        if "sid" in inspect.signature(server.send_progress_text).parameters:  # without it, every open page would show the text
            server.send_progress_text(text, node_id, sid=server.client_id)
        else:
            server.send_progress_text(text, node_id)
    except Exception as error:  # a matter of display must not end a run
        log.debug("No text on node %s: %s", node_id, error)
