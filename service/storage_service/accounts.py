"""What one request holds of the memory of the instance, until it ends.

Owns the account of one body or response. Does not own who may hold how much: that is in `fairness`.
"""

from typing import ClassVar

from .fairness import FairShare
from .problems import RETRY_AFTER_S, TooManyRequests


class MemoryAccount:
    """The memory of one request; a subclass has the message for a key that holds its share."""

    full: ClassVar[str]
    """With places for `held` and `capacity`, in bytes."""

    def __init__(self, key: str, memory: FairShare) -> None:
        self._key = key
        self._memory = memory
        self._held = 0

    def fits(self, size: int) -> bool:
        """Return whether the request may take more memory."""
        return self._memory.fits(self._key, size)

    def grow(self, size: int) -> None:
        """Account for more memory.

        Raises:
            TooManyRequests: the requests of this key take their share of the memory.
        """
        if not self.fits(size):
            held, capacity = self._memory.held, self._memory.capacity
            raise TooManyRequests(self.full.format(held=held, capacity=capacity), RETRY_AFTER_S)
        self._memory.take(self._key, size)
        self._held += size

    def release(self) -> None:
        """Account for the end of the request."""
        self._memory.give_back(self._key, self._held)
        self._held = 0
