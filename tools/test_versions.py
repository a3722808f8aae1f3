"""Run the tests with the lowest and the newest version of each dependency: `python tools/test_versions.py lowest newest`.

Every set gets a virtual environment of its own (about 3 GB while it is used). "lowest" pins every dependency of
pyproject.toml to its lower bound, "newest" takes what there is; "torch=2.3.1" or the like tries one version of one dependency
and the newest of the others. The Python is the one that runs this script: the oldest torch needs Python 3.11 or older.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
REPLACED = {"torch": "torch==2.1.2"}  # A1111 pins it; 2.1.0 has the same features
NEEDS_TRAINING = re.compile(r"^(from|import) (training|benchmarks(?!\.timing)|\.training_run|\.test_training)\b", re.MULTILINE)
TOOLS = ["pytest>=8", "hypothesis>=6", "fastapi>=0.100", "httpx>=0.24"]


def tests_of_what_people_run() -> list[str]:
    """All test files but those of training and benchmarks, which have dependencies of their own."""
    return [
        str(path) for path in sorted((ROOT / "tests").glob("test_*.py")) if not NEEDS_TRAINING.search(path.read_text("utf-8"))
    ]


def bounds() -> dict[str, str]:
    """Dependency -> its lowest version."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        wanted = tomllib.load(file)["project"]["dependencies"]
    return dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in wanted if ";" not in line)


def requirements(word: str) -> list[str]:
    """What pip is asked for by "lowest", "newest" or "name=version"."""
    lowest = bounds()
    if word == "newest":
        return list(lowest)
    if word == "lowest":
        return [REPLACED.get(name, f"{name}=={version}") for name, version in lowest.items()]
    name, _, version = word.partition("=")
    if name not in lowest or not version:
        raise SystemExit(f"{word} is none of: lowest, newest, or NAME=VERSION with a NAME of {', '.join(lowest)}.")
    return [f"{name}=={version}" if name == other else other for other in lowest]


def try_versions(word: str, index: str | None, tests: list[str]) -> bool:
    """Install one set and run the tests; prints what was installed and pytest's last line."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        extra = ["--extra-index-url", index] if index else []
        if subprocess.run([*pip, *extra, *requirements(word), *TOOLS]).returncode:
            print(f"{word}: could not be installed")
            return False
        listed = subprocess.run([str(python), "-m", "pip", "freeze"], capture_output=True, text=True).stdout
        used = [line for line in listed.splitlines() if re.match(rf"({'|'.join(bounds())})==", line, re.IGNORECASE)]
        done = subprocess.run([str(python), "-m", "pytest", "-q", *tests], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    failures = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    print(
        f"{word}: {'passed' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - began:.0f} s with {', '.join(used)}"
    )
    print("\n".join(failures[:20] or lines[-1:]), flush=True)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", metavar="SET", help='"lowest", "newest" or NAME=VERSION')
    parser.add_argument("--index", help="another index for pip, for example one with torch for the CPU")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="instead of all tests but those of training")
    args = parser.parse_args()
    results = [try_versions(word, args.index, args.tests or tests_of_what_people_run()) for word in args.sets]
    return int(not all(results))


if __name__ == "__main__":
    sys.exit(main())
