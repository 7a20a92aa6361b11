"""Numbers of migrations: 001 to 499 are the product's, own ones start at 500.

A directory without the product's first file is another database's; there, every number is free.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import count

from observatory.database.errors import MigrationFileError

FIRST_OWN = 500
RENUMBER = "observatory deploy database --repair renumber"

# A name is taken into this list with its file, before the release that brings it.
PRODUCT = (
    "001_initial_schema",
    "002_add_hypertables",
    "003_create_indexes",
    "004_continuous_aggregates",
    "005_retention_policies",
    "006_supporting_tables",
    "007_text_limits_and_read_indexes",
    "008_quiet_refresh",
)
_PRODUCT = frozenset(PRODUCT)


class OwnNumberError(MigrationFileError):
    """Own migrations have numbers of the product.

    Attributes:
        renamed: the name that each must get, by its present name: `007_mine` to `500_mine`.
    """

    def __init__(self, renamed: Mapping[str, str]) -> None:
        self.renamed = dict(renamed)
        listed = "; ".join(f"name {old}.sql {new}.sql" for old, new in renamed.items())
        first, new = next(iter(renamed.items()))
        super().__init__(
            f"{first}.sql:1:1: numbers 001 to {FIRST_OWN - 1} are for the product's migrations, own ones start at "
            f"{FIRST_OWN}. Rename: {listed}. Where a database has one applied, also run {RENUMBER} {new}.sql --reason "
            "TEXT"
        )


def is_product_directory(names: Collection[str]) -> bool:
    """Return whether files with these names belong to the product's database."""
    return PRODUCT[0] in names


def is_own(name: str) -> bool:
    """Return whether a migration of the product's database is an own one, by its name `500_mine`."""
    return name not in _PRODUCT


def reached(applied: Iterable[int], needed: int) -> int:
    """Return the highest applied number in the range of a needed one, the product's or the own; 0 for none.

    An own migration 500 does not stand for the product's 009.
    """
    return max((each for each in applied if (each < FIRST_OWN) == (needed < FIRST_OWN)), default=0)


def version_towards(applied: Collection[str], target: int) -> int:
    """Return the highest number of applied migrations that a target limits; 0 for none.

    In the product's database, a target among the product's numbers leaves own migrations as they are.
    """
    numbers = [version_in(name) for name in applied]
    return reached(numbers, target) if is_product_directory(applied) else max(numbers, default=0)


def version_in(name: str) -> int:
    """Return the number in a migration's name."""
    return int(name.partition("_")[0])


def title_in(name: str) -> str:
    """Return a migration's name without its number."""
    return name.partition("_")[2]


def own_below_first(names: Iterable[str]) -> list[str]:
    """Return the names of own migrations that have numbers of the product, by number."""
    distinct = set(names)
    if not is_product_directory(distinct):
        return []
    return sorted(name for name in distinct - _PRODUCT if name[0].isdigit() and version_in(name) < FIRST_OWN)


def next_own_number(taken: Iterable[int]) -> int:
    """Return the number after the highest own one."""
    return max((version for version in taken if version >= FIRST_OWN), default=FIRST_OWN - 1) + 1


def check_own_numbers(names: Collection[str]) -> None:
    """Refuse own migrations that have numbers of the product.

    Raises:
        OwnNumberError: has the names that they must get.
    """
    if wrong := own_below_first(names):
        free = count(next_own_number(version_in(name) for name in names if name[0].isdigit()))
        raise OwnNumberError({name: f"{next(free):03d}_{title_in(name)}" for name in wrong})
