"""Writes locales/, web/docs/ and web/strings.js from nodes/inputs.py and nodes/translations/. Run it after changing those.

python tools/generate_docs.py [--check]      --check writes nothing and fails where a file is out of date
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = ("en", "zh", "ja", "ko", "fr", "es", "ru")
PUNCTUATION = {"fr": (" (", " ; ", "). "), "zh": ("（", "；", "）。"), "ja": ("（", "；", "）。")}  # not as in English


def load(name: str):
    """A module of nodes/ without the package's own imports: a package called `nodes` may belong to someone else."""
    for package, folder in (("resshift_pack", ROOT), ("resshift_pack.nodes", ROOT / "nodes")):
        sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(folder)]
    return importlib.import_module(f"resshift_pack.nodes.{name}")


class Language:
    """Looks English sentences up; English itself is its own translation.

    Raises KeyError on a sentence that nobody has translated.
    """

    def __init__(self, code: str):
        self.code = code
        path = ROOT / "nodes" / "translations" / f"{code}.json"
        self.words = None if code == "en" else json.loads(path.read_text(encoding="utf-8"))

    def __call__(self, english: str) -> str:
        return english if self.words is None or not english else self.words[english]


def sentences() -> list[str]:
    """Every English sentence that is shown to people, once, in the table's order."""
    page, found = load("page_words"), []
    for node in load("inputs").NODES.values():
        found += [node.title, node.description, *node.notes]
        for item in (*node.inputs, *node.outputs):
            found += [item.name, item.tooltip]
    return list(dict.fromkeys([*found, *page.PAGE_WORDS, *page.HELP_WORDS]))


def node_definitions(translate: Language) -> dict:
    """ComfyUI's nodeDefs.json of one language."""
    definitions = {}
    for node in load("inputs").NODES.values():
        definitions[node.key] = {
            "display_name": translate(node.title),
            "description": translate(node.description),
            "inputs": {i.id: {"name": translate(i.name), "tooltip": translate(i.tooltip)} for i in node.inputs},
            "outputs": {
                str(number): {"name": translate(output.name), "tooltip": translate(output.tooltip)}
                for number, output in enumerate(node.outputs)
            },
        }
    return definitions


def _range(item) -> str:
    if isinstance(item.choices, tuple) and item.choices:
        return ", ".join(f"`{choice}`" for choice in item.choices)
    if item.minimum is None:
        return ""
    return f"{item.minimum:g} – {item.maximum:g}" if item.maximum < 1e6 else f"{item.minimum:g} – 2⁶⁴-1"


def _described(name: str, facts: list[str], tooltip: str, code: str) -> str:
    """One line of a list; the help panel is too narrow for tables."""
    opening, between, closing = PUNCTUATION.get(code, (" (", "; ", "). "))
    return f"- **{name}**{opening}{between.join(fact for fact in facts if fact)}{closing}{tooltip}"


def help_page(node, translate: Language) -> str:
    """The Markdown that the node's help panel shows."""
    t = translate
    lines = [f"# {t(node.title)}", "", t(node.description), "", f"## {t('Inputs')}", ""]
    for item in node.inputs:
        default = "" if item.default is None else f"{t('Default')} `{item.default}`"
        facts = [item.kind, "" if item.required else t("optional"), _range(item), default]
        lines.append(_described(t(item.name), facts, t(item.tooltip), t.code))
    lines += ["", f"## {t('Outputs')}", ""]
    lines += [_described(t(output.name), [output.kind], t(output.tooltip), t.code) for output in node.outputs]
    if node.notes:
        lines += ["", f"## {t('Notes')}"]
        for note in node.notes:
            lines += ["", t(note)]
    return "\n".join(lines) + "\n"


def page_strings() -> str:
    """web/strings.js: what the scripts say, by language."""
    words = load("page_words").PAGE_WORDS
    strings = {code: {word: Language(code)(word) for word in words} for code in LANGUAGES}
    text = json.dumps(strings, ensure_ascii=False, indent=2)
    return f"// Written by tools/generate_docs.py from nodes/page_words.py and nodes/translations/.\n\nexport const STRINGS = {text}\n"


def files() -> dict[Path, str]:
    """Every generated file and its text."""
    made = {ROOT / "web" / "strings.js": page_strings()}
    for code in LANGUAGES:
        translate = Language(code)
        definitions = json.dumps(node_definitions(translate), ensure_ascii=False, indent=2) + "\n"
        made[ROOT / "locales" / code / "nodeDefs.json"] = definitions
        for node in load("inputs").NODES.values():
            page = f"{node.key}.md" if code == "en" else f"{node.key}/{code}.md"
            made[ROOT / "web" / "docs" / page] = help_page(node, translate)
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    stale = {path: text for path, text in files().items() if not path.is_file() or path.read_text(encoding="utf-8") != text}
    for path, text in stale.items():
        print(("out of date: " if check else "written: ") + str(path.relative_to(ROOT)))
        if not check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
    return 1 if check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
