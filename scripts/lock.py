"""Resolve the requirements again: exact versions with hashes, no registry's address, for every platform we run on."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMPILE = [
    *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-header", "--no-annotate"),
    *("--no-emit-index-url", "--no-emit-find-links", "--universal"),
]
HOST = ["pyproject.toml", "requirements/build.in", "--python-version", "3.11"]


def lock(output: str, *arguments: str) -> None:
    """Write one lock file; versions that it holds already are kept where they still fit."""
    subprocess.run([*COMPILE, *arguments, "--output-file", output, *sys.argv[1:]], cwd=ROOT, check=True)


if __name__ == "__main__":
    lock("requirements/runtime.txt", *HOST)
    lock("requirements/dev.txt", *HOST, "--extra", "dev", "--constraint", "requirements/runtime.txt")
    lock("requirements/bootstrap.txt", "requirements/bootstrap.in", "--python-version", "3.11")
    lock("service/requirements.txt", "service/requirements.in", "--python-version", "3.13")
