"""scripts/venv.sh creates an environment, and reports what is missing. Needs the package registry."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts/venv.sh"


def lock_of(package: str) -> str:
    """Return the lines that lock `package` in the project's requirements."""
    match = re.search(
        rf"^{package}==.*?(?=^\S|\Z)", (ROOT / "requirements/runtime.txt").read_text(), re.DOTALL | re.MULTILINE
    )
    assert match
    return match[0]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout with only the files that the script reads, and two small locked requirements."""
    root = tmp_path_factory.mktemp('it\'s a 100% "check" #1? é')
    for directory in ("scripts", "requirements", "observatory"):
        (root / directory).mkdir()
    (root / "observatory/__init__.py").touch()
    (root / "README.md").touch()
    (root / "LICENSE").touch()
    shutil.copy(ROOT / "pyproject.toml", root)
    shutil.copy(SCRIPT, root / "scripts")
    shutil.copy(ROOT / "requirements/bootstrap.txt", root / "requirements")
    (root / "requirements/runtime.txt").write_text(lock_of("setuptools"))
    (root / "requirements/dev.txt").write_text(lock_of("setuptools") + lock_of("typing-extensions"))
    return root


def venv(
    root: Path, requirements: str = "requirements/runtime.txt", **environment: str
) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", "scripts/venv.sh", ".venv", requirements]
    return subprocess.run(
        command, cwd=root, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def python(root: Path, code: str) -> subprocess.CompletedProcess[str]:
    command = [str(root / ".venv/bin/python"), "-c", code]
    return subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)


@pytest.fixture
def made(checkout: Path) -> Path:
    """Return the checkout with its environment."""
    result = venv(checkout)
    assert result.returncode == 0, result.stderr
    return checkout


def test_creates_a_working_environment(made: Path) -> None:
    assert python(made, "import observatory, setuptools; print(observatory.__file__)").stdout.startswith(str(made))
    assert python(made, "import pip").returncode == 0
    assert list(made.glob(".venv/lib/python3*/site-packages/setuptools/__pycache__/*.pyc"))


def test_second_call_changes_nothing(made: Path) -> None:
    marker = made / ".venv/.complete"
    before = marker.stat().st_mtime_ns
    result = venv(made)
    assert (result.returncode, result.stderr) == (0, "")
    assert marker.stat().st_mtime_ns == before


def test_further_requirements_are_added_and_the_first_stay_up_to_date(made: Path) -> None:
    result = venv(made, "requirements/dev.txt")
    assert "Creating" not in result.stderr
    assert "Installing 2 packages" in result.stderr
    assert python(made, "import typing_extensions").returncode == 0
    assert venv(made).stderr == ""


def test_changed_requirement_is_installed(made: Path) -> None:
    (made / "requirements/runtime.txt").write_text(lock_of("setuptools") + lock_of("pyyaml"))
    assert "Installing 2 packages" in venv(made).stderr
    assert python(made, "import yaml").returncode == 0


def test_killed_installation_is_repeated_by_one_of_concurrent_calls(made: Path) -> None:
    (made / ".venv/.complete").unlink()
    (made / ".venv/lib/left-behind").touch()
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: venv(made), range(3)))
    assert [result.returncode for result in results] == [0, 0, 0]
    assert sorted("Creating" in result.stderr for result in results) == [False, False, True]
    assert not (made / ".venv/lib/left-behind").exists()
    assert python(made, "import setuptools").returncode == 0


def test_wrong_hash_is_rejected_and_the_next_call_retries(made: Path) -> None:
    good = (made / "requirements/runtime.txt").read_text()
    (made / "requirements/runtime.txt").write_text(f"pyyaml==6.0.2 --hash=sha256:{'0' * 64}\n")
    result = venv(made)
    assert result.returncode != 0
    assert "hash" in result.stderr.lower()
    (made / "requirements/runtime.txt").write_text(good)
    assert venv(made).returncode == 0


def test_the_index_of_the_machines_pip_settings_is_used(made: Path) -> None:
    settings = made / "machine/pip/pip.conf"  # as /etc/xdg/pip/pip.conf and /etc/pip.conf
    settings.parent.mkdir(parents=True)
    settings.write_text("[global]\nindex-url = http://127.0.0.1:9/simple\n")
    (made / "requirements/runtime.txt").write_text(lock_of("idna"))
    result = venv(made, XDG_CONFIG_DIRS=str(made / "machine"), PIP_INDEX_URL="", UV_NO_CACHE="1", UV_HTTP_RETRIES="0")
    (made / "requirements/runtime.txt").write_text(lock_of("setuptools"))
    assert "http://127.0.0.1:9/simple/idna/" in result.stderr


@pytest.mark.parametrize("version", [None, "3.10"])
def test_missing_or_too_old_python_is_reported(tmp_path: Path, checkout: Path, version: str | None) -> None:
    for tool in ("sh", "cat", "sha256sum", "flock", "dirname", "basename", "mkdir", "mktemp", "rm", "cut"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    if version:
        (tmp_path / "python3").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "python3").chmod(0o755)
    shutil.copytree(checkout, tmp_path / "checkout", ignore=shutil.ignore_patterns(".venv"))
    result = venv(tmp_path / "checkout", PATH=str(tmp_path))
    assert result.returncode == 1
    assert "Python 3.11 or newer is needed" in result.stderr


def test_missing_arguments_print_the_usage(checkout: Path) -> None:
    result = subprocess.run(["/bin/sh", SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "usage" in result.stderr
