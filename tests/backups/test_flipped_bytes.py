"""One flipped byte in a file of any kind, in either repository, is found by reading the contents.

`make prove PROOF=flipped-bytes` flips a hundred, one at a time.
"""

from __future__ import annotations

import random
from contextlib import ExitStack

import pytest

from observatory.backups.repository import check_repositories
from tests.backups.conftest import ArchivingServer, every_kind_of_file
from tests.support.flipped_bytes import KINDS, files_by_kind, flipped_byte, named

pytestmark = pytest.mark.slow
COPIES = [kind for kind in KINDS if kind.startswith("copy")]
OTHERS = [kind for kind in KINDS if kind not in COPIES]


@pytest.fixture(scope="module")
def whole(server: ArchivingServer) -> ArchivingServer:
    """A server that has written files of every kind to both repositories."""
    every_kind_of_file(server)
    return server


@pytest.mark.parametrize(("repository", "kinds"), [(1, COPIES), (2, OTHERS)], ids=["copies", "others"])
def test_a_flipped_byte_in_a_file_of_each_kind_is_found(
    whole: ArchivingServer, repository: int, kinds: list[str]
) -> None:
    draw, files = random.Random(repository), files_by_kind(whole.tool.place(repository))  # noqa: S311 - no secret
    assert check_repositories(whole.sandbox, repository=repository, contents=True).findings == ()
    with ExitStack() as flipped:
        damaged = [draw.choice(files[kind]) for kind in kinds]
        for file in damaged:
            flipped.enter_context(flipped_byte(file, draw))
        findings = check_repositories(whole.sandbox, repository=repository, contents=True).findings
    texts = " ".join(each.text for each in findings)
    assert [named(file) for file in damaged if named(file) not in texts] == []
