from pathlib import Path

import pytest

from tests.support.checkout import Checkout


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--from", "production", "--fraction", "1.5"], 2, "1.5 is out of range: expected above 0 and at most 1"),
        (["--from", "production", "--fraction", "0"], 2, "0 is out of range"),
        (["--from", "production", "--fraction", "much"], 2, "--fraction"),
        (["--from", "local", "--to", "production"], 3, "never goes into production"),
        (["--from", "production"], 3, "the stack 'local' is not up: run `observatory up` first"),
        (["--from", "local", "-e", "production", "--to", "dbname=x"], 3, "never goes into production"),
        ([], 2, "--from"),
    ],
)
def test_an_impossible_sample_is_refused_with_the_reason(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    done = Checkout.copy(tmp_path, rootfs=None).run("data", "sample", *arguments, expect=code)

    assert message in " ".join(done.stderr.replace("│", " ").split())
