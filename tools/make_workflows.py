"""Writes example_workflows/*.json: the templates that ComfyUI lists for this pack. Run it from anywhere; no arguments."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "example_workflows"
CORE = {  # of ComfyUI's own nodes: sockets in, sockets out
    "LoadImage": ((), (("IMAGE", "IMAGE"), ("MASK", "MASK"))),
    "PreviewImage": ((("images", "IMAGE"),), ()),
    "SaveImage": ((("images", "IMAGE"),), ()),
    "ImageBatch": ((("image1", "IMAGE"), ("image2", "IMAGE")), (("IMAGE", "IMAGE"),)),
    "SaveAnimatedWEBP": ((("images", "IMAGE"),), ()),
    "ImageUpscaleWithModel": ((("upscale_model", "UPSCALE_MODEL"), ("image", "IMAGE")), (("IMAGE", "IMAGE"),)),
    "MarkdownNote": ((), ()),
}


def table():
    """nodes/inputs.py without the package's own imports: a package called `nodes` may belong to someone else."""
    for package, folder in (("resshift_pack", ROOT), ("resshift_pack.nodes", ROOT / "nodes")):
        sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(folder)]
    return importlib.import_module("resshift_pack.nodes.inputs")


NODES = table().NODES


def sockets(kind: str):
    if kind in CORE:
        return CORE[kind]
    node = NODES[kind]
    return tuple((i.id, i.kind) for i in node.inputs if i.is_socket), tuple((o.name, o.kind) for o in node.outputs)


def widgets(kind: str, **chosen) -> list:
    """widgets_values of one of our nodes: defaults unless chosen."""
    values = []
    for item in NODES[kind].inputs:
        if item.is_socket:
            continue
        values.append(chosen.pop(item.id, item.default))
        if ("control_after_generate", True) in item.extra:
            values.append("fixed")
    assert not chosen, chosen
    return values


@dataclass
class Graph:
    nodes: list[dict] = field(default_factory=list)
    links: list[list] = field(default_factory=list)

    def add(self, kind: str, pos, size, values=(), title="", **wires) -> int:
        """A node; `wires` are input=(node, output number). Returns its number."""
        into, out = sockets(kind)
        number = len(self.nodes) + 1
        node = {
            "id": number, "type": kind, "pos": list(pos), "size": list(size), "flags": {}, "order": number - 1, "mode": 0,
            "inputs": [{"name": name, "type": type_, "link": None} for name, type_ in into],
            "outputs": [{"name": name, "type": type_, "links": [], "slot_index": i} for i, (name, type_) in enumerate(out)],
            "properties": {"Node name for S&R": kind}, "widgets_values": list(values),
        }  # fmt: skip
        if title:
            node["title"] = title
        self.nodes.append(node)
        for name, (source, slot) in wires.items():
            self._link(source, slot, number, [i for i, _ in into].index(name))
        return number

    def _link(self, source: int, slot: int, target: int, index: int) -> None:
        number, output = len(self.links) + 1, self.nodes[source - 1]["outputs"][slot]
        self.links.append([number, source, slot, target, index, output["type"]])
        output["links"].append(number)
        self.nodes[target - 1]["inputs"][index]["link"] = number

    def note(self, pos, size, text: str) -> None:
        self.add("MarkdownNote", pos, size, [text])

    def json(self) -> str:
        whole = {
            "last_node_id": len(self.nodes), "last_link_id": len(self.links), "nodes": self.nodes, "links": self.links,
            "groups": [], "config": {}, "extra": {}, "version": 0.4,
        }  # fmt: skip
        return json.dumps(whole, indent=1) + "\n"


def start(graph: Graph, model: str = "builtin") -> tuple[int, int]:
    """Loader and picture, at the left."""
    loader = graph.add("LoadResShiftModel", (40, 60), (330, 110), widgets("LoadResShiftModel", model=model))
    return loader, graph.add("LoadImage", (40, 240), (330, 330), ["example.png", "image"])


def single(model: str, prefix: str, note: str) -> Graph:
    """One picture through one model with everything as trained."""
    graph = Graph()
    loader, image = start(graph, model)
    run = graph.add(
        "ResShiftUpscaleImage", (420, 60), (330, 420), widgets("ResShiftUpscaleImage"), model=(loader, 0), image=(image, 0)
    )
    graph.add("SaveImage", (800, 60), (420, 450), [prefix], images=(run, 0))
    graph.note((40, 630), (330, 170), note)
    return graph


def upscale() -> Graph:
    return single(
        "builtin", "ResShift",
        "**Upscale a picture 4 times.** Works offline with the built-in model. Leave the numbers at 0: that is how the model "
        "was trained. Set *scale* for any other size.",
    )  # fmt: skip


def restore() -> Graph:
    return single(
        "builtin-real", "ResShift_restored",
        "**Restore a damaged picture.** *builtin-real* removes noise, blur and JPEG while it enlarges 4 times, and invents "
        "texture. Fewer *steps* keep nearer to the input; more steps or less *kappa* are crisper.",
    )  # fmt: skip


