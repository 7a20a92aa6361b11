"""The rollout document changes by compare-and-set only, and is never half written."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from observatory.documents.rollout import FileRolloutStore, RolloutDocument, RolloutError, StaleRolloutError
from tests.support.small_disk import fill, small_disk

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
def test_in_a_first_document_the_active_fleet_has_all_traffic(active: str) -> None:
    first = RolloutDocument.first(version="v0.1.0", sha256=DIGEST, active_fleet=active)  # type: ignore[arg-type]
    assert first.active_fleet == active
    assert {first.blue.weight, first.green.weight} == {0, 100}


def test_create_keeps_an_existing_document(store: FileRolloutStore) -> None:
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
    with pytest.raises(StaleRolloutError, match="found revision 1, expected revision 0"):
        store.compare_and_set(current, document())
    assert store.read() == written


def test_an_older_fencing_number_is_refused(store: FileRolloutStore) -> None:
    current = store.create(document().model_copy(update={"fencing": 7}))
    with pytest.raises(StaleRolloutError, match="found fencing number 7, expected at most 6"):
        store.compare_and_set(current, current.model_copy(update={"fencing": 6}))


def test_one_of_many_concurrent_writers_succeeds(store: FileRolloutStore) -> None:
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
def test_the_error_of_a_damaged_document_names_the_file(store: FileRolloutStore, text: str) -> None:
    store.path.parent.mkdir(parents=True)
    store.path.write_text(text)
    with pytest.raises(RolloutError, match=r"local\.json"):
        store.read()


def test_weights_that_do_not_add_up_are_refused() -> None:
    whole = document()
    with pytest.raises(ValidationError, match="must be 100"):
        RolloutDocument(blue=whole.blue, green=whole.blue)


def test_one_process_at_a_time_writes_to_the_balancer(store: FileRolloutStore) -> None:
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


def test_a_document_of_version_0_1_with_draining_instances_is_read(store: FileRolloutStore) -> None:
    store.path.parent.mkdir(parents=True)
    shutil.copy(RECORDED, store.path)
    current = store.read()
    assert current is not None
    assert current.draining == {"blue": ("blue-2",), "green": ()}
    written = store.compare_and_set(current, current)
    assert "draining" in store.path.read_text()
    assert '"out"' not in store.path.read_text()
    assert store.read() == written


def test_removing_the_document_leaves_no_file_behind(store: FileRolloutStore) -> None:
    store.create(document())
    with store.exclusive():
        pass
    store.remove()
    assert list(store.path.parent.iterdir()) == []


def test_a_change_that_raises_leaves_the_document_as_it_is(store: FileRolloutStore) -> None:
    written = store.create(document())
    with pytest.raises(StaleRolloutError):
        store.compare_and_set(written.model_copy(update={"revision": 3}), written)
    assert store.read() == written
    assert {file.name for file in store.path.parent.iterdir()} == {"local.json", "local.json.1", "local.lock"}


@pytest.mark.parametrize("damage", ["", "{", "[]", None])
def test_a_damaged_or_missing_document_is_read_from_its_newest_copy(
    store: FileRolloutStore, damage: str | None
) -> None:
    current = store.create(document())
    for _ in range(5):
        current = store.compare_and_set(current, shifted(current))
    if damage is None:
        store.path.unlink()
    else:
        store.path.write_text(damage)
    assert store.read() == current
    assert "The copy of version 5 is used" in store.problem
    store.read()
    assert store.problem == ""  # it was reported
    written = store.compare_and_set(current, current)
    assert FileRolloutStore(store.path).read() == written
    assert RolloutDocument.model_validate_json(store.path.read_bytes()) == written


def test_an_older_document_in_the_place_of_the_current_one_is_not_used(store: FileRolloutStore) -> None:
    current = store.create(document())
    old = store.path.read_bytes()
    current = store.compare_and_set(current, shifted(current).model_copy(update={"fencing": 4}))
    store.path.write_bytes(old)
    assert store.read() == current
    assert "which is older than the last one written" in store.problem
    with pytest.raises(StaleRolloutError):
        store.compare_and_set(RolloutDocument.model_validate_json(old), document())


def newer_format(current: RolloutDocument) -> str:
    """Return the document after `current` as a newer version of observatory would write it."""
    after = current.model_copy(update={"revision": current.revision + 1, "fencing": current.fencing + 1})
    return json.dumps({**json.loads(after.model_dump_json()), "regions": 2})


@pytest.mark.parametrize("place", ["local.json", "local.json.2"])
@pytest.mark.parametrize("writes", [1, 3])
def test_a_document_that_a_newer_version_wrote_is_not_replaced_by_an_older_one(
    store: FileRolloutStore, place: str, writes: int
) -> None:
    """Its copies in the known format are older, and a command that used one would undo the newer one's deployment."""
    current = store.create(document())
    for _ in range(writes):
        current = store.compare_and_set(current, shifted(current))
    newer = store.path.with_name(place)
    newer.write_text(newer_format(current))
    for work in (store.read, lambda: store.compare_and_set(current, shifted(current))):
        with pytest.raises(RolloutError, match=r"regions.*if a newer version of observatory has written it, use that"):
            work()
    assert newer.read_text() == newer_format(current)


def test_a_document_without_readable_copies_is_not_removed_by_advice_for_a_damaged_one(store: FileRolloutStore) -> None:
    current = store.create(document())
    for file in store.path.parent.glob("local.json*"):
        file.write_text(newer_format(current))
    with pytest.raises(RolloutError, match="use that version") as refused:
        store.read()
    assert "remove" not in str(refused.value)


def test_a_damaged_name_of_a_field_is_recovered_from_the_copy_of_the_same_version(store: FileRolloutStore) -> None:
    current = store.compare_and_set(store.create(document()), shifted(document()))
    store.path.write_text(store.path.read_text().replace("schema_target", "schemaOtarget"))
    assert (store.read(), "The copy of version 1 is used" in store.problem) == (current, True)


def test_damaged_copies_do_not_matter_while_the_document_is_whole(store: FileRolloutStore) -> None:
    current = store.create(document())
    for number in (1, 2, 3):
        store.path.with_name(f"local.json.{number}").write_text("{")
    assert (store.read(), store.problem) == (current, "")


def test_a_full_disk_has_room_for_every_further_version(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = FileRolloutStore(disk / "rollout" / "local.json")
        current = store.create(document())
        for _ in range(3):
            current = store.compare_and_set(current, shifted(current))
        with store.exclusive():
            pass
        fill(disk / "filler")
        for _ in range(7):
            current = store.compare_and_set(current, shifted(current))
            assert FileRolloutStore(store.path).read() == current
        (disk / "filler").unlink()
        current = store.compare_and_set(current, current)
        assert (store.read(), RolloutDocument.model_validate_json(store.path.read_bytes())) == (current, current)


def test_a_full_disk_without_copies_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        store = FileRolloutStore(disk / "local.json")
        current = store.create(document())
        store.path.with_name("local.json.1").unlink()
        fill(disk / "filler")
        with pytest.raises(RolloutError, match=r"local\.json: cannot be written: No space left on device"):
            store.compare_and_set(current, shifted(current))
        assert store.read() == current
