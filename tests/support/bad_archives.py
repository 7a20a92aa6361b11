"""Archives that must not be unpacked, and the good ones that they are made from."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

MEMBER_BYTES = 1024  # a header and the data of a member, in blocks
NOT_PLAIN = "is not a plain file below the archive's root"
OUTSIDE = {"above": "../outside", "absolute": "/etc/outside", "above, later": "a/../../outside"}
DAMAGES = {
    "cut": "not a release archive: it was cut",
    "cut header": "not a release archive",
    "cut gzip": "not a release archive",
    "header": "not a release archive: a damaged header",
    "after the end": "not a release archive: a damaged header, or data after its end",
    "checksum": "not a release archive",
    "no archive": "not a release archive",
    "empty": "not a release archive",
}


def member(name: str, **changes: Any) -> tarfile.TarInfo:
    """Return a member with these fields; a plain file unless they say otherwise."""
    made = tarfile.TarInfo(name)
    for field, value in changes.items():
        setattr(made, field, value)
    return made


HOSTILE = {
    "zero byte": [member("a", pax_headers={"path": "a\0b"})],
    "map": [member("a", pax_headers={"GNU.sparse.map": "0,z", "GNU.sparse.size": "1"})],
    "sparse": [member("a", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "9"})],
    "long name": [member("n" * 300)],
    "file and directory": [member("a"), member("a/b")],
    "no name": [member("")],
    "device": [member("device", type=tarfile.CHRTYPE)],
    "pipe": [member("pipe", type=tarfile.FIFOTYPE)],
    "link": [member("lib", type=tarfile.SYMTYPE, linkname="/etc")],
    "link inside": [member("a"), member("b", type=tarfile.SYMTYPE, linkname="a")],
    "hard link": [member("a"), member("b", type=tarfile.LNKTYPE, linkname="a")],
    **{name: [member("inside"), member(path)] for name, path in OUTSIDE.items()},
}
NAMED = {"device", "pipe", "link", "link inside", "hard link", *OUTSIDE}
# Each bad archive, with what its refusal says.
BAD_ARCHIVES = {**DAMAGES, **{name: NOT_PLAIN if name in NAMED else "not a release archive" for name in HOSTILE}}


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def archive(directory: Path, *names: str) -> tuple[Path, str]:
    """Write an archive with plain files of two bytes; return it with its digest."""
    return packed(directory, *(member(name) for name in names), form=tarfile.GNU_FORMAT)


def packed(directory: Path, *members: tarfile.TarInfo, form: int = tarfile.PAX_FORMAT) -> tuple[Path, str]:
    """Write an archive with members, whose files have two bytes; return it with its digest."""
    file = directory / "release.tar.gz"
    with tarfile.open(file, "w:gz", format=form) as tar:
        for each in members:
            each.size = 2 if each.isfile() else 0
            tar.addfile(each, io.BytesIO(b"ok"))
    return file, digest_of(file)


def bad_archive(directory: Path, name: str) -> Path:
    """Write one of `BAD_ARCHIVES`."""
    if name in HOSTILE:
        return packed(directory, *HOSTILE[name])[0]
    file, _ = archive(directory, "a", "b")
    whole = file.read_bytes()
    plain = gzip.decompress(whole)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    damaged = {
        "cut": gzip.compress(plain[:MEMBER_BYTES]),
        "cut header": gzip.compress(plain[: MEMBER_BYTES + 100]),
        "cut gzip": whole[: len(whole) // 2],
        "header": gzip.compress(plain[:MEMBER_BYTES] + b"x" + plain[MEMBER_BYTES + 1 :]),
        "after the end": gzip.compress(plain + plain),
        "checksum": bytes(flipped),
        "no archive": b"<html>not found</html>",
        "empty": b"",
    }
    file.write_bytes(damaged[name])
    return file
