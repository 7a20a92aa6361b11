"""Unpacks the archive of a release: whole, and plain files and directories only.

Uses the standard library alone: the machines of a fleet on AWS run this text, too (`nodes.cloud_init.program_text`).
"""

from __future__ import annotations

import errno
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

PLAIN = 0o644  # mode of a file
PROGRAM = 0o755  # mode of an executable file or a directory
OF_NAMES = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG)  # of files that an archive cannot mean


def unpack(artifact: BinaryIO, directory: Path) -> None:
    """Unpack an archive into an empty directory.

    Raises:
        tarfile.TarError: it is not a whole archive of plain files and directories below its root; what the directory
            has by then is worthless.
        OSError: the files cannot be written.
    """
    try:
        _unpack(artifact, directory)
    except (EOFError, zlib.error, lzma.LZMAError, ValueError) as error:  # ValueError: of a header
        raise tarfile.ReadError(str(error)) from error
    except OSError as error:
        if error.errno is None:  # of gzip and bzip2: damaged data
            raise tarfile.ReadError(str(error)) from error
        if error.errno in OF_NAMES:
            raise tarfile.ReadError(f"{error.strerror}: {error.filename}") from error
        raise


def _unpack(artifact: BinaryIO, directory: Path) -> None:
    with tarfile.open(fileobj=artifact) as archive:
        # The Python of Debian 12 has no extraction filters, and later ones warn without one: so members are checked.
        archive.extraction_filter = lambda member, _path: member
        archive.extractall(directory, members=_checked_members(archive))  # noqa: S202 - checked
        _check_end(archive)


def _check_end(archive: tarfile.TarFile) -> None:
    """Check that what ended the members is the end of the archive: zeros, and nothing after them.

    `tarfile` also ends at a damaged header, and where an archive was cut between two members. Reads to the end, so the
    checksum of the compression is compared, too.
    """
    assert archive.fileobj is not None  # noqa: S101 - it is open
    archive.fileobj.seek(archive.offset)
    zeros = 0
    while block := archive.fileobj.read(tarfile.RECORDSIZE):
        if block.strip(b"\0"):
            raise tarfile.ReadError(
                f"a damaged header, or data after its end, {archive.offset + zeros} bytes from its start"
            )
        zeros += len(block)
    if zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("it was cut: its end is missing")


def _checked_members(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield each member before it is unpacked, so that the archive is decompressed once.

    All must be plain files and directories below the archive's root: what was unpacked before another one is discarded.
    They become files of this user that nobody else can write to, whatever owner and mode the archive has for them.
    """
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(f"{member.name!r} is not a plain file below the archive's root")
        if member.isdir() and not path.parts:
            continue  # the root itself, which is there
        member.uid, member.gid, member.uname, member.gname = os.geteuid(), os.getegid(), "", ""
        member.mode = PROGRAM if member.isdir() or member.mode & 0o100 else PLAIN
        yield member
