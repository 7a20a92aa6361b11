"""Compressed bodies are complete, or the error says what is wrong."""

import asyncio
import gzip
import json

import pytest
import zstandard

from service.storage_service.bodies import Uploads, expanded
from service.storage_service.metrics import Metrics
from service.storage_service.problems import InvalidRequest
from service.storage_service.settings import Settings
from tests.service.harness import item


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed_body_is_accepted_only_as_a_whole(encoding: str) -> None:
    limits = Settings.model_construct(max_uploads=1, max_upload_bytes=2**20)
    text = json.dumps({"items": [item(input_text=item()["span_id"] * 20)]}).encode()
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    body = gzip.compress(text) if encoding == "gzip" else compressor.compress(text)

    def expand(cut: bytes) -> bytes:
        with Uploads(limits, metrics=Metrics(fleet="blue")).upload("a") as upload:
            return asyncio.run(expanded(cut, encoding, upload))

    assert expand(body) == text
    for size in range(len(body)):
        with pytest.raises(InvalidRequest, match=f"is not {encoding}: it is incomplete"):
            expand(body[:size])
    for more in (b"\0", body):
        with pytest.raises(InvalidRequest, match=f"is not {encoding}: data follows its end"):
            expand(body + more)
