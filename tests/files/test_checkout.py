"""A checkout's path works, or is refused at once with the reason: by the command and by scripts/venv.sh alike."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from observatory.files.checkout import CheckoutPathError, check_path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/venv.sh"
USABLE = ["it's", 'a "b"', "100% #1?", "$5 $", "~é;&[a]*!<>|()`@=+^ "]
UNUSABLE = ["a:b", "a,b", "$HOME", "a{b", "a}", "a\\b", "a\nb", "end\n", "a\tb", "\x7f"]


def run_script(root: Path) -> subprocess.CompletedProcess[str]:
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPT, root / "scripts")
    command = ["/bin/sh", "scripts/venv.sh", ".venv", "requirements/runtime.txt"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", USABLE)
def test_a_usable_path_is_accepted(tmp_path: Path, name: str) -> None:
    check_path(tmp_path / name)
    assert "move or rename" not in run_script(tmp_path / name).stderr


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_path_is_refused_with_its_remedy(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckoutPathError, match=r"(?s)the path of the checkout.*contains.*\nMove or rename"):
        check_path(tmp_path / name)
    result = run_script(tmp_path / name)
    assert (result.returncode, "Remedy: move or rename the directory" in result.stderr) == (2, True)


def test_a_path_that_is_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckoutPathError, match=r"is not UTF-8\nMove or rename"):
        check_path(tmp_path / "\udcff")
