"""Who may import whom (design section 2), and that importing does no work."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE_MAY = {"torch", "safetensors", "numpy", "einops", "PIL", "tqdm"} | set(sys.stdlib_module_names)
HOST_MODULES = {"comfy", "folder_paths", "modules", "nodes", "scripts", "resshift_webui", "training", "benchmarks"}


def imports(path: Path):
    """(module, level) of every import statement of a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level


@pytest.mark.parametrize("path", sorted((ROOT / "resshift_core").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_stands_on_its_few_libraries_and_imports_itself_relatively(path):
    for module, level in imports(path):
        if level == 0:
            top = module.split(".")[0]
            assert top in CORE_MAY or (top == "triton" and "triton" in path.stem), f"{path.name} imports {module}"


@pytest.mark.parametrize("folder", ["training", "benchmarks", "nodes", "resshift_webui", "scripts"])
def test_arrows_point_towards_the_core(folder):
    allowed = {
        "training": {"training"},
        "benchmarks": {"benchmarks", "training"},
        "nodes": {"comfy", "folder_paths"},
        "resshift_webui": {"modules", "resshift_webui"},
        "scripts": {"modules", "resshift_webui"},
    }[folder]
    for path in (ROOT / folder).rglob("*.py") if (ROOT / folder).is_dir() else []:
        for module, level in imports(path):
            top = module.split(".")[0]
            assert level or top not in HOST_MODULES - allowed, f"{path.name} imports {module}"


def test_importing_loads_neither_training_libraries_nor_weights():
    code = (
        "import sys, torch; before = set(sys.modules); import resshift_core; new = set(sys.modules) - before; "
        "bad = {'torchvision', 'timm', 'kornia', 'torchmetrics', 'matplotlib', 'comfy', 'modules'} & new; "
        "assert not bad, bad; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_one_import_adds_little_time():
    """Beyond torch: under 0.2 s, best of five (design and README promise it)."""
    code = "import time, torch, numpy, PIL.Image; t = time.perf_counter(); import resshift_core; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True).stdout)
        for _ in range(5)
    ]
    assert min(runs) < 0.2
