"""One document as a file: read, created once, and changed by compare-and-set under a file lock."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from observatory.documents.validation import problems
from observatory.errors import ObservatoryError
from observatory.files.atomic import write_file
from observatory.files.locks import exclusive

Document = TypeVar("Document", bound=BaseModel)
NEWER = "if a newer version of observatory has written it, use that version; if not, restore it from a backup"


@dataclass(frozen=True, kw_only=True)
class DocumentFile(Generic[Document]):
    """A document in a file of its own; every write replaces the whole file.

    Attributes:
        path: of the file. Its lock is beside it, with the suffix `.lock`.
        model: of the document.
        kind: what messages call the document, with its article.
        error: raised where the file cannot be read.
        remedy: what to do about a damaged file.
    """

    path: Path
    model: type[Document]
    kind: str
    error: type[ObservatoryError]
    remedy: str

    def read(self) -> Document | None:
        """Return the document, None where there is no file.

        Raises:
            ObservatoryError: of the type `error`; the file cannot be read or is damaged.
        """
        try:
            return self.model.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.error(f"{self.path}: cannot be read: {error.strerror}") from error
        except ValidationError as error:
            raise self.error(f"{self.path}: not {self.kind} ({problems(error)}); {self.remedy}") from error

    def create(self, document: Document) -> Document:
        """Write a first document unless there is one, and return the current one; raises as `read`."""
        return self.change(lambda current: current or document)

    def change(self, successor: Callable[[Document | None], Document]) -> Document:
        """Replace the document by what `successor` returns for the current one, while no other process changes it.

        What `successor` raises leaves the file as it is. Raises as `read`.
        """
        with exclusive(self.lock):
            changed = successor(self.read())
            try:
                write_file(self.path, changed.model_dump_json(indent=2), essential=True)
            except OSError as error:
                raise self.error(f"{self.path}: cannot be written: {error.strerror}") from error
            return changed

    def remove(self) -> None:
        """Remove the file and its lock."""
        self.path.unlink(missing_ok=True)
        self.lock.unlink(missing_ok=True)

    @property
    def lock(self) -> Path:
        """The file that is locked while the document changes."""
        return self.path.with_suffix(".lock")


def number_in(content: bytes, field: str) -> int:
    """Return a number of a document that may be damaged or of a format that is not known; -1 where it has none."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        return -1
    number = document.get(field) if isinstance(document, dict) else None
    return number if isinstance(number, int) else -1
