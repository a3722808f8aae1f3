"""A real ComfyUI as a subprocess in an empty folder of its own, and its HTTP and WebSocket interface."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

from . import accelerator
from .host_process import HostProcess

ROOT = Path(__file__).parent.parent
PACK = "ResShift für Comfy"  # a space and a letter beyond ASCII
RUN_S = 900  # where half precision is emulated, on the second device, a run takes minutes
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)
CARD_MIB, CARD_NAME = int(os.environ.get("COMFYUI_CARD_MIB", "0")), os.environ.get("COMFYUI_CARD_NAME", "npu")


class Server(HostProcess):
    """`with Server(checkout, base) as comfy:`; `base` gets ComfyUI's input, output, models and custom_nodes.

    card_mib: it runs on the second device of `accelerator`, with so much memory, instead of on the processor.
    """

    name, first_page = "ComfyUI", "/system_stats"

    def __init__(self, checkout: Path, base: Path, arguments: tuple[str, ...] = (), card_mib: int = CARD_MIB):
        super().__init__(checkout, base)
        self.arguments, self.client, self.card_mib = arguments, uuid.uuid4().hex, card_mib
        for folder in ("custom_nodes", "input", "output", "models/resshift", "models/vae", "user", "temp"):
            (base / folder).mkdir(parents=True, exist_ok=True)
        os.symlink(ROOT, base / "custom_nodes" / PACK, target_is_directory=True)

    def command(self) -> list[str]:
        command = [PYTHON, "main.py", "--listen", "127.0.0.1", "--port", str(self.port), "--preview-method", "auto"]
        command += ["--base-directory", str(self.base), "--disable-auto-launch", *self.arguments]
        command += ["--cpu"] if not self.card_mib else ["--directml"] if CARD_NAME == "privateuseone" else []
        return command + os.environ.get("COMFYUI_ARGS", "").split()

    @property
    def passes_on_all_progress(self) -> bool:
        """ComfyUI of 2026 passes on at most ten values a second, and those with a preview."""
        return "PROGRESS_THROTTLE" not in (self.checkout / "comfy" / "utils.py").read_text("utf-8")

    def environment(self) -> dict[str, str]:
        variables = {name: value for name, value in super().environment().items() if name != "RESSHIFT_MODELS_DIR"}
        return variables | (accelerator.environment(self.card_mib, PYTHON, CARD_NAME) if self.card_mib else {})

    def __enter__(self) -> Server:
        super().__enter__()
        self.socket = WebSocket(self.port, f"/ws?clientId={self.client}")
        return self

    def _ask(self, path: str, data: dict | None = None) -> bytes:
        body = None if data is None else json.dumps(data).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def get(self, path: str):
        return json.loads(self._ask(path))

    def post(self, path: str, data: dict) -> bytes:
        return self._ask(path, data)

    def put_image(self, name: str, levels: np.ndarray) -> None:
        """Write (H, W), (H, W, 3) or (H, W, 4) uint8 into the input folder."""
        Image.fromarray(levels).save(self.base / "input" / name)

    def queue(self, graph: dict) -> str:
        """Returns the prompt's id; an invalid graph raises with the server's words."""
        try:
            return json.loads(self.post("/prompt", {"prompt": graph, "client_id": self.client}))["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from error

    def events(self, prompt: str, seconds: float = RUN_S):
        """(type, data) of everything that is said until the prompt has ended; previews are ("preview", bytes)."""
        end = time.monotonic() + seconds
        while True:
            message = self.socket.receive(end - time.monotonic())
            if isinstance(message, bytes):
                yield "preview", message[8:]
                continue
            kind, data = message["type"], message["data"]
            yield kind, data
            if data.get("prompt_id") == prompt and kind in ("execution_success", "execution_error", "execution_interrupted"):
                return

    def run(self, graph: dict) -> dict:
        """Queue, wait, and return the history's entry; an error in a node raises."""
        prompt = self.queue(graph)
        for kind, data in self.events(prompt):
            if kind == "execution_error":
                raise RuntimeError(data["exception_message"])
        for _ in range(50):  # the entry is written after the last event
            if prompt in (history := self.get(f"/history/{prompt}")):
                return history[prompt]
            time.sleep(0.1)
        raise RuntimeError(f"no history of {prompt}")

    def file(self, item: dict) -> bytes:
        return self._ask("/view?" + urllib.parse.urlencode(item))

    def images(self, entry: dict, node: str) -> list[np.ndarray]:
        """What a PreviewImage or SaveImage of a finished prompt shows."""
        files = entry["outputs"][node]["images"]
        return [np.asarray(Image.open(io.BytesIO(self.file(item)))) for item in files]


class WebSocket:
    """The receiving half of RFC 6455, as much as ComfyUI uses: text frames are JSON, binary ones are bytes."""

    def __init__(self, port: int, path: str):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        self.buffer = b""
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, self.buffer = self.buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(head.decode())

    def _more(self) -> None:
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed the socket")
        self.buffer += data

    def _take(self, count: int) -> bytes:
        while len(self.buffer) < count:
            self._more()
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def _frame(self) -> tuple[bool, int, bytes]:
        first, second = self._take(2)
        length = second & 127
        if length > 125:
            length = struct.unpack(">H" if length == 126 else ">Q", self._take(2 if length == 126 else 8))[0]
        return bool(first & 128), first & 15, self._take(length)

    def receive(self, seconds: float) -> dict | bytes:
        """The next message; TimeoutError when none comes."""
        self.socket.settimeout(max(0.1, seconds))
        opcode, data = 0, b""
        while True:
            final, code, part = self._frame()
            if code in (8, 9, 10):  # close, ping, pong
                continue
            opcode, data = code or opcode, data + part
            if final:
                return json.loads(data) if opcode == 1 else data
