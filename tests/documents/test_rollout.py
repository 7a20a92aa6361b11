"""The rollout document: only compare-and-set changes it, and nothing is half written."""

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from observatory.documents.rollout import FileRolloutStore, RolloutDocument, RolloutError, StaleRolloutError

DIGEST = "a" * 64
RECORDED = Path(__file__).parent / "rollout_0_1.json"  # written in the middle of a rolling update


def document() -> RolloutDocument:
    return RolloutDocument.first(version="v0.1.0", sha256=DIGEST, active_fleet="blue")


def shifted(current: RolloutDocument) -> RolloutDocument:
    blue = current.blue.model_copy(update={"weight": 0})
    green = current.green.model_copy(update={"weight": 100})
    return current.model_copy(update={"blue": blue, "green": green})


@pytest.fixture
def store(tmp_path: Path) -> FileRolloutStore:
    return FileRolloutStore(tmp_path / "rollout" / "local.json")


def test_a_stack_without_a_document_has_none(store: FileRolloutStore) -> None:
    assert store.read() is None


@pytest.mark.parametrize("active", ["blue", "green"])
def test_a_first_document_gives_all_traffic_to_the_active_fleet(active: str) -> None:
    first = RolloutDocument.first(version="v0.1.0", sha256=DIGEST, active_fleet=active)  # type: ignore[arg-type]
    assert first.active_fleet == active
    assert {first.blue.weight, first.green.weight} == {0, 100}


def test_create_keeps_what_stands(store: FileRolloutStore) -> None:
    store.create(document())
    store.compare_and_set(document(), shifted(document()))
    assert store.create(document()).active_fleet == "green"


def test_a_change_raises_the_revision(store: FileRolloutStore) -> None:
    current = store.create(document())
    assert store.compare_and_set(current, shifted(current)).revision == 1
    assert store.read() == shifted(current).model_copy(update={"revision": 1})


def test_a_stale_revision_is_refused_and_changes_nothing(store: FileRolloutStore) -> None:
    current = store.create(document())
    written = store.compare_and_set(current, shifted(current))
    with pytest.raises(StaleRolloutError, match="expected revision 0, found revision 1"):
        store.compare_and_set(current, document())
    assert store.read() == written


def test_an_older_fencing_number_is_refused(store: FileRolloutStore) -> None:
    current = store.create(document().model_copy(update={"fencing": 7}))
    with pytest.raises(StaleRolloutError, match="6 < 7"):
        store.compare_and_set(current, current.model_copy(update={"fencing": 6}))


def test_of_many_writers_with_one_revision_one_wins(store: FileRolloutStore) -> None:
    current = store.create(document())

    def attempt(_: int) -> bool:
        try:
            store.compare_and_set(current, shifted(current))
        except StaleRolloutError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1


@pytest.mark.parametrize("text", ["", "{", '{"revision": 0}', "[]"])
def test_a_damaged_document_is_named(store: FileRolloutStore, text: str) -> None:
    store.create(document())
    store.path.write_text(text)
    with pytest.raises(RolloutError, match=r"local\.json"):
        store.read()


def test_weights_that_do_not_add_up_are_refused() -> None:
    whole = document()
    with pytest.raises(ValidationError, match="must be 100"):
        RolloutDocument(blue=whole.blue, green=whole.blue)


def test_whoever_tells_the_balancer_keeps_others_out(store: FileRolloutStore) -> None:
    store.create(document())
    order: list[str] = []

    def second() -> None:
        with store.exclusive():
            order.append("second")

    with ThreadPoolExecutor() as pool:
        with store.exclusive():
            waiting = pool.submit(second)
            time.sleep(0.05)
            order.append("first")
        waiting.result()
    assert order == ["first", "second"]


def test_a_document_of_version_0_1_names_draining_instances_out_and_is_still_read(store: FileRolloutStore) -> None:
    store.path.parent.mkdir(parents=True)
    shutil.copy(RECORDED, store.path)
    current = store.read()
    assert current is not None
    assert current.draining == {"blue": ("blue-2",), "green": ()}
    written = store.compare_and_set(current, current)
    assert "draining" in store.path.read_text()
    assert '"out"' not in store.path.read_text()
    assert store.read() == written
