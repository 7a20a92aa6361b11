"""What the host of dynamic providers imports with them: each command that works on resources starts one."""

from __future__ import annotations

import subprocess
import sys

from tests.support.checkout import SOURCE
from tests.support.imports import HEAVY

LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_the_providers_bring_nothing_that_they_do_not_need() -> None:
    files = [file for file in (SOURCE / "components").rglob("*.py") if "(ResourceProvider)" in file.read_text()]
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]
    assert len(names) > 8
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *names], cwd=SOURCE, capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert {"components", "observatory", "pulumi"} <= loaded
    assert loaded & ({*HEAVY, "monitoring", "pulumi_postgresql", "rich", "typer"} - {"grpc", "pulumi"}) == set()
