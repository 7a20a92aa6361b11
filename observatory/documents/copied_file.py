"""A document in a file with copies of its last versions, for a file that is damaged, missing, older or not writable."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pydantic import BaseModel

from observatory.documents.document_file import NEWER, DocumentFile, number_in
from observatory.errors import ObservatoryError
from observatory.files.atomic import overwrite, write_file
from observatory.files.locks import exclusive
from observatory.files.reserve import with_reserve

Document = TypeVar("Document", bound=BaseModel)
COPIES = 3
BLOCK = 4096  # bytes: a copy fills whole blocks, so that a full disk has room for a longer document


class Found(NamedTuple, Generic[Document]):
    """The current document, None where there is none, and what was wrong with its file; empty where nothing was."""

    document: Document | None
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class CopiedFile(Generic[Document]):
    """A document in a file, and its last versions in `COPIES` further files, each written whole.

    The current document is the newest of all valid ones: a file that an older version has replaced is not used.

    Attributes:
        file: of the document.
        version: the field with the number of a document's version, which each write raises.
    """

    file: DocumentFile[Document]
    version: str

    def find(self) -> Found[Document]:
        """Return the current document, also from a copy.

        Raises:
            ObservatoryError: the file is damaged, and so is every copy; or a newer version of observatory wrote it.
        """
        newest, current, problem = self._newest_copy(), None, f"{self.file.path}: is missing"
        try:
            current = self.file.read()
        except ObservatoryError as error:
            self._check_known(newest)
            if newest is None:
                raise
            problem = str(error)
        self._check_known(newest, current)
        if newest is None:
            return Found(current)
        if current is not None:
            found, last = self._version(current), self._version(newest)
            if found >= last:
                return Found(current)
            problem = f"{self.file.path}: has version {found}, which is older than the last one written"
        return Found(newest, f"{problem}. The copy of version {self._version(newest)} is used, and written back")

    def change(self, successor: Callable[[Document | None], Document]) -> Document:
        """Replace the current document by its successor, while no other process changes it.

        What `successor` raises leaves the files as they are. A full disk has room for it in a copy.

        Raises:
            ObservatoryError: the file is damaged, or can be written nowhere.
        """
        with exclusive(self.file.lock):
            changed = successor(self.find().document)
            text = changed.model_dump_json(indent=2)
            try:
                with_reserve(self.file.path, lambda: write_file(self.file.path, text))
            except OSError as error:
                if not self._overwrite_oldest(text):
                    raise self.file.error(f"{self.file.path}: cannot be written: {error.strerror}") from error
            else:
                self._copy(self._version(changed), text)
            return changed

    def remove(self) -> None:
        """Remove the file, its copies and its lock."""
        for copy in self._copies():
            copy.unlink(missing_ok=True)
        self.file.remove()

    def _check_known(self, *found: Document | None) -> None:
        """Check that no file has a later version than what was found, in a format that this program does not know.

        An older document in its place would undo what a newer version of the program has done.
        """
        known = max((self._version(each) for each in found if each is not None), default=-1)
        for path in (self.file.path, *self._copies()):
            if self._stored_version(path) > known:
                replace(self.file, path=path, remedy=NEWER).read()

    def _version(self, document: Document) -> int:
        return int(getattr(document, self.version))

    def _stored_version(self, path: Path) -> int:
        try:
            return number_in(path.read_bytes(), self.version)
        except OSError:
            return -1

    def _copies(self) -> list[Path]:
        path = self.file.path
        return [path.with_name(f"{path.name}.{number}") for number in range(1, COPIES + 1)]

    def _copy(self, version: int, text: str) -> None:
        """Write a copy in the place of the oldest one; on a full disk over its content."""
        path = self._copies()[version % COPIES]
        try:
            write_file(path, _padded(text))
        except OSError:
            overwrite(path, _padded(text))

    def _overwrite_oldest(self, text: str) -> bool:
        """Write the document over the oldest copy that exists, never over the newest; return whether it is there."""
        found = [path for path in self._copies() if path.exists()]
        oldest_first = sorted(found, key=self._version_of)
        return any(overwrite(path, _padded(text)) for path in oldest_first[: COPIES - 1])

    def _version_of(self, copy: Path) -> int:
        document = self._read_copy(copy)
        return -1 if document is None else self._version(document)

    def _newest_copy(self) -> Document | None:
        found = [document for copy in self._copies() if (document := self._read_copy(copy)) is not None]
        return max(found, key=self._version, default=None)

    def _read_copy(self, copy: Path) -> Document | None:
        try:
            return replace(self.file, path=copy).read()
        except ObservatoryError:
            return None


def _padded(text: str) -> bytes:
    data = text.encode()
    return data + b"\n" * (-len(data) % BLOCK)
