"""A real WebUI (A1111, Forge) as a subprocess with an empty data folder of its own, and its HTTP interface."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from PIL import Image

from . import accelerator
from .host_process import HostProcess

ROOT = Path(__file__).parent.parent
EXTENSION = "ResShift für WebUI"  # a space and a letter beyond ASCII
RUN_S = 300
USER = "tester:secret"
ARGUMENTS = (
    "--nowebui --api --skip-torch-cuda-test --skip-prepare-environment --skip-version-check "
    f"--server-name 127.0.0.1 --api-auth {USER}"
)
NO_MODEL = "--no-download-sd-model --do-not-download-clip"
ON_CPU = {True: "--disable-nan-check --always-cpu", False: f"--disable-nan-check --use-cpu all --no-half {NO_MODEL}"}  # Forge, A1111
ON_CPU_NEO = "--cpu"  # Forge Neo
ON_CARD = {True: ("privateuseone", "--directml"), False: ("npu", f"--no-half {NO_MODEL}")}  # which foreign devices they know
# An extension beside ours, for what no route of the host reaches without a Stable Diffusion checkpoint.
PROBE = '''
import base64, io, sys
import torch
from modules import images, script_callbacks, shared
from modules.call_queue import queue_lock
from PIL import Image
from pydantic import BaseModel


class Resize(BaseModel):
    image: str
    upscaler: str
    width: int
    height: int


def resize(request: Resize):
    """What hires fix and img2img do: images.resize_image, inside the host's autocast."""
    image = Image.open(io.BytesIO(base64.b64decode(request.image)))
    with queue_lock, torch.autocast("cpu", torch.bfloat16):
        result = images.resize_image(0, image, request.width, request.height, upscaler_name=request.upscaler)
    buffer = io.BytesIO()
    result.save(buffer, "PNG")
    return {"image": base64.b64encode(buffer.getvalue()).decode()}


def reload_ui():
    """What the button does to scripts and upscalers."""
    from modules import initialize
    script_callbacks.script_unloaded_callback()
    initialize.initialize_rest(reload_script_modules=False)
    script_callbacks.before_ui_callback()
    return {}


def list_upscalers():
    """What the button beside Forge Neo's upscalers does."""
    from modules import modelloader
    modelloader.load_upscalers()
    return {}


def settings_page():
    """What a page that is opened does with our options: each is written into its component anew. Gradio 3 checks the words."""
    from modules import ui_settings
    ours = [key for key in shared.opts.data_labels if key.startswith("resshift_")]
    for key in ours:
        words = {word: value for word, value in ui_settings.get_value_for_setting(key).items() if word != "__type__"}
        update = getattr(shared.opts.data_labels[key].component, "update", None)
        if update is not None:
            update(**words)
    return ours


def card(limit: int = 0):
    """Memory of the second device that is taken, was taken at most since the last call, and, from now on, there is."""
    device = torch.ops.resshift_card
    if limit:
        device.set_limit(limit)
    told = {"used": device.used(), "peak": device.peak(), "limit": device.limit()}
    device.reset_peak()
    return told


def count_passes():
    """A route that tells how often rs.upscale was called: each call is one diffusion pass over a picture."""
    core, passes = sys.modules["resshift_core"], []
    upscale = core.upscale

    def counted(*args, **keywords):
        passes.append(1)
        return upscale(*args, **keywords)

    core.upscale = counted
    return lambda: len(passes)


def add_routes(_, app):
    app.add_api_route("/probe/passes", count_passes(), methods=["GET"])
    app.add_api_route("/probe/card", card, methods=["GET"])
    app.add_api_route("/probe/resize", resize, methods=["POST"])
    app.add_api_route("/probe/reload", reload_ui, methods=["POST"])
    app.add_api_route("/probe/list", list_upscalers, methods=["POST"])
    app.add_api_route("/probe/settings", settings_page, methods=["POST"])


