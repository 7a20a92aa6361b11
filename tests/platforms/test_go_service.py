"""A storage service in another language, written from the page of the contract, passes `release check`."""

import shutil
from pathlib import Path

import pytest

from observatory.platforms.contract import examination
from observatory.progress import silent
from tests.support.go_service import build_go_service

ROOT = Path(__file__).parents[2]
LEFT_OUT = {"GET /openapi.json responds with the description of the API"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go (https://go.dev/doc/install)")
def test_service_in_go_meets_every_requirement_of_the_page(rootfs: Path, tmp_path: Path) -> None:
    artifact, manifest = build_go_service("v1.0.0", tmp_path)
    findings = examination.examine(
        artifact, manifest, home=tmp_path / "bench", rootfs=rootfs, migrations=ROOT / "migrations", report=silent
    )
    missed = {each.requirement: each.detail for each in findings.all if each.outcome != "passed"}
    assert missed.keys() == LEFT_OUT, missed
    assert {"check", "start", "headers", "keys", "api", "metrics", "database", "logs", "end"} <= {
        each.section for each in findings.all if each.outcome == "passed"
    }
