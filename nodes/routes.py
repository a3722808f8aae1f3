"""What the page asks the server: facts of a model, for the curve and the memory estimate on the nodes."""

from __future__ import annotations

from aiohttp import web
from server import PromptServer

from ..resshift_core.errors import ResShiftError
from .facts import describe

PATH = "/resshift/model"


def add_routes() -> None:
    """Register the route with ComfyUI's server; called once, when the pack is imported."""

    @PromptServer.instance.routes.get(PATH)
    async def model_facts(request):
        try:
            return web.json_response(describe(request.query.get("name", "")))
        except (ResShiftError, OSError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=404)
