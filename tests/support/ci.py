"""The program of docs/ci.md, as users copy it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from tests.support.checkout import SOURCE

PAGE = SOURCE / "docs/ci.md"


def write_program(directory: Path) -> Path:
    """Write the program of the page to a file, and return it."""
    [text] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    file = directory / "deploy.py"
    file.write_text(text)
    return file


def program(directory: Path) -> ModuleType:
    """Return the program of the page as a module."""
    specification = importlib.util.spec_from_file_location("ci_program", write_program(directory))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