script_callbacks.on_app_started(add_routes)
'''


def encoded(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


class Refused(ConnectionError):
    """The server answered with an error status."""

    def __init__(self, status: int, body: dict):
        super().__init__(f"{status}: {body}")
        self.status, self.text = status, json.dumps(body)


class Server(HostProcess):
    """`with Server(checkout, base) as webui:`; `base` gets the host's models, outputs and extensions.

    card_mib: it runs on the second device of `accelerator`, with so much memory, instead of on the processor.
    """

    name, start_s, first_page = "WebUI", 300, "/sdapi/v1/upscalers"

    def __init__(self, checkout: Path, base: Path, card_mib: int = 0):
        super().__init__(checkout, base)
        self.forge, self.card_mib = (checkout / "modules_forge").is_dir(), card_mib
        version = checkout / "modules_forge" / "forge_version.py"
        self.neo = version.is_file() and '"neo"' in version.read_text(encoding="utf-8")
        self.models = base / "models" / "ResShift"
        for folder in (self.models, base / "extensions" / "probe" / "scripts"):
            folder.mkdir(parents=True)
        (base / "extensions" / "probe" / "scripts" / "probe.py").write_text(PROBE, encoding="utf-8")
        os.symlink(ROOT, base / "extensions" / EXTENSION, target_is_directory=True)

    @property
    def python(self) -> str:
        return os.environ.get("WEBUI_PYTHON", sys.executable)

    def command(self) -> list[str]:
        on_cpu = ON_CPU_NEO if self.neo else ON_CPU[self.forge]
        where = f"--disable-nan-check {ON_CARD[self.forge][1]}" if self.card_mib else on_cpu
        arguments = os.environ.get("WEBUI_ARGS", f"{ARGUMENTS} {where}").split()
        return [self.python, "launch.py", *arguments, "--port", str(self.port), "--data-dir", str(self.base)]

    def environment(self) -> dict[str, str]:
        card = accelerator.environment(self.card_mib, self.python, ON_CARD[self.forge][0]) if self.card_mib else {}
        return {**super().environment(), **card, "RESSHIFT_MODELS_DIR": str(self.base / "nowhere")}

    def ask(self, path: str, data: dict | None = None, user: str = USER):
        """GET, or POST where there is `data`. Raises Refused."""
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {base64.b64encode(user.encode()).decode()}"}
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=RUN_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            text = error.read()
            raise Refused(error.code, json.loads(text) if text.startswith((b"{", b"[")) else {"text": text.decode()}) from error

    def get(self, path: str):
        return self.ask(path)

    def post(self, path: str, data: dict | None = None):
        return self.ask(path, data or {})

    def passes(self) -> int:
        """Diffusion passes so far."""
        return self.get("/probe/passes")

    def upscalers(self) -> list[str]:
        return [item["name"] for item in self.get("/sdapi/v1/upscalers") if item["name"].startswith("ResShift")]

    def extras(self, image: Image.Image, upscaler: str, factor: float = 4.0, **more) -> tuple[Image.Image, str]:
        """(result, the words of its file) of /sdapi/v1/extra-single-image."""
        body = {"image": encoded(image), "upscaler_1": upscaler, "upscaling_resize": factor, **more}
        answer = self.post("/sdapi/v1/extra-single-image", body)
        return decoded(answer["image"]), answer["html_info"]

    def options(self, **values) -> None:
        self.post("/sdapi/v1/options", {f"resshift_{word}": value for word, value in values.items()})

    def while_running(self, run, seconds: float = RUN_S):
        """Start `run` in a thread; gives /sdapi/v1/progress again and again until it has ended."""
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        end = time.monotonic() + seconds
        while thread.is_alive() and time.monotonic() < end:
            yield self.get("/sdapi/v1/progress")
            time.sleep(0.1)
        thread.join(max(0.0, end - time.monotonic()))
        assert not thread.is_alive(), self.text()
