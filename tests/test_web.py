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
from resshift_core.model import SMALLEST
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

    def test_french_punctuation_does_not_begin_a_line(self):
        """Its spaces are such that no line breaks at them."""
        for text in docs.Language("fr").words.values():
            assert not re.search("[ ][:;!?»]|«[ ]", text), text

    def test_every_input_of_every_node_is_described_in_every_language(self):
        for code in docs.LANGUAGES:
            definitions = json.loads((ROOT / "locales" / code / "nodeDefs.json").read_text(encoding="utf-8"))
            for node in docs.load("inputs").NODES.values():
                entry = definitions[node.key]
                assert list(entry["inputs"]) == [item.id for item in node.inputs]
                assert all(item["name"] and item["tooltip"] for item in entry["inputs"].values())
                assert len(entry["outputs"]) == len(node.outputs)

    def test_no_line_of_a_help_page_says_optional_twice(self):
        for code in docs.LANGUAGES:
            optional = docs.Language(code)("optional")
            for node in docs.load("inputs").NODES.values():
                for line in docs.help_page(node, docs.Language(code)).splitlines():
                    assert line.lower().count(optional.lower()) <= 1, line

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

    def test_no_node_lies_over_another(self):
        """Titles stand 30 pixels above a node's place; the sizes are those that ComfyUI's page gives nodes of ours, or more.

        After a run they have the slider, up to 280 pixels high; in Nodes 2.0 they are somewhat higher anyway.
        """
        needed = {"ResShiftToUpscaleModel": 310}
        after_run = {"ResShiftUpscaleImage": 451 + 280, "TiledResShiftUpscaleImage": 744 + 280}
        for path in workflows.files():
            nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
            assert all(node["size"][1] >= needed.get(node["type"], 0) for node in nodes)
            sizes = [(node["size"][0], max(node["size"][1], after_run.get(node["type"], 0)) + 30) for node in nodes]
            boxes = [(x, y, x + w, y + h) for (x, y), (w, h) in zip((node["pos"] for node in nodes), sizes)]
            for i, one in enumerate(boxes):
                for other in boxes[:i]:
                    apart = one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]
                    assert apart, (path.name, one, other)

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
        facts = {word: getattr(config, word) for word in ("tile", "overlap", "multiple", "padding", "tile_multiple", "unit")}
        facts["smallest"] = SMALLEST
        facts["bytes_per_pixel"] = model.bytes_per_tile(64, 64) / 64**2
        asked = {"tile": tile, "overlap": overlap, "tile_batch": 1, "wrap": wrap}
        drawn = javascript(f"layTiles({json.dumps(facts)}, {width}, {height}, {json.dumps(asked)})")
        assert drawn["rows"] == {"tile": rows.tile, "starts": list(rows.starts)}
        assert drawn["columns"] == {"tile": columns.tile, "starts": list(columns.starts)}
        assert (drawn["top"], drawn["left"]) == (torus.rows.before, torus.columns.before)
        assert drawn["bytes"] == pytest.approx(model.bytes_per_tile(rows.tile, columns.tile))

    def test_sizes_for_people(self):
        sizes = "[1500, 999600, 12345678, 3.2e9].map((bytes) => readable(bytes, '{}'))".format
        assert javascript(sizes("en")) == ["1.5 kB", "1.0 MB", "12 MB", "3.2 GB"] == javascript(sizes("zh"))
        assert [size.replace("\u202f", " ").replace("\xa0", " ") for size in javascript(sizes("fr"))] == [
            "1,5 ko",
            "1,0 Mo",
            "12 Mo",
            "3,2 Go",
        ]
        assert javascript(sizes("ru"))[1].replace("\xa0", " ") == "1,0 МБ"

    @pytest.mark.parametrize("unit, multiple", [(1, 8), (4, 8), (8, 64), (16, 16)])
    def test_tiles_of_any_unit(self, unit, multiple):
        """Overlaps that are no multiple of it, more than two tiles, and overlaps of half a tile and more."""
        lengths, overlaps, tile = [1, 64, 65, 130, 200, 777], [0, 5, 20, 33, 60], 64
        facts = {"padding": 16, "smallest": 16, "tile_multiple": multiple, "unit": unit}
        drawn = javascript(
            f"{lengths}.flatMap((length) => {overlaps}.map((overlap) => layAxis(length, {tile}, overlap, {json.dumps(facts)})))"
        )
        laid = [lay_axis(-(-max(n, 16) // 16) * 16, tile, overlap, unit, multiple) for n in lengths for overlap in overlaps]
        assert drawn == [{"tile": one.tile, "starts": list(one.starts)} for one in laid]

    def test_the_largest_sizes_have_the_largest_unit(self):
        assert javascript("[999.4, 999.5, 9949, 9950, 5e15].map((bytes) => readable(bytes, 'en'))") == [
            "999 byte",
            "1.0 kB",
            "9.9 kB",
            "10 kB",
            "5,000 TB",
        ]

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

    def test_bypassed_nodes_hand_on_what_they_get(self):
        """The input beside the output if it is of its type, else the first that is; a node that runs hands on nothing."""
        before = (
            self.MADE
            + """
          const typed = (n, inputs, outputs) => { n.inputs.forEach((one, i) => { one.type = inputs[i] })
            n.outputs = outputs.map((type) => ({ type })); return n }
          const use = node(9, 'Use', { a: 10, b: 11, c: 12 })
          const root = graph(null, node(1, 'First'), node(2, 'Second'), use,
            typed(node(3, 'Scale', { model: null, image: 20 }, { mode: 4 }), ['MODEL', 'IMAGE'], ['IMAGE']),
            typed(node(4, 'Two', { one: 20, two: 21 }, { mode: 4 }), ['IMAGE', 'IMAGE'], ['MASK', 'IMAGE']),
            typed(node(5, 'Active', { image: 20 }, { mode: 0 }), ['IMAGE'], ['IMAGE']))
          root.links.set(10, { origin_id: 3, origin_slot: 0 }).set(11, { origin_id: 4, origin_slot: 1 })
            .set(12, { origin_id: 5, origin_slot: 0 }).set(20, { origin_id: 1, origin_slot: 0 }).set(21, { origin_id: 2, origin_slot: 0 })
        """
        )
        found = javascript("['a', 'b', 'c'].map((name) => source(use, name).type)", "links", before)
        assert found == ["First", "Second", "Active"]

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

    @pytest.mark.parametrize(
        "border", ["{ name: 'steps', link: null }", "{ name: 'a', widget: { name: 'steps' }, link: null }"]
    )
    def test_a_widget_at_the_border_of_a_subgraph_has_the_value(self, border):
        """What the inner node shows is old."""
        before = (
            self.MADE
            + f"""
          const root = graph(null), use = node(9, 'Use', {{ steps: 1, seed: 2 }}), inner = graph(root, use)
          inner.links.set(1, {{ origin_id: -10, origin_slot: 0 }}).set(2, {{ origin_id: -10, origin_slot: 1 }})
          const outer = node(5, 'inner', {{}}, {{ subgraph: inner, widgets: [{{ name: 'steps', value: 9 }}], graph: root }})
          outer.inputs = [{border}, {{ name: 'seed', link: null }}]; root.nodes.push(outer)
        """
        )
        found = javascript("[source(use, 'steps').widgets[0], source(use, 'seed') ?? null]", "links", before)
        assert found == [{"name": "value", "value": 9}, None]

    @pytest.mark.parametrize("second, steps", [(9, 9), (8, None)])
    def test_a_subgraph_that_is_used_twice_has_what_both_say(self, second, steps):
        before = (
            self.MADE
            + f"""
          const use = node(9, 'Use', {{ steps: 1, model: 2 }}), root = graph(null), inner = graph(root, use)
          inner.links.set(1, {{ origin_id: -10, origin_slot: 0 }}).set(2, {{ origin_id: -10, origin_slot: 1 }})
          for (const [id, value] of [[5, 9], [6, {second}]]) {{
            const load = node(id + 10, 'Load', {{}}, {{ widgets: [{{ name: 'model', value }}], graph: root }})
            const outer = node(id, 'inner', {{ steps: null, model: id }}, {{ subgraph: inner, widgets: [{{ name: 'steps', value }}], graph: root }})
            root.nodes.push(load, outer); root.links.set(id, {{ origin_id: id + 10 }}) }}
        """
        )
        found = javascript("['steps', 'model'].map((name) => source(use, name).widgets[0]?.value ?? null)", "links", before)
        assert found == [steps, steps]

    def test_a_page_without_a_root_and_with_links_in_an_object(self):
        """Pages before subgraphs, and a link whose node is gone."""
        before = """
          const graph = { nodes: [], links: { 7: { origin_id: 1, origin_slot: 0 }, 8: { origin_id: 5, origin_slot: 0 } } }
          graph.getNodeById = (id) => graph.nodes.find((one) => one.id === id)
          const use = { id: 2, graph, inputs: [{ name: 'model', link: 7 }, { name: 'image', link: 8 }] }
          graph.nodes.push({ id: 1, type: 'Load', graph }, use)
          const loose = { inputs: [{ name: 'model', link: 7 }] }
        """
        expression = "[source(use, 'model').type, source(use, 'image') ?? null, source(loose, 'model') ?? null]"
        assert javascript(expression, "links", before) == ["Load", None, None]

    def test_a_linked_border_is_not_asked_for_its_old_value(self):
        """Its link leads to a node that is gone: what the subgraph's node shows is no longer true."""
        before = (
            self.MADE
            + """
          const root = graph(null), use = node(9, 'Use', { steps: 1 }), inner = graph(root, use)
          inner.links.set(1, { origin_id: -10, origin_slot: 0 })
          const outer = node(5, 'inner', { steps: 77 }, { subgraph: inner, widgets: [{ name: 'steps', value: 9 }], graph: root })
          root.nodes.push(outer)
        """
        )
        assert javascript("source(use, 'steps') ?? null", "links", before) is None

    @pytest.mark.parametrize("inner", ["subgraph.outputs = undefined", "subgraph.outputs = []", "subgraph.outputs = [{}]"])
    def test_a_subgraph_may_give_nothing(self, inner):
        before = (
            self.MADE
            + f"""
          const root = graph(null), use = node(9, 'Use', {{ model: 1 }}), subgraph = graph(root); {inner}
          for (const n of [node(1, 'inner', {{}}, {{ subgraph }}), use]) {{ n.graph = root; root.nodes.push(n) }}
          root.links.set(1, {{ origin_id: 1, origin_slot: 0 }})
        """
        )
        assert javascript("source(use, 'model') ?? null", "links", before) is None

    @pytest.mark.parametrize("kind", ["type", "comfyClass"])
    def test_nodes_of_two_kinds_do_not_say_the_same(self, kind):
        """With equal values: another pack's loader gives another model."""
        before = (
            self.MADE
            + f"""
          const use = node(9, 'Use', {{ model: 1 }}), root = graph(null), inner = graph(root, use)
          inner.links.set(1, {{ origin_id: -10, origin_slot: 0 }})
          for (const id of [5, 6]) {{
            const load = {{ ...node(id + 10, 'Load', {{}}, {{ widgets: [], graph: root }}), {kind}: `Load${{id}}` }}
            root.nodes.push(load, node(id, 'inner', {{ model: id }}, {{ subgraph: inner, graph: root }})); root.links.set(id, {{ origin_id: id + 10 }}) }}
        """
        )
        assert javascript("source(use, 'model').type", "links", before) == "several"

    @pytest.mark.parametrize("widgets", ["undefined", "[{ name: 'seed', value: 1 }]"])
    @pytest.mark.parametrize("inputs", ["undefined", "[]", "[{ name: 'steps', link: null }]"])
    def test_a_subgraph_whose_border_leads_nowhere(self, inputs, widgets):
        """Without inputs, without widgets, or with others."""
        before = (
            self.MADE
            + f"""
          const root = graph(null), use = node(9, 'Use', {{ steps: 1 }}), inner = graph(root, use)
          inner.links.set(1, {{ origin_id: -10, origin_slot: 0 }})
          root.nodes.push({{ id: 5, type: 'inner', subgraph: inner, graph: root, inputs: {inputs}, widgets: {widgets} }})
        """
        )
        assert javascript("source(use, 'steps') ?? null", "links", before) is None

    def test_a_subgraph_that_is_connected_in_one_place_only(self):
        """On a page that calls a graph's nodes _nodes."""
        before = (
            self.MADE
            + """
          const use = node(9, 'Use', { model: 1 }), root = graph(null), inner = graph(root, use), seen = []
          inner.links.set(1, { origin_id: -10, origin_slot: 0 }); root.links.set(7, { origin_id: 3 })
          root.nodes.push(node(3, 'Load', {}, { graph: root })); root._nodes = root.nodes; delete root.nodes
          for (const [id, link] of [[5, 7], [6, null]]) {
            root._nodes.push(node(id, 'inner', { model: link }, { subgraph: inner, graph: root })); seen.push(source(use, 'model').type) }
        """
        )
        assert javascript("seen", "links", before) == ["Load", "several"]

    def test_a_circle_through_a_subgraph_ends(self):
        before = (
            self.MADE
            + """
          const use = node(9, 'Use', { model: 3 }), root = graph(null, use), inner = graph(root)
          inner.links.set(1, { origin_id: -10, origin_slot: 0 }); inner.outputs.push({ linkIds: [1] })
          root.nodes.push(node(5, 'inner', { model: 3 }, { subgraph: inner, graph: root })); root.links.set(3, { origin_id: 5, origin_slot: 0 })
        """
        )
        assert javascript("source(use, 'model') ?? null", "links", before) is None

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


@needs_node
class TestPage:
    """web/resshift.js in comfyui_page.mjs. What a real page does with it was looked at in a browser, in both renderers."""

    TILED = "place('TiledResShiftUpscaleImage', { steps: 0, kappa: 0, p: 0, tile: 0, overlap: 0, tile_batch: 1, wrap: 'none' })"
    FACTS = """server.answer = () => Promise.resolve({ ok: true, json: () => ({ steps: 4, trained_steps: 4, kappa: 2, p: 0.3,
      sqrt_eta_1: 0.04, sqrt_eta_T: 0.99, tile: 128, overlap: 16, multiple: 8, tile_multiple: 8, unit: 1, bytes_per_pixel: 9 }) })"""
    PAIR = """{ before: { filename: 'a', subfolder: '', type: 'temp' }, after: { filename: 'b', subfolder: '', type: 'temp' },
      width: 800, height: 600, picture: [200, 150] }"""

    def run(self, script: str, expression: str):
        """The value of an expression after a script, in a page of its own."""
        page = (ROOT / "tests" / "comfyui_page.mjs").as_uri()
        names = "place, tick, server, settings, asked, mouse, pressR, event, graph, heard"
        whole = f"import {{ {names} }} from {json.dumps(page)}\n{script}\nconsole.log(JSON.stringify({expression}))"
        done = subprocess.run(
            ["node", "--no-warnings", "--input-type=module", "-e", whole], capture_output=True, encoding="utf-8", timeout=60
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def test_texts_of_an_earlier_run_go_when_the_node_runs(self):
        """Not those of others, nor of nodes that ComfyUI has in its cache, which it does not announce."""
        script = f"""
          const nodes = [{self.TILED}, {self.TILED}, place('LoadResShiftModel'), place('SomeoneElses')], removed = []
          for (const node of nodes) {{
            node.widgets.push({{ name: '$$node-text-preview', onRemove: () => removed.push(node.id) }})
            const plain = node.computeSize
            node.computeSize = () => [330, plain()[1] + 60 * node.widgets.filter((one) => one.name.startsWith('$$')).length]
            node.setSize(node.computeSize())
          }}
          const high = nodes.map((node) => node.size[1])
          heard.executing({{ detail: '1' }}); heard.executing({{ detail: '7:3' }}); heard.executing({{ detail: '4' }})
          heard.executing({{ detail: null }}); heard.executing({{ detail: '1' }})
        """
        expression = "[removed, nodes.map((node, i) => high[i] - node.size[1])]"
        assert self.run(script, expression) == [[1, 3], [60, 0, 60, 0]]

    @pytest.mark.parametrize("room, texted", [(0, 660), (40, 660), (90, 690)])
    def test_a_text_that_goes_leaves_the_room_that_the_node_had(self, room, texted):
        """The page makes the node higher only by what does not fit into it."""
        script = f"""
          const node = {self.TILED}, plain = node.computeSize, text = (one) => one.name === '$$node-text-preview'
          node.computeSize = () => [330, plain()[1] + (node.widgets.some(text) ? 60 : 0)]; node.setSize([330, 600 + {room}])
          const seen = []
          for (let run = 0; run < 3; run++) {{
            heard.execution_start(); heard.executing({{ detail: '1' }})
            node.widgets.push({{ name: '$$node-text-preview' }}); node.setSize([330, {texted}]); seen.push(node.size[1])
          }}
          heard.execution_start(); heard.executing({{ detail: '1' }})
        """
        assert self.run(script, "[...new Set(seen), node.size[1]]") == [texted, 600 + room]

    @pytest.mark.parametrize("kind", ["LoadResShiftModel", "TiledResShiftUpscaleImage", "ResShiftInpaint"])
    def test_texts_are_not_saved_among_the_values_of_inputs(self, kind):
        """Pages of 2025 do, after what our panels leave empty."""
        script = f"""
          const node = place('{kind}', {{ model: 'a', dtype: 'auto' }}); node.widgets.push({{ name: '$$node-text-preview', value: 'words' }})
          const saved = {{ size: node.size, widgets_values: node.widgets.map((one) => one.value ?? null) }}; node.onSerialize(saved)
          const other = {{ size: node.size }}; node.onSerialize(other)
        """
        assert self.run(script, "[saved.widgets_values, other.widgets_values ?? null]") == [["a", "auto"], None]

    def test_previews_of_pages_of_2025_go_too(self):
        """Their store revokes by another name."""
        script = f"""
          const node = {self.TILED}, store = {{ nodePreviewImages: {{ 1: ['address'] }} }}
          const pinia = {{ _s: new Map([['nodeOutput', store]]) }}
          document.querySelector = () => ({{ __vue_app__: {{ config: {{ globalProperties: {{ $pinia: pinia }} }} }} }})
          heard.execution_start(); node.onExecuted({{ resshift_compare: [JSON.stringify({self.PAIR})] }})
          const saved = {{ size: node.size }}; node.onSerialize(saved)
        """
        assert self.run(script, "[Object.keys(store.nodePreviewImages), saved.size[1]]") == [[], 600]

    def test_a_new_node_is_as_high_as_its_panels_need(self):
        assert self.run(f"const node = {self.TILED}", "node.size") == [330, 600]

    def test_the_slider_is_there_from_the_first_picture_until_they_are_lost(self):
        script = f"""
          const node = {self.TILED}, slider = node.panels.resshift_compare, seen = [[slider.hidden, node.size[1]]]
          const save = () => {{ const o = {{ size: node.size }}; node.onSerialize(o); return o.size[1] }}
          node.onExecuted({{ resshift_compare: [JSON.stringify({self.PAIR})] }}); seen.push([slider.hidden, node.size[1], save()])
          node.onExecuted({{ resshift_compare: [{self.PAIR}] }}); seen.push([slider.hidden, node.size[1], save()])
          slider.children[0].onerror(); seen.push([slider.hidden, node.size[1], save()])
        """
        shown = [False, 600 + 234, 600]  # the height of the picture at the width that the node leaves it; none of it is saved
        assert self.run(script, "seen") == [[True, 600], shown, shown, [True, 600, 600]]

    def test_the_bar_follows_what_was_pressed_on_it_and_the_keys_of_a_slider(self):
        """A selection that is dragged out of a box of text is none of its business."""
        script = f"""
          const slider = {self.TILED}.panels.resshift_compare, seen = [], taken = []
          slider.getBoundingClientRect = () => ({{ left: 0, width: 100 }})
          slider.setPointerCapture = (id) => taken.push(id)
          const at = (kind, clientX, more = {{}}) => {{
            event(slider, kind, {{ clientX, buttons: 1, button: 0, pointerId: 5, stopPropagation() {{}}, ...more }})
            seen.push(+slider.ariaValueNow)
          }}
          at('pointermove', 10); at('pointerdown', 20, {{ button: 2, buttons: 2 }}); at('pointermove', 25, {{ buttons: 3 }})
          at('pointerdown', 30); at('pointermove', 40); at('pointerup', 40); at('pointermove', 70)
          const keys = ['ArrowUp', 'ArrowDown', 'ArrowDown', 'PageUp', 'PageDown', 'End', 'ArrowRight', 'Home', 'Tab']
          const stopped = keys.map((key) => event(slider, 'keydown', {{ key, stopPropagation() {{}} }}) && +slider.ariaValueNow)
        """
        seen, stopped, taken = self.run(script, "[seen, stopped, taken]")
        assert seen == [50, 50, 50, 30, 40, 40, 40] and taken == [5, 5]
        assert stopped == [45, 40, 35, 55, 35, 100, 100, 0, False]

    def test_neither_preview_nor_slider_of_nodes_2_is_saved(self):
        """It keeps previews in a store, makes the node higher for them, and gives a panel more room than the canvas does."""
        script = f"""
          const node = {self.TILED}, store = {{ nodePreviewImages: {{}} }}
          store.revokePreviewsByLocatorId = (id) => {{ delete store.nodePreviewImages[id] }}
          const pinia = {{ _s: new Map([['nodeOutput', store]]) }}
          document.querySelector = () => ({{ __vue_app__: {{ config: {{ globalProperties: {{ $pinia: pinia }} }} }} }})
          const save = () => {{ const o = {{ size: node.size }}; node.onSerialize(o); return o.size[1] }}
          node.setSize([330, 650]); const seen = []
          for (let run = 0; run < 2; run++) {{
            heard.execution_start()
            store.nodePreviewImages['1'] = ['address']; node.setSize([330, node.size[1] + 248])
            node.onExecuted({{ resshift_compare: [JSON.stringify({self.PAIR})] }})
            node.setSize([330, 650 + 234]) // the page lays it out
            await tick(); seen.push([node.size[1], save()])
          }}
        """
        assert self.run(script, "[seen, Object.keys(store.nodePreviewImages)]") == [[[884, 650], [884, 650]], []]

    def test_panels_are_as_wide_as_their_node(self):
        """In the canvas renderer, the page's panel of parameters leaves a width of its own on widgets that it does not know."""
        script = f"const own = {self.TILED}.widgets.filter((one) => one.element); for (const one of own) one.width = 268"
        assert self.run(script, "own.map((one) => one.width ?? 0)") == [0, 0, 0]

    RUNNING = f"""
      const node = {TILED}, save = () => {{ const o = {{ size: node.size }}; node.onSerialize(o); return o.size[1] }}
      const pair = (name) => ({{ resshift_compare: [JSON.stringify({PAIR}).replace('"a"', `"${{name}}"`)] }})
      const preview = () => {{ node.widgets.push({{ name: '$$canvas-image-preview' }}); node.setSize([330, node.size[1] + 248]) }}
    """

    def test_the_height_is_the_same_after_many_short_runs(self):
        """What the next run's previews take, within two seconds of the last, is not the slider's."""
        script = f"""
          {self.RUNNING}; node.setSize([330, 800]); const seen = []
          for (let run = 0; run < 4; run++) {{
            heard.execution_start(); preview(); await tick()
            seen.push(save()); node.onExecuted(pair(run)); await tick(); seen.push(save())
          }}
        """
        assert self.run(script, "seen") == [800] * 8

    @pytest.mark.parametrize("first", ["node.onExecuted(pair('a'))", "0"])
    @pytest.mark.parametrize("kind", ["execution_error", "execution_interrupted"])
    def test_what_a_run_without_end_has_shown_goes(self, kind, first):
        """Below a slider, and in a node that has none yet."""
        script = f"""
          {self.RUNNING}; {first}; await tick(); const before = save()
          heard.execution_start(); preview(); heard.{kind}(); await tick()
        """
        assert self.run(script, "[before, save(), node.widgets.filter((one) => one.name.startsWith('$$')).length]") == [
            600,
            600,
            0,
        ]

    def test_a_pair_that_comes_back_takes_the_preview_away(self):
        """Deleted during the run, and brought back by Undo after it."""
        script = f"""
          {self.RUNNING}; heard.execution_start(); preview(); heard.execution_success(); await tick()
          window.comfyAPI.app.app.nodeOutputs['1'] = pair('b'); await tick()
        """
        assert self.run(script, "[save(), node.widgets.filter((one) => one.name.startsWith('$$')).length]") == [600, 0]

    def test_a_node_that_is_made_anew_during_a_run_keeps_its_height(self):
        """By Undo, or by another tab and back: it is another object, with the height that was saved."""
        script = f"""
          {self.RUNNING}; const seen = []
          heard.execution_start(); graph.nodes.length = 0
          const again = {self.TILED}; again.setSize([330, 1000]); again.onConfigure({{}})
          again.widgets.push({{ name: '$$canvas-image-preview' }}); again.setSize([330, 1248])
          const high = () => {{ const o = {{ size: again.size }}; again.onSerialize(o); return [again.size[1], o.size[1]] }}
          seen.push(high()); again.onExecuted(pair('a')); await tick(); seen.push(high())
        """
        assert self.run(script, "seen") == [[1248, 1000], [1000, 1000]]

    @pytest.mark.parametrize("end", ["execution_success", "execution_interrupted"])
    @pytest.mark.parametrize("seconds", [0, 60])
    def test_a_slider_that_comes_back_during_a_run_is_saved_in_no_height(self, end, seconds):
        """With Undo, the node is made anew, its next preview comes before its slider, and the page lays both out in its own way."""
        script = f"""
          {self.RUNNING}; const now = Date.now(), outputs = window.comfyAPI.app.app.nodeOutputs; Date.now = () => now
          node.onExecuted(pair('a')); await tick(); heard.execution_start(); graph.nodes.length = 0
          const again = {self.TILED}, plain = again.computeSize, shown = (one) => one.name.startsWith('$$')
          again.computeSize = () => [330, plain()[1] + (again.widgets.some(shown) ? 260 : 0)] // more than the page gives a preview
          again.setSize([330, 646]); again.onConfigure({{}}); outputs['1'] = pair('a')
          again.widgets.push({{ name: '$$canvas-image-preview' }}); again.setSize([330, 646 + 212])
          const high = () => {{ const o = {{ size: again.size }}; again.onSerialize(o); return [again.size[1], o.size[1]] }}
          await tick(); const seen = [high()]; Date.now = () => now + 1000 * {seconds}; await tick(); seen.push(high())
          again.widgets.splice(again.widgets.findIndex(shown), 1); again.setSize([330, 900]); await tick() // Nodes 2.0, between previews
          again.setSize([330, seen[0][0]]); again.widgets.push({{ name: '$$canvas-image-preview' }})
          heard.{end}(); if ('{end}' === 'execution_success') again.onExecuted(pair('a')); await tick(); seen.push(high())
        """
        assert self.run(script, "seen") == [[1046, 646], [1046, 646], [834, 646]]

    def test_a_late_preview_does_not_make_the_saved_height_smaller(self):
        """What is saved beside one is the height before the run, and has no slider in it."""
        script = f"{self.RUNNING}; heard.execution_start(); node.onExecuted(pair('a')); preview(); const saved = save()"
        assert self.run(script, "saved") == 600

    def test_r_tries_pictures_again_that_were_lost(self):
        script = f"""
          {self.RUNNING}; const slider = node.panels.resshift_compare, seen = []
          window.comfyAPI.app.app.nodeOutputs['1'] = pair('a'); await tick(); seen.push(slider.hidden)
          slider.children[0].onerror(); await tick(); seen.push(slider.hidden); pressR(); await tick(); seen.push(slider.hidden)
        """
        assert self.run(script, "seen") == [False, True, False]

    @pytest.mark.parametrize(
        "kind, inputs, words",
        [
            ("PrimitiveInt", "[{ name: 'value', link: 8 }]", "T 7"),  # of the first of the two
            ("PrimitiveInt", "[{ name: 'value', link: null }]", "T 3"),
            ("PrimitiveInt", "[{ name: 'value', link: 7 }]", ""),  # a circle
            ("ConvertNumber", "[{ name: 'value', link: 8 }]", ""),  # what it makes of the number, only the run tells
            ("ConvertNumber", "[]", "T 3"),
        ],
    )
    def test_a_number_that_comes_through_another_node(self, kind, inputs, words):
        script = f"""
          {self.FACTS}; const node = {self.TILED}; node.inputs.push({{ name: 'steps', link: 7 }})
          const last = place('{kind}', {{ value: 3 }}, {inputs}), first = place('PrimitiveInt', {{ value: 7 }})
          graph.links.set(7, {{ origin_id: last.id, origin_slot: 0 }}); graph.links.set(8, {{ origin_id: first.id, origin_slot: 0 }})
          await tick()
        """
        drawn = self.run(script, "node.panels.resshift_curve.words")
        assert words in drawn and bool(drawn) == bool(words)

    @pytest.mark.parametrize("key", ["altKey", "ctrlKey", "metaKey", "shiftKey"])
    def test_shortcuts_of_the_browser_are_not_keys_of_the_slider(self, key):
        script = f"""
          const slider = {self.TILED}.panels.resshift_compare
          const taken = event(slider, 'keydown', {{ key: 'ArrowLeft', {key}: true, stopPropagation() {{}} }})
        """
        assert self.run(script, "[taken, +slider.ariaValueNow]") == [False, 50]

    def test_collapsed_nodes_keep_the_height_that_they_have_expanded(self):
        """Nodes 2.0 gives them none meanwhile."""
        script = f"""
          {self.RUNNING}; node.setSize([330, 700]); node.flags = {{}}; node.onExecuted(pair('a')); await tick()
          const high = node.size[1]; node.flags.collapsed = true; node.size = [225, 0]; await tick(); const seen = [save()]
          node.flags.collapsed = false; node.size = [330, high]; await tick(); seen.push(save())
          const other = {self.TILED}; other.flags = {{ collapsed: true }}; other.size = [225, 0]
          other.onExecuted(pair('b')); seen.push(other.size[1])
          other.flags.collapsed = false; other.size = [330, 600]; await tick(); seen.push(other.size[1])
        """
        assert self.run(script, "seen") == [0, 700, 0, 834]

    def test_a_slider_of_the_same_height_leaves_the_node_as_the_page_laid_it_out(self):
        script = f"""
          {self.RUNNING}; node.onExecuted(pair('a')); node.setSize([330, 884]); await tick(); const seen = [save()]
          node.onExecuted(pair('b')); seen.push(node.size[1], save())
        """
        assert self.run(script, "seen") == [600, 884, 600]

    def test_a_subgraph_is_laid_out_when_it_is_opened(self):
        """Minutes after the run: what Nodes 2.0 then adds for the slider is the slider's."""
        script = f"""
          {self.RUNNING}; const canvas = window.comfyAPI.app.app.canvas, now = Date.now(); canvas.graph = {{ id: 'another' }}
          node.onExecuted(pair('a')); await tick(); Date.now = () => now + 60000; await tick(); const seen = [save()]
          canvas.graph = node.graph; node.setSize([330, 884]); await tick(); seen.push(save())
          Date.now = () => now + 120000; node.setSize([330, 900]); await tick(); seen.push(save())
        """
        assert self.run(script, "seen") == [600, 600, 616]

    DRAWN = """
      const drawn = (svg) => svg.children.map((one) => one.attributes)
      const rectangle = ({ x, y, width, height }) => [x, y, width, height].map((one) => Math.round(one * 100) / 100)
    """

    @pytest.mark.parametrize(
        "kappa, noise, warns",
        [(0, "M8.0 66.5L252.0 20.0L252 82L8 82Z", False), (1, "M8.0 74.3L252.0 51.0L252 82L8 82Z", False)]
        + [(8, "M8.0 20.0L252.0 20.0L252 82L8 82Z", True), (0.5, "M8.0 78.1L252.0 66.5L252 82L8 82Z", True)]
        + [(3, "M8.0 58.8L252.0 20.0L252 82L8 82Z", False)],
    )
    def test_the_curve_goes_from_the_left_to_the_right(self, kappa, noise, warns):
        """Two steps over four trained ones; below it the noise, in another colour where it is far from the trained one."""
        script = f"""
          {self.DRAWN}; {self.FACTS.replace("0.04", "0.25").replace("0.99", "1").replace("p: 0.3", "p: 1")}
          const node = {self.TILED.replace("steps: 0, kappa: 0", f"steps: 2, kappa: {kappa}")}; await tick()
          const all = drawn(node.panels.resshift_curve), [floor, area, old, now, first, last] = all
          const words = all.filter((one) => 'font-size' in one).map(({{ x, y, 'text-anchor': anchor }}) => [x, y, anchor ?? 'start'])
        """
        expression = """[floor.d, area.d, old.d, now.d, [first.cx, first.cy, last.cx, last.cy], words,
          [area.fill, now.stroke, first.fill].map((one) => one.includes('orange'))]"""
        floor, area, old, now, dots, words, colours = self.run(script, expression)
        assert floor == "M8 82h244" and area == noise and now == "M8.0 66.5L252.0 20.0"
        assert old == "M8.0 66.5L89.3 57.4L170.7 42.9L252.0 20.0"
        assert dots == [8, 66.5, 252, 20] and colours == [warns] * 3
        assert words == [[8, 13, "start"], [252, 13, "end"], [8, 93, "start"], [130, 93, "middle"], [252, 93, "end"]]

    def test_one_step_is_drawn_at_the_right_end(self):
        script = f"""
          {self.DRAWN}; {self.FACTS.replace("0.99", "1")}; const node = {self.TILED.replace("steps: 0", "steps: 1")}; await tick()
          const svg = node.panels.resshift_curve
        """
        words, dot = self.run(script, "[svg.words, drawn(svg)[4]]")
        assert [dot["cx"], dot["cy"]] == [252, 20] and "t = 1" in words and words.count("t = 1") == 1

    @pytest.mark.parametrize("steps, dots", [(60, 60), (61, 0)])
    def test_many_steps_have_no_dots(self, steps, dots):
        script = f"{self.DRAWN}; {self.FACTS}; const node = {self.TILED.replace('steps: 0', f'steps: {steps}')}; await tick()"
        assert self.run(script, "drawn(node.panels.resshift_curve).filter((one) => 'cx' in one).length") == dots

    LAID = "tile: 64, overlap: 16, multiple: 8, padding: 8, smallest: 8"

    @pytest.mark.parametrize("wrap, dashes", [("none", None), ("x", "4 3")])
    def test_tiles_are_drawn_where_they_lie(self, wrap, dashes):
        """At one scale, in the middle; where it wraps around the picture begins further in, and is dashed."""
        script = f"""
          {self.DRAWN}; {self.FACTS.replace("tile: 128, overlap: 16, multiple: 8", self.LAID)}
          const node = {self.TILED.replace("'none'", f"'{wrap}'")}; node.resshiftSize = [96, 104]; await tick()
          const boxes = drawn(node.panels.resshift_tiles).filter((one) => 'height' in one), picture = boxes.pop()
          const words = drawn(node.panels.resshift_tiles).slice(-2).map(({{ x, y }}) => [x, y])
        """
        boxes, picture, dashed, words = self.run(
            script, "[boxes.map(rectangle), rectangle(picture), picture['stroke-dasharray'] ?? null, words]"
        )
        scale = 106 / 104  # what it has in height; its width is less than 244
        across = 96 + (64 if wrap == "x" else 0)
        left = (260 - across * scale) / 2
        shown = [left + (32 if wrap == "x" else 0) * scale, 2, 96 * scale, 106]
        assert picture == pytest.approx(shown, abs=0.01) and dashed == dashes
        assert words == [[130, 126], [130, 139]]
        right = max(x + width for x, _, width, _ in boxes)
        assert [min(x for x, *_ in boxes), min(y for _, y, *_ in boxes)] == pytest.approx([left, 2], abs=0.01)
        assert [right, max(y + height for _, y, _, height in boxes)] == pytest.approx([left + across * scale, 108], abs=0.01)
        assert len(boxes) == (6 if wrap == "x" else 4)

    def test_a_wide_picture_and_one_that_is_smaller_than_its_tile_fit(self):
        script = f"""
          {self.DRAWN}; {self.FACTS.replace("tile: 128, overlap: 16, multiple: 8", self.LAID)}
          const seen = []
          for (const size of [[600, 40], [20, 20]]) {{
            const node = {self.TILED}; node.resshiftSize = size; await tick()
            seen.push(drawn(node.panels.resshift_tiles).filter((one) => 'height' in one).map(rectangle))
          }}
        """
        for boxes in self.run(script, "seen"):
            assert all(
                x >= 7.99 and x + width <= 252.01 and y >= 1.99 and y + height <= 108.01 for x, y, width, height in boxes
            )
            assert max(x + width for x, _, width, _ in boxes) - min(x for x, *_ in boxes) > 99

    @pytest.mark.parametrize(
        "change",
        [f"set('{name}', {to})" for name, to in {"steps": 2, "kappa": 1, "p": 1, "tile": 64, "overlap": 8}.items()]
        + ["set('tile_batch', 2)", "set('tile_batch', 0)", "set('wrap', 'x')"]
        + ["settings['Comfy.Locale'] = 'fr'", "node.resshiftSize = [200, 150]"],
    )
    def test_what_a_drawing_shows_is_drawn_again_when_it_changes_and_only_then(self, change):
        script = f"""
          {self.FACTS.replace("multiple: 8", "multiple: 8, padding: 8, smallest: 8")}
          const node = {self.TILED}, set = (name, value) => {{ node.widgets.find((one) => one.name === name).value = value }}
          let count = 0
          for (const svg of [node.panels.resshift_curve, node.panels.resshift_tiles]) {{
            const plain = svg.replaceChildren; svg.replaceChildren = (...all) => {{ count++; plain.apply(svg, all) }}
          }}
          const shown = () => JSON.stringify([node.panels.resshift_curve, node.panels.resshift_tiles])
          await tick(); await tick(); const before = shown(); count = 0; await tick(); const idle = count
          {change}; await tick()
        """
        assert self.run(script, "[idle, count, shown() !== before]") == [0, 2, True]

    @pytest.mark.parametrize("batch, words", [(0, "per tile"), (1, "per batch"), (4, "per batch")])
    def test_memory_is_that_of_a_batch_or_of_one_tile(self, batch, words):
        script = f"""
          {self.FACTS.replace("multiple: 8", "multiple: 8, padding: 8, smallest: 8")}
          const node = {self.TILED.replace("tile_batch: 1", f"tile_batch: {batch}")}; await tick()
        """
        bytes_ = 128 * 128 * 9 * max(1, batch)
        assert self.run(script, "node.panels.resshift_tiles.words").endswith(f"|{round(bytes_ / 1000)} kB {words} (fp32)")

    def test_the_picture_that_is_loaded_is_measured_once(self):
        """Of the file that LoadImage names, in its folder; what cannot be loaded is asked for again, but not at once."""
        script = f"""
          const images = []; globalThis.Image = class {{ constructor() {{ images.push(this) }} }}
          {self.FACTS.replace("multiple: 8", "multiple: 8, padding: 8, smallest: 8")}
          const loader = place('LoadImage', {{ image: 'a/b/c d.png' }}); graph.links.set(1, {{ origin_id: loader.id, origin_slot: 0 }})
          const node = {self.TILED}; node.inputs.push({{ name: 'image', link: 1 }})
          const told = async (how) => {{ await tick(how); return node.panels.resshift_tiles.words.match(/(≈ )?\\d+ × \\d+/)[0] }}
          await tick(); const seen = [images.length, await told()]
          images[0].onerror(); seen.push(images.length); await tick({{ late: true }}); seen.push(images.length)
          Object.assign(images[1], {{ naturalWidth: 40, naturalHeight: 30 }}).onload(); seen.push(await told(), images.length)
        """
        first = "/view?filename=c+d.png&subfolder=a%2Fb&type=input"
        assert self.run(script, "[...seen, images[0].src]") == [1, "≈ 960 × 540", 1, 2, "40 × 30", 2, first]

    def test_panels_that_the_page_lost_are_put_back(self):
        """Nodes 2.0, after Undo: only on nodes of the graph that is open, and only those that are not in the page."""
        script = f"""
          const seen = []; globalThis.CSS = {{ escape: String }}
          document.querySelector = (selector) => selector.startsWith('[data-node-id') ?
            {{ replaceWith: (holder) => {{ seen.push([selector, holder.className]); holder.isConnected = true }} }} : null
          const node = {self.TILED}, canvas = window.comfyAPI.app.app.canvas
          const holders = node.widgets.filter((one) => one.element).map((one) => one.element)
          await tick(); const idle = seen.length; for (const one of holders.slice(1)) one.isConnected = false
          canvas.graph = {{ id: 'another' }}; await tick(); const closed = seen.length; canvas.graph = graph; await tick()
        """
        names = ["resshift_tiles", "resshift_compare"]
        expected = [[f'[data-node-id="1"] .resshift-panel.{name}', f"resshift-panel {name}"] for name in names]
        assert self.run(script, "[idle, closed, seen]") == [0, 0, expected]

    def test_nodes_that_are_gone_are_not_drawn(self):
        """Some pages do not tell nodes in subgraphs; a node that comes back by the page's own means is drawn again."""
        script = f"""
          {self.FACTS.replace("multiple: 8", "multiple: 8, padding: 8, smallest: 8")}
          const inner = {{ id: 'uuid', nodes: [], rootGraph: graph, getNodeById: (id) => inner.nodes.find((one) => one.id === id) }}
          const move = (node) => {{ graph.nodes.pop(); node.graph = inner; node.id = 10 + inner.nodes.length; inner.nodes.push(node); return node }}
          graph.subgraphs = new Map([['uuid', inner]]); const words = (node) => node.panels.resshift_curve.words !== ''
          const held = move({self.TILED}), other = move({self.TILED}), told = move({self.TILED}), lost = {self.TILED}
          inner.nodes.splice(1, 1); told.onRemoved(); graph.nodes.pop()
          {self.TILED}.graph = null; graph.nodes.pop(); await tick(); const seen = [held, other, told, lost].map(words)
          told.onAdded(); await tick(); seen.push(words(told))
          const late = move({self.TILED}); graph.subgraphs.clear(); await tick(); seen.push(words(late))
        """
        assert self.run(script, "seen") == [True, False, False, False, True, False]

    def test_the_slider_in_a_subgraph_is_that_of_its_own_node(self):
        script = f"""
          const inner = {{ id: 'uuid', nodes: [], rootGraph: graph, getNodeById: (id) => inner.nodes.find((one) => one.id === id) }}
          graph.subgraphs = new Map([['uuid', inner]]); const node = {self.TILED}; graph.nodes.pop(); node.graph = inner; inner.nodes.push(node)
          const outputs = window.comfyAPI.app.app.nodeOutputs, slider = node.panels.resshift_compare
          outputs['1'] = {{ resshift_compare: [JSON.stringify({self.PAIR})] }}; await tick(); const seen = [slider.hidden]
          outputs['uuid:1'] = outputs['1']; await tick(); seen.push(slider.hidden)
        """
        assert self.run(script, "seen") == [True, False]

    def test_a_new_node_that_is_larger_keeps_its_size(self):
        """Pasted, or put there by another pack that gave it a size."""
        script = """
          const node = place('ResShiftUpscaleImage'); node.size = [500, 900]; window.comfyAPI.app.app.extension.nodeCreated(node)
        """
        assert self.run(script, "node.size") == [500, 900]

    @pytest.mark.parametrize("picture, height", [([800, 100], 120), ([100, 800], 280), ([800, 600], 234)])
    def test_the_slider_is_neither_flat_nor_high(self, picture, height):
        script = f"""
          const node = {self.TILED}, pair = {{ ...{self.PAIR}, width: {picture[0]}, height: {picture[1]} }}
          node.onExecuted({{ resshift_compare: [JSON.stringify(pair)] }})
        """
        assert self.run(script, "node.size[1] - 600") == height

    def test_the_mouse_means_the_canvas_below_the_drawings(self):
        style = self.run("", "document.head.children.map((one) => one.textContent)")
        assert len(style) == 1 and re.fullmatch(
            r"\.dom-widget:has\(> \.resshift-panel > :is\(svg, \[hidden\]\)\) \{ pointer-events: none !important \}", style[0]
        )

    def test_panels_hold_nothing_and_are_not_stretched(self):
        script = f"const own = {self.TILED}.widgets.filter((one) => one.element)"
        expression = "own.map((one) => [one.serialize, typeof one.computeLayoutSize, one.computeSize()[1], one.label])"
        assert self.run(script, expression) == [[False, "undefined", height, ""] for height in (100, 148, 0)]

    @pytest.mark.parametrize("later, left", [(1900, 0), (2400, 1)])
    def test_a_preview_that_comes_late_goes_for_two_seconds(self, later, left):
        """One of them is taken away after the time is up: what comes then is someone else's."""
        script = f"""
          {self.RUNNING}; const now = Date.now(); Date.now = () => now; heard.execution_start(); node.onExecuted(pair('a')); await tick()
          preview(); await tick(); const first = node.widgets.filter((one) => one.name.startsWith('$$')).length
          Date.now = () => now + {later}; await tick(); preview(); await tick()
        """
        expression = "[first, node.widgets.filter((one) => one.name.startsWith('$$')).length]"
        assert self.run(script, expression) == [0, left]

    def test_a_preview_of_a_run_that_goes_on_stays(self):
        """The last run's pair comes back, by Undo, while the next one computes."""
        script = f"""
          {self.RUNNING}; heard.execution_start(); preview(); window.comfyAPI.app.app.nodeOutputs['1'] = pair('a'); await tick()
        """
        assert self.run(script, "node.widgets.filter((one) => one.name.startsWith('$$')).length") == 1

    def test_what_a_page_that_was_just_opened_shows_is_of_no_run(self):
        """A preview that is there with the pair, before any run: it goes."""
        script = f"{self.RUNNING}; preview(); window.comfyAPI.app.app.nodeOutputs['1'] = pair('a'); await tick()"
        assert self.run(script, "node.widgets.filter((one) => one.name.startsWith('$$')).length") == 0

    def test_what_others_put_on_a_node_is_called_too(self):
        script = """
          const calls = [], made = place('SomeoneElses')
          for (const kind of ['onSerialize', 'onExecuted', 'onAdded', 'onRemoved'])
            made[kind] = function (...all) { calls.push([kind, all.length, this === made]) }
          made.comfyClass = 'ResShiftUpscaleImage'; window.comfyAPI.app.app.extension.nodeCreated(made)
          made.onSerialize({ size: [330, 590] }); made.onExecuted({}); made.onAdded(1); made.onRemoved()
        """
        assert self.run(script, "calls") == [
            ["onSerialize", 1, True],
            ["onExecuted", 1, True],
            ["onAdded", 1, True],
            ["onRemoved", 0, True],
        ]

    def test_two_buttons_of_a_mouse_are_not_a_drag(self):
        """The left one is let go outside of the page, and the right one is held when the mouse comes back."""
        script = f"""
          const slider = {self.TILED}.panels.resshift_compare, seen = []; slider.getBoundingClientRect = () => ({{ left: 0, width: 100 }})
          const at = (kind, clientX, buttons) => {{
            event(slider, kind, {{ clientX, buttons, button: 0, pointerId: 5, stopPropagation() {{}} }}); seen.push(+slider.ariaValueNow) }}
          at('pointerdown', 30, 1); at('pointermove', 60, 2); at('pointermove', 70, 0); at('pointermove', 80, 3)
        """
        assert self.run(script, "seen") == [30, 30, 30, 80]

    @pytest.mark.parametrize("ui, word", [("{ settings: { getSettingValue: () => 'fr' } }", "avant"), ("undefined", "before")])
    @pytest.mark.parametrize("manager", ["undefined", "{}"])
    def test_older_pages_keep_the_language_elsewhere(self, manager, ui, word):
        script = f"""
          Object.assign(window.comfyAPI.app.app, {{ extensionManager: {manager}, ui: {ui} }}); const node = {self.TILED}
        """
        assert word in self.run(script, "node.panels.resshift_compare.words").split("|")

    def test_nothing_is_drawn_where_only_the_run_tells_a_value(self):
        script = f"""
          {self.FACTS.replace("multiple: 8", "multiple: 8, padding: 8, smallest: 8")}
          const other = place('SomeoneElses'); graph.links.set(1, {{ origin_id: other.id, origin_slot: 0 }}); const seen = []
          for (const name of ['steps', 'tile']) {{
            const node = {self.TILED}; node.inputs.push({{ name, link: 1 }}); await tick(); await tick()
            seen.push(node.panels.resshift_curve.words !== '', node.panels.resshift_tiles.words !== ''); node.inputs.pop()
          }}
        """
        assert self.run(script, "seen") == [False, True, True, False]

    def test_a_node_without_a_slider_has_its_curve(self):
        script = f"{self.FACTS}; const node = place('ResShiftToUpscaleModel', {{ steps: 0, kappa: 0, p: 0 }}); await tick()"
        assert "as trained" in self.run(script, "[node.panels.resshift_curve.words, Object.keys(node.panels).length]")[0]

    def test_a_panel_that_is_nowhere_in_the_page_holds_nothing_up(self):
        script = f"""
          {self.FACTS}; globalThis.CSS = {{ escape: String }}; const node = {self.TILED}
          for (const one of node.widgets) if (one.element) one.element.isConnected = false
          await tick()
        """
        assert "as trained" in self.run(script, "node.panels.resshift_curve.words")

    @pytest.mark.parametrize(
        "vue",
        ["{}", "{ __vue_app__: { config: { globalProperties: {} } } }", "{ __vue_app__: STORE }", "{ __vue_app__: BARE }"],
    )
    def test_a_page_that_has_no_store_of_previews_shows_the_pair(self, vue):
        """Nor a canvas that is ready."""
        bare = "{ config: { globalProperties: { $pinia: {} } } }"
        store = "{ config: { globalProperties: { $pinia: { _s: new Map([['nodeOutput', {}]]) } } } }"
        script = f"""
          {self.RUNNING}; document.querySelector = (selector) => selector === '#vue-app' ? {vue.replace("STORE", store).replace("BARE", bare)} : null
          const dirty = []; node.setDirtyCanvas = (...all) => dirty.push(all); window.comfyAPI.app.app.canvas = undefined
          node.onExecuted(pair('a')); const seen = [save(), node.panels.resshift_compare.hidden, dirty]
        """
        assert self.run(script, "seen") == [600, False, [[True, True]]]

    def test_only_other_buttons_than_the_left_mean_the_canvas(self):
        script = f"""
          const slider = {self.TILED}.panels.resshift_compare; slider.inside = '.dom-widget'; slider.getBoundingClientRect = () => ({{ left: 0, width: 100 }})
          const left = event(slider, 'pointerdown', {{ button: 0, buttons: 1, clientX: 40, stopPropagation() {{}} }})
        """
        assert self.run(script, "[left, mouse]") == [False, []]

    def test_the_bar_lies_where_the_first_picture_ends(self):
        script = f"""
          const slider = {self.TILED}.panels.resshift_compare, [after, before, bar] = slider.children
          event(slider, 'keydown', {{ key: 'PageUp', stopPropagation() {{}} }})
        """
        expression = "[before.style.clipPath.match(/[\\d.]+%/)[0], bar.style.left, after.style.clipPath ?? null, slider.words]"
        assert self.run(script, expression) == ["30%", "70%", None, "|||before|after"]

    def test_what_the_user_makes_higher_after_the_next_run_has_begun_is_saved(self):
        """Also while another graph is open: the time in which the page lays the slider out has ended."""
        script = f"""
          {self.RUNNING}; const canvas = window.comfyAPI.app.app.canvas, seen = []
          node.onExecuted(pair('a')); node.setSize([330, 884]); seen.push(save()) // laid out, and no time has passed
          canvas.graph = {{ id: 'another' }}; heard.execution_start(); await tick(); canvas.graph = graph
          node.setSize([330, 984]); seen.push(save()); await tick(); seen.push(save())
        """
        assert self.run(script, "seen") == [600, 700, 700]

    def test_a_node_that_is_collapsed_while_it_is_laid_out(self):
        """And expanded when that time is over: what the slider took is still the slider's."""
        script = f"""
          {self.RUNNING}; const now = Date.now(); node.flags = {{}}; node.onExecuted(pair('a')); await tick()
          const high = node.size[1]; node.flags.collapsed = true; node.size = [225, 0]; await tick()
          Date.now = () => now + 60000; node.flags.collapsed = false; node.size = [330, high]; await tick()
        """
        assert self.run(script, "save()") == 600

    def test_a_preview_without_a_widget_is_not_saved_either(self):
        """Some pages draw node.imgs themselves."""
        script = f"""
          {self.RUNNING}; heard.execution_start(); node.imgs = [{{}}]; node.setSize([330, 848]); const during = save()
          node.onExecuted(pair('a')); await tick()
        """
        assert self.run(script, "[during, node.imgs ?? null]") == [600, None]

    def test_a_text_leaves_what_the_user_made_higher_and_is_found_from_inside_a_subgraph(self):
        """The page's open graph is another one than that of the workflow."""
        script = f"""
          const node = {self.TILED}, plain = node.computeSize, text = (one) => one.name === '$$node-text-preview'
          node.computeSize = () => [330, plain()[1] + (node.widgets.some(text) ? 60 : 0)]; node.setSize([330, 640])
          Object.assign(window.comfyAPI.app.app, {{ rootGraph: graph, graph: {{ nodes: [] }} }}); const seen = []
          for (const by of [0, 100]) {{
            heard.execution_start(); heard.executing({{ detail: {{ node: '1' }} }}); seen.push(node.size[1])
            node.widgets.push({{ name: '$$node-text-preview' }}); node.setSize([330, 660 + by])
          }}
          heard.executing({{ detail: '1' }}); seen.push(node.size[1])
        """
        assert self.run(script, "seen") == [640, 640, 700]

    def test_a_model_that_is_not_there_is_asked_for_once_until_r_is_pressed(self):
        script = f"""
          place('ResShiftUpscaleImage', {{ steps: 0, kappa: 0, p: 0 }})
          for (let i = 0; i < 3; i++) await tick({{ late: true }})
          const counts = [asked.length]; pressR(); await tick(); counts.push(asked.length)
          server.answer = () => Promise.reject(new Error('no network')); pressR()
          for (let i = 0; i < 2; i++) await tick({{ late: true }})
          const before = asked.length; {self.FACTS}; await tick({{ late: true }}); await tick({{ late: true }})
        """
        drawn = "graph.nodes[0].panels.resshift_curve.words.includes('as trained')"
        assert self.run(script, f"[...counts, asked.length > before, {drawn}]") == [1, 2, True, True]

    def test_a_files_name_may_have_any_letters(self):
        script = """
          const loader = place('LoadResShiftModel', { model: 'a&b #1+2.safetensors' })
          graph.links.set(1, { origin_id: loader.id, origin_slot: 0 })
          place('ResShiftUpscaleImage', { steps: 0, kappa: 0, p: 0 }, [{ name: 'model', link: 1 }])
        """
        assert self.run(script, "await tick() ?? asked") == ["/resshift/model?name=a%26b%20%231%2B2.safetensors"]

    def test_after_undo_the_slider_shows_what_the_last_run_gave(self):
        """The node is a new one then, and nothing is executed."""
        script = f"""
          const slider = {self.TILED}.panels.resshift_compare, before = slider.hidden
          window.comfyAPI.app.app.nodeOutputs['1'] = {{ resshift_compare: [JSON.stringify({self.PAIR})] }}; await tick()
        """
        expression = "[before, slider.hidden, slider.children.map((one) => one.src ?? '').join().match(/filename=./g)]"
        assert self.run(script, expression) == [True, False, ["filename=b", "filename=a"]]

    def test_only_a_loaded_picture_has_a_size_that_is_known(self):
        script = f"""
          {self.FACTS}; const node = {self.TILED}
          const told = async () => {{ await tick(); return node.panels.resshift_tiles.words.match(/(≈ )?\\d+ × \\d+/)[0] }}
          const first = await told(); node.onExecuted({{ resshift_compare: [JSON.stringify({self.PAIR})] }})
        """
        assert self.run(script, "[first, await told()]") == ["≈ 960 × 540", "≈ 200 × 150"]

    @pytest.mark.parametrize("tile, words", [(0, "1 tile of 200 × 152"), (64, "12 tiles of 64 × 64")])
    def test_one_tile_is_not_called_tiles(self, tile, words):
        script = f"""
          {self.FACTS.replace("tile: 128", "tile: 256, padding: 8, smallest: 8")}
          const node = {self.TILED.replace("tile: 0", f"tile: {tile}")}; node.resshiftSize = [200, 150]
          await tick(); await tick()
        """
        assert words in self.run(script, "node.panels.resshift_tiles.words")

    @pytest.mark.parametrize("code, word", [("zh", "处理前"), ("zh-TW", "before"), ("pt-BR", "before"), ("fr", "avant")])
    def test_a_language_is_spoken_or_it_is_english(self, code, word):
        script = f"settings['Comfy.Locale'] = '{code}'; const node = {self.TILED}"
        assert word in self.run(script, "node.panels.resshift_compare.words").split("|")

    def test_the_canvas_gets_what_the_slider_does_not_want(self):
        script = f"""
          const slider = {self.TILED}.panels.resshift_compare
          const all = () => [event(slider, 'wheel'), event(slider, 'pointerdown', {{ button: 1, stopPropagation() {{}} }}), event(slider, 'contextmenu')]
          const vue = all(); slider.inside = '.dom-widget'
        """
        assert self.run(script, "[vue, all(), mouse]") == [[False] * 3, [True] * 3, ["wheel", "pointerdown"]]
