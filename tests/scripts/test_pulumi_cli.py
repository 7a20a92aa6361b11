"""scripts/pulumi-cli.sh reports what is missing; the CLI that it builds fits the locked SDK."""

import re
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = ("sh", "awk", "basename", "cat", "dirname", "flock", "mkdir", "sha256sum")


def test_a_missing_go_is_reported_with_a_remedy_and_nothing_is_built(tmp_path: Path) -> None:
    path, target = tmp_path / "path", tmp_path / "bin/pulumi"
    path.mkdir()
    for tool in TOOLS:
        (path / tool).symlink_to(shutil.which(tool) or tool)
    done = subprocess.run(
        [ROOT / "scripts/pulumi-cli.sh", target], env={"PATH": str(path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "there is no 'go' on PATH" in done.stderr
    assert "Remedy: install Go" in done.stderr
    assert not target.exists()


def test_the_version_of_the_cli_was_chosen_for_the_locked_sdk() -> None:
    module = (ROOT / "tools/pulumi-cli/go.mod").read_text()
    (cli,) = re.findall(r"pulumi/pkg/v3 v(\S+)", module)
    (sdk,) = re.findall(r"^pulumi==(\S+)", (ROOT / "requirements/runtime.txt").read_text(), re.MULTILINE)
    assert cli == sdk or f"CLI {cli} for SDK {sdk}" in module
