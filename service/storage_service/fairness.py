"""Fair use of limited resources by API keys, so that one key cannot use up what others need.

Owns who may take how much, and in which order. Does not own what is taken: bodies are in `bodies`, writes in `buffer`.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairShare:
    """A limited amount that keys hold parts of.

    One key alone may hold all of it. When all is held, a key that holds less than an equal part may still take up to
    that part, and one at least. The total therefore exceeds the capacity for a moment when further keys arrive. It is
    still bounded: by the capacity, plus a half of it for the second key, a third for the third, and so on.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self._by_key: dict[str, int] = {}

    def fits(self, key: str, amount: int = 1) -> bool:
        """Return whether a key may take an amount more."""
        if self.held + amount <= self.capacity:
            return True
        keys = len(self._by_key | {key: 0})
        return self._by_key.get(key, 0) + amount <= max(1, self.capacity // keys)

    def take(self, key: str, amount: int = 1) -> None:
        """Take an amount; the caller has checked that it fits, and gives it back."""
        self._change(key, amount)

    def give_back(self, key: str, amount: int = 1) -> None:
        """Give an amount back."""
        self._change(key, -amount)

    def _change(self, key: str, amount: int) -> None:
        self.held += amount
        held = self._by_key.pop(key, 0) + amount
        if held:
            self._by_key[key] = held

    @contextlib.contextmanager
    def holding(self, key: str, amount: int = 1) -> Iterator[None]:
        """Hold an amount for the duration of a block."""
        self.take(key, amount)
        try:
            yield
        finally:
            self.give_back(key, amount)


class RemainderShare(FairShare):
    """A limited amount of which a part always remains for further keys.

    A key may hold as much as remains: one key alone a half, two keys a third each, and so on. So the total never
    exceeds the capacity, however many keys there are, and a further key always gets a part.
    """

    def fits(self, key: str, amount: int = 1) -> bool:
        """Return whether a key may take an amount more."""
        return self._by_key.get(key, 0) + amount <= self.capacity - self.held


class RoundRobin(Generic[Item]):
    """A queue in which keys take turns: each key's items are in the order of their arrival."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Item]] = {}

    def __bool__(self) -> bool:
        return bool(self._queues)

    def push(self, key: str, item: Item) -> None:
        """Add an item of a key."""
        self._queues.setdefault(key, deque()).append(item)

    def peek(self) -> Item:
        """Return the item that `pop` returns next."""
        return next(iter(self._queues.values()))[0]

    def pop(self) -> Item:
        """Remove and return the next item; the key that it belongs to goes to the end."""
        key = next(iter(self._queues))
        queue = self._queues.pop(key)
        item = queue.popleft()
        if queue:
            self._queues[key] = queue
        return item


class Turns:
    """Lets one task at a time work, or a few; keys take turns."""

    def __init__(self, places: int = 1) -> None:
        self._free = places
        self._waiting: RoundRobin[asyncio.Future[None]] = RoundRobin()

    @contextlib.asynccontextmanager
    async def turn(self, key: str) -> AsyncIterator[None]:
        """Wait for the turn of a task of this key, and pass it on at the end of the block."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(key)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, key: str) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.push(key, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # the turn came together with the cancellation
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.pop()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
