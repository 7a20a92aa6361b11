"""What node_exporter says of a file of the host jobs that it cannot read, which StorageExporterDown depends on."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port
from tests.support.sandboxes import sandboxed
from tests.support.waiting import until

SOUND = "observatory_job_failed 0\n"


def metrics(rootfs: Path, directory: Path) -> str:
    """Return the metrics of a node_exporter that reads the files in a directory."""
    address = f"127.0.0.1:{free_port()}"
    options = ("--collector.disable-defaults", "--collector.textfile", "--collector.textfile.directory=/srv/textfile")
    argv = ["/usr/bin/prometheus-node-exporter", f"--web.listen-address={address}", *options]
    answers: list[str] = []

    def answered() -> bool:
        try:
            answers.append(httpx.get(f"http://{address}/metrics").text)
        except httpx.TransportError:
            return False
        return True

    with subprocess.Popen(sandboxed(rootfs, directory, argv), stderr=subprocess.DEVNULL) as process:
        try:
            until(answered, "node_exporter")
        finally:
            process.kill()
    return answers[0]


@pytest.mark.parametrize(("other", "mode", "error"), [(SOUND, 0o600, 0), ("cut off {", 0o600, 1), ("a 1\n", 0, 1)])
def test_a_file_that_cannot_be_read_is_an_error_of_the_collector(
    rootfs: Path, tmp_path: Path, other: str, mode: int, error: int
) -> None:
    (tmp_path / "textfile").mkdir()
    file = tmp_path / "textfile" / "one.prom"
    file.write_text(other, encoding="utf-8")
    file.chmod(mode)
    text = metrics(rootfs, tmp_path)
    assert re.search(rf"^node_textfile_scrape_error {error}$", text, re.MULTILINE)
    assert ("\nobservatory_job_failed 0" in text) is (error == 0)
