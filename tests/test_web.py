"""What ships for the page: translations, help pages, templates, and the scripts' arithmetic against the library's."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_core.arguments import check_tile
from resshift_core.schedule import ShiftSchedule
from resshift_core.tiles import lay_axis
from resshift_core.wrap import Torus

from . import standin

ROOT = Path(__file__).parent.parent
SCRIPTS = {"ja": r"[぀-ヿ一-鿿]", "zh": r"[一-鿿]", "ko": r"[가-힯]", "ru": r"[А-я]"}
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js to run the page's scripts")


def tool(name: str):
    key = f"resshift_tool_{name}"
    if key not in sys.modules:
        spec = importlib.util.spec_from_file_location(key, ROOT / "tools" / f"{name}.py")
        sys.modules[key] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[key])
    return sys.modules[key]


docs, workflows = tool("generate_docs"), tool("make_workflows")


def javascript(expression: str, module: str = "arithmetic", before: str = ""):
    """The value of an expression in which the exports of a module in web/ are names, after the statements `before`."""
    path = ROOT / "web" / f"{module}.js"
    names = ", ".join(re.findall(r"export function (\w+)", path.read_text(encoding="utf-8")))
    script = f"import {{ {names} }} from {json.dumps(path.as_uri())}; {before}; console.log(JSON.stringify({expression}))"
    done = subprocess.run(
        ["node", "--no-warnings", "--input-type=module", "-e", script], capture_output=True, encoding="utf-8", timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class TestTexts:
    def test_committed_files_are_the_generated_ones(self):
        """If this fails: python tools/generate_docs.py"""
        for path, text in docs.files().items():
            assert path.read_text(encoding="utf-8") == text, path

    def test_nothing_else_lies_there(self):
        made = set(docs.files())
        lying = {path for folder in ("locales", "web/docs") for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert lying <= made

    @pytest.mark.parametrize("code", [code for code in docs.LANGUAGES if code != "en"])
    def test_translations_are_complete_and_translated(self, code):
        words = docs.Language(code).words
        assert list(words) == docs.sentences()
        for english, translated in words.items():
            assert translated.strip() == translated and translated
            assert sorted(re.findall(r"\{\w+\}", english)) == sorted(re.findall(r"\{\w+\}", translated)), english
            for word in re.findall(
                r"`[^`]+`|\b(?:stochastic|deterministic|wavelet|adain|per_image|shared)\b(?=:)|\bbuiltin(?:-real)?\b", english
            ):
                assert word in translated, (english, word)
            if len(english) > 30:
                assert translated != english
                assert re.search(SCRIPTS.get(code, "."), translated), translated

    def test_every_input_of_every_node_is_described_in_every_language(self):
        for code in docs.LANGUAGES:
            definitions = json.loads((ROOT / "locales" / code / "nodeDefs.json").read_text(encoding="utf-8"))
            for node in docs.load("inputs").NODES.values():
                entry = definitions[node.key]
                assert list(entry["inputs"]) == [item.id for item in node.inputs]
                assert all(item["name"] and item["tooltip"] for item in entry["inputs"].values())
                assert len(entry["outputs"]) == len(node.outputs)

    def test_what_the_scripts_say_is_translated(self):
        said = set(re.findall(r"word\('([^']+)'", (ROOT / "web" / "resshift.js").read_text(encoding="utf-8")))
        assert said == set(docs.load("page_words").PAGE_WORDS)


class TestTemplates:
    def test_committed_files_are_the_generated_ones(self):
        """If this fails: python tools/make_workflows.py"""
        made = workflows.files()
        for path, text in made.items():
            assert path.read_text(encoding="utf-8") == text, path
        assert set((ROOT / "example_workflows").glob("*.json")) == set(made)

    def test_each_has_a_thumbnail(self):
        from PIL import Image

        for path in workflows.files():
            with Image.open(path.with_suffix(".jpg")) as picture:
                assert min(picture.size) >= 200 and path.with_suffix(".jpg").stat().st_size < 150_000

    def test_widgets_stand_where_their_node_expects_them(self):
        nodes = docs.load("inputs").NODES
        for path in workflows.files():
            for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
                if node["type"] not in nodes:
                    continue
                values = iter(node["widgets_values"])
                for item in nodes[node["type"]].inputs:
                    if item.is_socket:
                        continue
                    value = next(values)
                    if isinstance(item.choices, tuple) and item.choices:
                        assert value in item.choices
                    elif item.minimum is not None:
                        assert item.minimum <= value <= item.maximum
                    if ("control_after_generate", True) in item.extra:
                        assert next(values) in ("fixed", "increment", "decrement", "randomize")
                assert next(values, None) is None


@needs_node
class TestArithmetic:
    @settings(max_examples=12, deadline=None)
    @given(st.integers(1, 60), st.floats(0.05, 5), st.sampled_from([0.02, 0.04, 0.2]))
    def test_the_curve(self, steps, p, m):
        trained = ShiftSchedule(4, 0.1, 0.3, m)
        drawn = javascript(f"sqrtEta({steps}, {p}, {trained.sqrt_eta_1}, {trained.sqrt_eta_T})")
        assert drawn == pytest.approx(trained.retime(steps=steps, p=p).sqrt_eta, rel=1e-9)

    @pytest.mark.parametrize("height, width", [(1, 1), (300, 700), (512, 513), (1080, 1920)])
    @pytest.mark.parametrize("tile, overlap", [(0, 0), (100, 0), (64, 60), (256, 32)])
    @pytest.mark.parametrize("wrap", ["none", "x", "both"])
    def test_tiles_lie_where_the_library_lays_them(self, height, width, tile, overlap, wrap):
        model = standin.small_model()
        config = model.config
        torus = Torus.of(wrap, height, width, config.multiple)
        size = torus.size
        side, shared = check_tile(model, tile or "auto", overlap or None, size)
        padded = (config.padded(size[0]), config.padded(size[1]))
        rows, columns = (lay_axis(length, side, shared, config.unit, config.tile_multiple) for length in padded)
        facts = {word: getattr(config, word) for word in ("tile", "overlap", "multiple", "tile_multiple", "unit")}
        facts["bytes_per_pixel"] = model.bytes_per_tile(64, 64) / 64**2
        asked = {"tile": tile, "overlap": overlap, "tile_batch": 1, "wrap": wrap}
        drawn = javascript(f"layTiles({json.dumps(facts)}, {width}, {height}, {json.dumps(asked)})")
        assert drawn["rows"] == {"tile": rows.tile, "starts": list(rows.starts)}
        assert drawn["columns"] == {"tile": columns.tile, "starts": list(columns.starts)}
        assert (drawn["top"], drawn["left"]) == (torus.rows.before, torus.columns.before)
        assert drawn["bytes"] == pytest.approx(model.bytes_per_tile(rows.tile, columns.tile))

    def test_sizes_for_people(self):
        assert javascript("[5, 1500, 999600, 12345678, 3.2e9].map(readable)") == ["5 B", "1.5 kB", "1.0 MB", "12 MB", "3.2 GB"]

    def test_scripts_parse(self):
        for path in (ROOT / "web").glob("*.js"):
            done = subprocess.run(["node", "--check", str(path)], capture_output=True, encoding="utf-8")
            assert done.returncode == 0 or "Cannot use import statement" in done.stderr, done.stderr


@needs_node
class TestLinks:
    """Graphs as ComfyUI's page holds them: `border` is the id of a subgraph's border, a number or a text."""

    MADE = """
      const graph = (root, ...nodes) => { const g = { nodes, links: new Map(), outputs: [] }; g.rootGraph = root ?? g
        g.getLink = (id) => g.links.get(id); g.getNodeById = (id) => nodes.find((n) => n.id == id)
        for (const n of nodes) n.graph = g; return g }
      const node = (id, type, inputs = {}, more = {}) => ({ id, type, ...more,
        inputs: Object.entries(inputs).map(([name, link]) => ({ name, link })) })
    """

    def test_reroutes_are_passed_over(self):
        before = (
            self.MADE
            + """
          const use = node(4, 'Use', { image: null, model: 12 })
          const root = graph(null, node(1, 'Load'), node(2, 'Reroute', { '': 10 }), node(3, 'Reroute', { '': 11 }), use)
          root.links.set(10, { origin_id: 1 }).set(11, { origin_id: 2 }).set(12, { origin_id: 3 })
        """
        )
        assert javascript("[source(use, 'model').type, source(use, 'image') ?? null]", "links", before) == ["Load", None]

    @pytest.mark.parametrize("border", ["-10", "'-10'"])
    def test_borders_of_subgraphs_are_crossed(self, border):
        """The user two subgraphs down, the loader in a third."""
        before = (
            self.MADE
            + f"""
          const root = graph(null), use = node(9, 'Use', {{ seed: null, model: 1 }})
          const inner = graph(root, use); inner.links.set(1, {{ origin_id: {border}, origin_slot: 1 }})
          const middle = graph(root, node(5, 'inner', {{ a: null, b: 2 }}, {{ subgraph: inner }}))
          middle.links.set(2, {{ origin_id: {border}, origin_slot: 0 }})
          const loaders = graph(root, node(7, 'Load')); loaders.links.set(3, {{ origin_id: 7 }}); loaders.outputs.push({{ linkIds: [3] }})
          for (const n of [node(1, 'loaders', {{}}, {{ subgraph: loaders }}), node(2, 'middle', {{ m: 4 }}, {{ subgraph: middle }})]) {{
            n.graph = root; root.nodes.push(n) }}
          root.links.set(4, {{ origin_id: 1, origin_slot: 0 }})
        """
        )
        assert javascript("[source(use, 'model').type, source(use, 'seed') ?? null]", "links", before) == ["Load", None]

    def test_circles_and_lost_links_end(self):
        before = (
            self.MADE
            + """
          const use = node(3, 'Use', { image: 9, model: 1 })
          const root = graph(null, node(1, 'Reroute', { '': 2 }), node(2, 'Reroute', { '': 1 }), use)
          root.links.set(1, { origin_id: 1 }).set(2, { origin_id: 2 })
        """
        )
        assert javascript("[source(use, 'model') ?? null, source(use, 'image') ?? null]", "links", before) == [None, None]
