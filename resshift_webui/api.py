"""Routes of our own, with every parameter: /resshift/v1/models, /settings and /upscale. Only where the host runs its API."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import asdict

from fastapi import HTTPException
from modules import shared
from modules.call_queue import queue_lock
from PIL import Image
from pydantic import BaseModel, create_model

from resshift_core.errors import InputError, ResShiftError
from resshift_core.image_io import Picture, read_picture, write_picture

from . import host
from .entries import BUILTIN, Entry, find_entry, list_entries
from .session import SESSION, settings_of_options
from .settings import INPUTS, Settings, check_scale
from .upscaling import Result, upscale_image

HOST_ROUTE = "/sdapi/v1/extra-single-image"  # what protects it protects ours
KINDS = {"INT": int, "FLOAT": float, "COMBO": str, "BOOLEAN": bool}

Request = create_model(
    "ResShiftRequest",
    image=(str, ...),  # base64 of a picture file, with or without "data:image/png;base64,"
    model=(str, BUILTIN),  # an entry's name, a name of the registry, or a file's name
    scale=(float, 0.0),
    **{word: (KINDS[item.kind], getattr(Settings(), word)) for word, item in INPUTS.items()},
)


class Answer(BaseModel):
    image: str  # base64 of a PNG, whose text holds `info`
    info: dict
    sheet: str = ""  # base64 of a PNG where `compare` was asked for


def add_routes(_demo, app) -> None:
    """Called when the host's server has started."""
    host_route = next((route for route in app.routes if getattr(route, "path", "") == HOST_ROUTE), None)
    if host_route is None:  # no API in this host, or not asked for
        return
    guards = list(host_route.dependencies)
    app.add_api_route("/resshift/v1/models", models, methods=["GET"], dependencies=guards)
    app.add_api_route("/resshift/v1/settings", settings, methods=["GET"], dependencies=guards)
    app.add_api_route("/resshift/v1/upscale", upscale, methods=["POST"], response_model=Answer, dependencies=guards)


def models() -> list[dict]:
    """The entries: name, source (a name of the registry or a file's name), scale."""
    return [
        {"name": entry.name, "source": entry.source.replace("\\", "/").rsplit("/", 1)[-1], "scale": entry.scale}
        for entry in list_entries()
    ]


def settings() -> dict:
    """The options resshift_<input> as the upscaler entries will use them; 422 where one is out of range."""
    try:
        return asdict(settings_of_options())
    except InputError as error:
        raise HTTPException(422, str(error)) from error


def upscale(request: Request) -> Answer:
    """One picture. 422: something in the request is wrong; 409: it was interrupted; 500: the model cannot be loaded or run."""
    values = dict(request)
    try:
        picture, chosen, scale = _decoded(values["image"]), Settings.of(values), check_scale(values["scale"])
        entry = find_entry(values["model"])
        with queue_lock:
            result = _as_a_job(picture, entry, chosen, scale)
    except InputError as error:
        raise HTTPException(422, str(error)) from error
    except ResShiftError as error:
        raise HTTPException(500, str(error)) from error
    if result is None:
        raise HTTPException(409, "The run was interrupted.")
    info = result.made.as_text()
    sheet = _encoded(result.sheet, {}, picture) if result.sheet else ""
    return Answer(image=_encoded(result.image, info, picture), info=info, sheet=sheet)


def _as_a_job(picture: Picture, entry: Entry, settings: Settings, scale: float) -> Result | None:
    """Run as the host runs its own: progress is told, Interrupt works."""
    shared.state.begin("resshift")  # positional: the word differs between hosts
    try:
        shared.state.job_count = 1
        shared.state.nextjob()
        SESSION.begin(None)
        return upscale_image(picture, entry, settings, scale=scale, owns_bar=True)
    finally:
        shared.state.end()


def _decoded(text: str) -> Picture:
    """Base64 -> a picture, upright; the same care as for files.

    Raises:
        InputError: it is no picture, damaged or too large.
    """
    try:
        text = "".join((text.partition("base64,")[2] or text).split())  # many encoders break lines
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError("image is not base64 text of a picture file.") from error
    return read_picture(data, "image")


def _encoded(image: Image.Image, info: dict, like: Picture) -> str:
    """Base64 of a PNG with what lay beside the pixels of `like`."""
    words = ", ".join(f"{word}: {host.quoted(value)}" for word, value in info.items())
    buffer = io.BytesIO()
    write_picture(image, buffer, "PNG", like, {"postprocessing": words} if info else {})
    return base64.b64encode(buffer.getvalue()).decode("ascii")