def tiled() -> Graph:
    graph = Graph()
    loader, image = start(graph)
    run = graph.add(
        "TiledResShiftUpscaleImage", (420, 60), (330, 660),
        widgets("TiledResShiftUpscaleImage", tile=128, overlap=32, color_fix="wavelet"), model=(loader, 0), image=(image, 0),
    )  # fmt: skip
    graph.add("SaveImage", (800, 60), (420, 450), ["ResShift_4K"], images=(run, 0))
    graph.note(
        (40, 630), (330, 170),
        "**A large picture in tiles.** A picture of 960 x 540 becomes 3840 x 2160 (4K). Beyond the input and the result, memory "
        "depends on *tile* and *tiles per batch*, not on the picture; the node shows an estimate. *wrap-around* makes textures "
        "without a seam.",
    )  # fmt: skip
    return graph


def frames() -> Graph:
    graph = Graph()
    loader, first = start(graph)
    second = graph.add("LoadImage", (40, 610), (330, 330), ["example.png", "image"])
    batch = graph.add("ImageBatch", (420, 60), (220, 60), image1=(first, 0), image2=(second, 0))
    run = graph.add(
        "ResShiftUpscaleImage", (420, 180), (330, 420), widgets("ResShiftUpscaleImage", noise="shared"),
        model=(loader, 0), image=(batch, 0),
    )  # fmt: skip
    graph.add("SaveAnimatedWEBP", (800, 60), (420, 450), ["ResShift_frames", 6.0, True, 80, "default"], images=(run, 0))
    graph.note(
        (800, 560), (420, 130),
        "**Frames of a film.** *noise* is shared: every frame gets the same noise, so textures stay steady. Beyond the input "
        "and the result, memory does not grow with the number of frames (the result itself does: 100 MB for each 4K frame). Put "
        "a video loader in place of the two pictures.",
    )  # fmt: skip
    return graph


def inpaint() -> Graph:
    graph = Graph()
    loader, image = start(graph, "inpaint_imagenet_s4 [about 480 MB, S-Lab 1.0, non-commercial]")
    run = graph.add(
        "ResShiftInpaint",
        (420, 60),
        (330, 480),
        widgets("ResShiftInpaint"),
        model=(loader, 0),
        image=(image, 0),
        mask=(image, 1),
    )
    graph.add("SaveImage", (800, 60), (420, 450), ["ResShift_inpaint"], images=(run, 0))
    graph.note(
        (40, 630), (330, 190),
        "**First** paint a mask: right-click the picture, *Open in MaskEditor*, paint over what is to go. Without one the picture "
        "stays as it is. The published model (with its autoencoder, about 700 MB) is downloaded when this first runs with a "
        "mask; its licence is non-commercial.",
    )  # fmt: skip
    return graph


def adapter() -> Graph:
    graph = Graph()
    loader, image = start(graph)
    wrapped = graph.add("ResShiftToUpscaleModel", (420, 60), (330, 310), widgets("ResShiftToUpscaleModel"), model=(loader, 0))
    run = graph.add("ImageUpscaleWithModel", (420, 430), (330, 60), upscale_model=(wrapped, 0), image=(image, 0))
    graph.add("SaveImage", (800, 60), (420, 450), ["ResShift_as_upscale_model"], images=(run, 0))
    graph.note(
        (420, 550), (330, 150),
        "**ResShift in nodes that take an upscale model**: core's *Upscale Image (using Model)*, Ultimate SD Upscale, Impact Pack "
        "and others.",
    )  # fmt: skip
    return graph


def compare_kappa() -> Graph:
    graph = Graph()
    loader, image = start(graph, "builtin-real")
    trained = json.loads((ROOT / "training" / "configs" / "builtin-real.json").read_text(encoding="utf-8"))["training"]["kappa"]
    for i, (factor, name) in enumerate(((0.25, "a quarter"), (0, "as trained"), (3, "three times"))):
        kappa = round(factor * trained, 4)
        run = graph.add(
            "ResShiftUpscaleImage", (420 + 370 * i, 60), (330, 420), widgets("ResShiftUpscaleImage", kappa=kappa),
            f"kappa: {name}", model=(loader, 0), image=(image, 0),
        )  # fmt: skip
        graph.add("PreviewImage", (420 + 370 * i, 860), (330, 330), images=(run, 0))
    graph.note(
        (40, 630), (330, 150),
        "**What kappa does**: the same picture and seed with a quarter of the noise that *builtin-real* was trained with, with just "
        "that, and with three times as much: from crisp to soft. *builtin* hardly changes with it.",
    )  # fmt: skip
    return graph


WORKFLOWS = {
    "ResShift upscale 4x": upscale,
    "ResShift restore": restore,
    "ResShift tiled 4K": tiled,
    "ResShift frames": frames,
    "ResShift inpaint": inpaint,
    "ResShift as upscale model": adapter,
    "ResShift compare kappa": compare_kappa,
}


def files() -> dict[Path, str]:
    """Every file and its text."""
    return {FOLDER / f"{name}.json": make().json() for name, make in WORKFLOWS.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
