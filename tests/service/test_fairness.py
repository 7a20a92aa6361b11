"""One key cannot use up what others need."""

import asyncio

from service.storage_service.fairness import FairShare, RoundRobin, Turns
from tests.support.waiting import PATIENCE_S


def test_one_key_alone_may_hold_everything() -> None:
    share = FairShare(10)
    share.take("a", 10)
    assert not share.fits("a")


def test_other_keys_get_an_equal_part_of_what_one_key_holds() -> None:
    share = FairShare(10)
    share.take("a", 10)
    assert share.fits("b", 5)
    assert not share.fits("b", 6)
    share.take("b", 5)
    assert not share.fits("a")
    assert share.fits("c", 3)
    assert not share.fits("c", 4)


def test_what_is_given_back_fits_again() -> None:
    share = FairShare(10)
    with share.holding("a", 8), share.holding("a", 0), share.holding("b", 2):
        assert not share.fits("a")
    assert share.held == 0
    assert share.fits("a", 10)


def test_keys_take_turns_in_a_queue() -> None:
    queue = RoundRobin[str]()
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        queue.push(item[0], item)
    order = []
    while queue:
        assert queue.peek() == queue.peek()
        order.append(queue.pop())
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_tasks_take_turns_and_a_cancelled_one_does_not_keep_its_turn() -> None:
    order: list[str] = []

    async def work(turns: Turns, name: str) -> None:
        async with turns.turn(name[0]):
            order.append(name)
            await asyncio.sleep(0)

    async def scenario() -> None:
        turns = Turns()
        tasks = {name: asyncio.create_task(work(turns, name)) for name in ("a1", "a2", "a3", "b1", "b2")}
        await asyncio.sleep(0)
        tasks["b1"].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)
        async with asyncio.timeout(PATIENCE_S), turns.turn("c"):
            order.append("c")

    asyncio.run(scenario())
    assert order == ["a1", "a2", "a3", "b2", "c"]


def test_several_tasks_may_have_a_turn_at_the_same_time() -> None:
    async def scenario() -> int:
        turns, most, working = Turns(2), 0, 0

        async def work(key: str) -> None:
            nonlocal most, working
            async with turns.turn(key):
                working += 1
                most = max(most, working)
                await asyncio.sleep(0)
                working -= 1

        await asyncio.gather(*(work(key) for key in "aaabbb"))
        return most

    assert asyncio.run(scenario()) == 2


def test_turn_that_comes_together_with_a_cancellation_is_passed_on() -> None:
    async def scenario() -> None:
        turns = Turns()

        async def wait() -> None:
            async with turns.turn("b"):
                raise AssertionError

        async with turns.turn("a"):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        async with asyncio.timeout(PATIENCE_S), turns.turn("c"):
            pass

    asyncio.run(scenario())
