"""Who may import whom (design section 2), and that importing does no work."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE_MAY = {"torch", "safetensors", "numpy", "einops", "PIL", "tqdm"} | set(sys.stdlib_module_names)
GUARDED = {"comfy", "folder_paths", "modules", "nodes", "scripts", "resshift_webui", "training", "benchmarks", "tools", "tests"}
ALLOWED = {
    "training": {"training"},
    "benchmarks": {"benchmarks", "training"},
    "nodes": {"comfy", "folder_paths"},
    "resshift_webui": {"modules", "resshift_webui"},
    "scripts": {"modules", "resshift_webui"},
}  # of the guarded modules


def imports(path: Path, root: Path = ROOT) -> Iterator[tuple[str, bool]]:
    """(top module, whether it was reached relatively) of every import statement of a file."""
    folders = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            full = list(folders[: len(folders) + 1 - node.level]) if node.level else []
            full += node.module.split(".") if node.module else []
            yield from ((full[0] if full else alias.name, node.level > 0) for alias in node.names)


def wrong_imports(path: Path, root: Path = ROOT) -> set[str]:
    """Top modules that a file of that folder must not import."""
    folder, wrong = path.relative_to(root).parts[0], set()
    for top, relative in imports(path, root):
        if relative and top == folder:  # `nodes` is ComfyUI's too, but not when it is reached so
            continue
        if folder == "resshift_core":
            fine = not relative and (top in CORE_MAY or (top == "triton" and "triton" in path.stem))
        else:
            fine = top not in GUARDED - ALLOWED[folder]
        if not fine:
            wrong.add(top)
    return wrong


@pytest.mark.parametrize("path", sorted((ROOT / "resshift_core").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_stands_on_its_few_libraries_and_imports_itself_relatively(path):
    assert not wrong_imports(path)


@pytest.mark.parametrize("folder", ALLOWED)
def test_arrows_point_towards_the_core(folder):
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files and not {path.name: wrong for path in files if (wrong := wrong_imports(path))}


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("nodes/a.py", "from ..training import chain", {"training"}),
        ("nodes/a.py", "from .. import training, resshift_core", {"training"}),
        ("nodes/a.py", "from ..resshift_core.errors import brief", set()),
        ("nodes/a.py", "from .inputs import STEPS", set()),
        ("nodes/a.py", "import nodes", {"nodes"}),
        ("resshift_core/a.py", "from ..resshift_webui import host", {"resshift_webui"}),
        ("resshift_core/cli/a.py", "from ...nodes import loader", {"nodes"}),
        ("resshift_core/cli/a.py", "from ..errors import brief", set()),
        ("resshift_core/a.py", "from . import errors", set()),
        ("resshift_core/a.py", "import resshift_core", {"resshift_core"}),
        ("resshift_core/a.py", "def f():\n    import timm.optim", {"timm"}),
        ("training/a.py", "from benchmarks import plain", {"benchmarks"}),
        ("benchmarks/a.py", "from ..training.scan import scan", set()),
    ],
)
def test_a_wrong_import_is_found(tmp_path, file, line, wrong):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line)
    assert wrong_imports(path, tmp_path) == wrong


EVERY_NAME = "import resshift_core as rs; [getattr(rs, name) for name in rs.__all__]"  # names are loaded at first use


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout


def test_importing_loads_neither_training_libraries_nor_weights():
    run(
        f"import sys, torch; before = set(sys.modules); {EVERY_NAME}; new = set(sys.modules) - before; "
        "bad = {'torchvision', 'timm', 'kornia', 'torchmetrics', 'matplotlib', 'comfy', 'modules'} & new; "
        "assert not bad, bad; assert 'resshift_core.pipeline' in new; assert not torch.cuda.is_initialized()"
    )


@pytest.mark.parametrize(("code", "seconds"), [("import resshift_core", 0.05), (EVERY_NAME, 0.5)])
def test_importing_adds_little_time(code, seconds):
    """Beyond torch, best of five: 1 ms for the package alone, 0.1 s with all its names; the rest is for a busy machine."""
    timed = f"import time, torch, numpy, PIL.Image; t = time.perf_counter(); {code}; print(time.perf_counter() - t)"
    assert min(float(run(timed)) for _ in range(5)) < seconds
