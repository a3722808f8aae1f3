"""What the page asks the server: facts of a model, and this pack's own files where ComfyUI does not find them."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from urllib.parse import quote

from aiohttp import web
from server import PromptServer

from ..resshift_core.errors import ResShiftError
from .facts import describe

log = logging.getLogger("resshift")

PATH = "/resshift/model"


def add_routes(pack: Path) -> None:
    """Register the routes with ComfyUI's server; called once, when the pack in the folder `pack` is imported."""
    routes = PromptServer.instance.routes
    if any(getattr(route, "path", None) == PATH for route in routes):  # with two of one path the server would not start
        log.warning("ResShift is there twice: ComfyUI takes its nodes from %s. Remove one of the copies.", pack)
    else:
        routes.get(PATH)(_model_facts)
    if quote(pack.name) != pack.name:  # aiohttp 3.11 and later: static folders whose names need quoting are never found
        name = f"{{pack:{re.escape(pack.name)}}}"
        routes.get(f"/extensions/{name}/{{path:.+}}")(_files_of(pack / "web"))
        routes.get(f"/workflow_templates/{name}/{{path:.+}}")(_files_of(pack / "example_workflows"))


async def _model_facts(request):
    try:
        facts = await asyncio.to_thread(describe, request.query.get("name", ""))
        return web.json_response(facts)
    except (ResShiftError, OSError, ValueError) as error:
        log.debug("The page asked for a model that cannot be described: %s", error)  # with the names of folders
        return web.json_response({"error": "unknown"}, status=404)


def _files_of(folder: Path):
    """A handler that serves the files below a folder, and nothing above it."""
    folder = folder.resolve()

    async def serve(request):
        below = request.match_info["path"]
        if "\\" in below or ":" in below or below.startswith("/"):  # to resolve a Windows share is to ask its server
            raise web.HTTPNotFound()
        path = (folder / below).resolve()
        if folder not in path.parents or not path.is_file():
            raise web.HTTPNotFound()
        return web.FileResponse(path)

    return serve
