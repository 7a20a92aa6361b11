"""What a run of the command imports: work that is waited for must not load what it does not use.

A contract on names rather than a limit on time, which a loaded machine would break.
"""

from __future__ import annotations

import re

from tests.support.checkout import Checkout

HEAVY = {  # 10 ms and more of CPU each
    *("psycopg", "pglast", "pulumi", "grpc", "pulumi_aws", "pulumi_kubernetes"),
    *("apscheduler", "botocore", "cryptography", "httpx", "jinja2"),
}

_IMPORTED = re.compile(r"^import time: +\d+ \| +\d+ \| +([\w.]+)", re.MULTILINE)


def run_watched(checkout: Checkout, *arguments: str, expect: int = 0) -> tuple[str, set[str]]:
    """Run the command to its end; return what it answered, and the modules that it and its processes imported."""
    done = checkout.run(*arguments, expect=expect, PYTHONPROFILEIMPORTTIME="1")  # CPython tells each on stderr
    found = set(_IMPORTED.findall(done.stderr))
    assert "observatory" in found, "no import was recorded: the test checks nothing"
    return done.stdout, found
