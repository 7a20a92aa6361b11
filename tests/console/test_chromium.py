"""The pages in a real browser: nothing that a name or a message contains is executed, and charts are drawn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from monitoring import ALERTS
from observatory import operations
from observatory.backups.tool import BackupType
from observatory.console.pages import Pages
from observatory.console.worker import Answer, Worker
from observatory.database.migration_list import ListedMigration, MigrationList
from observatory.documents.journal import Entry
from tests.console.conftest import Served, served
from tests.support.checkout import Checkout
from tests.support.chromium import Page, chromium, chromium_rootfs, new_page

pytestmark = pytest.mark.slow

MARKUP = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
ATTRIBUTE = f"\"'><b onmouseover=alert(1)>{MARKUP}"
UNBREAKABLE = "^" * 300
NOW = datetime.now(UTC)
POINTS = 30


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with chromium(chromium_rootfs(tmp_path_factory.mktemp("cache"))) as address:
        yield address


class Inside(Worker):
    """Renders pages in this process, so that a test replaces what is read."""

    def __init__(self, pages: Pages) -> None:
        super().__init__(pages.workspace.root, pages.workspace.stack)
        self.pages = pages

    def answer(self, path: str, query: Any) -> Answer:
        status, kind, body = self.pages.answer(path, query)
        return Answer(status=status, kind=kind, body=body)


def gate() -> dict[str, Any]:
    sample = {"requests": 10, "error_ratio": 0.5, "p95_s": 0.1}
    finding = {"name": ATTRIBUTE, "kind": "errors", "value": 0.5, "limit": 0.1}
    found = {"verdict": "failed", "reasons": [ATTRIBUTE], "findings": [finding], "step": 1, "steps": 2}
    return {**found, "weights": {ATTRIBUTE: 80}, "new": sample, "old": sample, "bake_s": 10, "baked_s": 2}


@pytest.fixture
def hostile(fresh: Checkout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Served]:
    """A console of which every text that comes from outside contains markup."""
    common = {"deployment": "d1", "version": ATTRIBUTE, "target": "green", "source": "blue", "strategy": ATTRIBUTE}
    events = {
        "start": {},
        "gate": gate(),
        "rolled-back": {"reason": ATTRIBUTE + UNBREAKABLE},
        ATTRIBUTE: {ATTRIBUTE: ATTRIBUTE},
    }
    entries = [
        Entry(id=str(number), at=NOW.timestamp(), actor=ATTRIBUTE, event=event, details={**common, **details})
        for number, (event, details) in enumerate(events.items())
    ]
    alert = operations.ActiveAlert(
        state="firing", since=NOW, labels={"instance": ATTRIBUTE}, description=ATTRIBUTE, muted=False
    )
    rule = operations.AlertRule(
        name=ALERTS[0].name,
        severity="critical",
        component=ATTRIBUTE,
        category=ATTRIBUTE,
        summary=ATTRIBUTE,
        state="firing",
        alerts=(alert,),
        problem=ATTRIBUTE,
    )
    silence = operations.Silence(
        id=ATTRIBUTE, matchers=(ATTRIBUTE,), created_by=ATTRIBUTE, reason=ATTRIBUTE, starts=NOW, ends=NOW
    )
    backup = operations.Backup(
        repository=1,
        label=ATTRIBUTE,
        type=BackupType.FULL,
        started=NOW,
        ended=NOW,
        database_bytes=1,
        repository_bytes=1,
        prior=None,
        wal_start="",
        wal_stop="",
        damaged=False,
        obstacle=ATTRIBUTE,
    )
    migration = ListedMigration(version=1, file=ATTRIBUTE, state="applied", applied_at=NOW, applied_by=ATTRIBUTE)
    migrations = MigrationList(version=1, edition="community", migrations=(migration,), problem=ATTRIBUTE)
    found = {
        "list_audit": entries,
        "list_alerts": [rule, replace(rule, name="<i>", state="pending")],
        "list_silences": [silence],
        "list_backups": [backup],
        "list_receipts": [],
        "list_migrations": migrations,
    }
    for name, value in found.items():
        monkeypatch.setattr(operations, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr("observatory.operations.delivery_report.list_audit", lambda *_, **__: entries)
    monkeypatch.setattr(operations, "query_metrics", series)
    pages = Pages(operations.open_workspace("local", fresh.root))
    with served(tmp_path / "links", Inside(pages)) as made:
        yield made


def series(_workspace: Any, _expression: str, *, start: float, end: float, step: float) -> list[dict[str, Any]]:
    """Return two series; every label has markup."""
    labels = dict.fromkeys(
        ("fleet", "instance", "version", "alertname", "severity", "datname", "repository", "state", "name"), ATTRIBUTE
    )
    times = [start] if start == end else [start + index * (end - start) / POINTS for index in range(POINTS + 1)]
    return [{"metric": {**labels, "table": name}, "values": [[at, "1"] for at in times]} for name in ("a", ATTRIBUTE)]


def in_page(browser: str, console: Served, work: Any) -> None:
    """Open a session in a new page of the browser, and do the work there."""

    async def run() -> None:
        async with new_page(browser) as page:
            await page.open(f"{console.url}{console.link()}")
            await work(page, await page.evaluate("location.href"))

    asyncio.run(run())


ADDRESSES = (
    *("", "deployments", "deployments/d1", "alerts", "backups", "migrations", "audit", "audit?find=%3Cscript%3E"),
    *("dashboards/overview", "dashboards/delivery", "runbooks/StorageDatabaseDown", "none%3Cscript%3E"),
)


def test_markup_in_names_and_messages_is_text(browser: str, hostile: Served) -> None:
    async def work(page: Page, base: str) -> None:
        for address in ADDRESSES:
            await page.open(f"{base}{address}")
            if await page.evaluate("!!document.querySelector('.charts')"):
                await page.until("document.body.dataset.drawn == 'true'")
            assert await page.evaluate("document.title") != "owned", address
            # Besides the policy, which forbids them: none of the elements exists.
            assert await page.evaluate("document.querySelectorAll('img, main script, b[onmouseover]').length") == 0
            if address in {"deployments/d1", "alerts", "backups", "migrations", "audit", "dashboards/overview"}:
                assert "<img src=x" in await page.evaluate("document.body.textContent"), address
        assert not [line for line in page.console if "script" in line], page.console

    in_page(browser, hostile, work)


def test_scripts_of_a_page_are_not_executed_even_where_markup_gets_in(browser: str, hostile: Served) -> None:
    """The policy alone suffices: the browser refuses handlers and scripts that a fault of a template lets through."""

    async def work(page: Page, base: str) -> None:
        await page.open(base)
        await page.evaluate(
            "document.body.insertAdjacentHTML('beforeend', `<img src='data:,' onerror=\"document.title='owned'\">`);"
            "const made = document.createElement('script'); made.textContent = \"document.title='owned'\";"
            "document.body.append(made); new Promise(done => setTimeout(done, 500))"
        )
        assert await page.evaluate("document.title") != "owned"
        assert any("Content Security Policy" in line for line in page.console)

    in_page(browser, hostile, work)


def test_charts_are_drawn_and_no_page_is_wider_than_a_phone(browser: str, hostile: Served) -> None:
    async def work(page: Page, base: str) -> None:
        for dark, width in ((False, 1280), (True, 390)):
            await page.look(dark=dark, width=width, height=844)
            await page.open(f"{base}dashboards/delivery")
            await page.until("document.querySelectorAll('.js-plotly-plot .scatterlayer path.js-line').length > 5")
            for address in ("", "alerts", "deployments/d1", "dashboards/delivery"):
                await page.open(f"{base}{address}")
                assert await page.evaluate("document.documentElement.scrollWidth") <= width, (address, width)
            # Within the page's margins, too: what is beyond them is cut off. The page's name in the list is in sight.
            right = (
                "Math.max(...[...document.querySelectorAll('.chart')].map(each => each.getBoundingClientRect().right))"
            )
            assert await page.evaluate(right) <= width - 16, width
            here = "document.querySelector('.side nav [aria-current]').getBoundingClientRect().right"
            assert await page.evaluate(here) < width + 1  # of which a browser shows parts
        ground = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(18, 20, 22)"

    in_page(browser, hostile, work)


def test_every_page_is_used_by_keyboard(browser: str, hostile: Served) -> None:
    async def work(page: Page, base: str) -> None:
        await page.open(base)
        reached = [await focused_after_tab(page) for _ in range(9)]
        assert reached[0] == "Skip to content"
        assert reached[1:6] == ["Overview", "Deployments", "Alerts 1", "Dashboards", "Backups"]

    in_page(browser, hostile, work)


def focused_after_tab(page: Page) -> Coroutine[Any, Any, str]:
    """Press the tabulator, and return the text of the element that has the focus then."""

    async def press() -> str:
        for kind in ("keyDown", "keyUp"):
            await page.call("Input.dispatchKeyEvent", type=kind, key="Tab", code="Tab", windowsVirtualKeyCode=9)
        return str(await page.evaluate("document.activeElement.textContent.trim().replace(/\\s+/g, ' ')"))

    return press()
