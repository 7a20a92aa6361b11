"""AWS' protocol on loopback: moto's server, asked by the same clients as AWS itself, as nobody in particular."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import httpx
from moto.server import ThreadedMotoServer

REGION: Literal["eu-central-1"] = "eu-central-1"


@contextmanager
def aws_on_loopback() -> Iterator[dict[str, str]]:
    """Serve it; yields the environment whose clients reach this server alone."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    try:
        httpx.post(f"{url}/moto-api/reset").raise_for_status()  # what it keeps is the process's
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }
    finally:
        server.stop()
