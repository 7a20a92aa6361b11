"""Resolve the requirements: exact versions with hashes, without a registry's address, for every supported platform."""

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
    """Write one lock file; versions in the existing file are kept if they still satisfy the requirements."""
    subprocess.run([*COMPILE, *arguments, "--output-file", output, *sys.argv[1:]], cwd=ROOT, check=True)


if __name__ == "__main__":
    lock("requirements/runtime.txt", *HOST)
    lock("requirements/dev.txt", *HOST, "--extra", "dev", "--constraint", "requirements/runtime.txt")
    lock("requirements/bootstrap.txt", "requirements/bootstrap.in", "--python-version", "3.11")
    lock("service/requirements.txt", "service/requirements.in", "--python-version", "3.13")
