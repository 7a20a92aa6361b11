"""Debian's Chromium, headless, in a root filesystem of its own beside the one of the stacks.

Owns building that root filesystem, running the browser in it, and driving it by the Chrome DevTools Protocol:
https://chromedevtools.github.io/devtools-protocol/. The network is the host's, so that it reaches servers of loopback.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from observatory.files import locks
from observatory.files.cache import mark_used, shared_or
from observatory.runtime import bubblewrap, rootfs
from tests.support.waiting import until

PACKAGES = ("chromium", "fonts-dejavu-core", "fonts-liberation2")
PROFILE = "/srv"  # the directory of the host, as the browser sees it
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*", f"--user-data-dir={PROFILE}"),
)
ANSWER_S = 120  # generous: a busy machine is slow


def chromium_rootfs(own: Path) -> Path:
    """Return the root filesystem with Chromium, built first where it is missing; `own` is used if none can be shared.

    Its name begins as those of the stacks' root filesystems, so that it is removed as they are when it is not used.
    """
    packages = sorted({*rootfs.SYSTEM_PACKAGES, *PACKAGES})
    key = hashlib.sha256(json.dumps([rootfs.RECIPE_VERSION, rootfs.SUITE, packages]).encode()).hexdigest()[:12]
    directory, _ = shared_or(own)
    built = directory / f"rootfs-chromium-{key}"
    with locks.exclusive(directory / "rootfs.lock") as lock:
        if not (built / "usr/bin/chromium").exists():
            rootfs._build(built, packages, lock, lambda _message, _fraction: None)
    mark_used(built)
    return built


@dataclass
class Page:
    """One open page, through its connection to the browser."""

    socket: aiohttp.ClientWebSocketResponse
    calls: int = 0
    console: list[str] = field(default_factory=list)

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; what the page logs meanwhile is kept in `console`."""
        self.calls += 1
        await self.socket.send_json({"id": self.calls, "method": method, "params": parameters})
        async with asyncio.timeout(ANSWER_S):
            while True:
                message = await self.socket.receive_json()
                self._keep(message)
                if message.get("id") == self.calls:
                    assert "error" not in message, f"{method}: {message['error']}"
                    return dict(message["result"])

    def _keep(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Log.entryAdded":
            entry = message["params"]["entry"]
            self.console.append(f"{entry['level']}: {entry['text']}")
        if message.get("method") == "Runtime.exceptionThrown":
            self.console.append(f"error: {message['params']['exceptionDetails']}")

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        found = await self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true in the page, and return its value."""
        async with asyncio.timeout(ANSWER_S):
            while True:
                with contextlib.suppress(AssertionError):  # between two documents there is no context
                    if value := await self.evaluate(expression):
                        return value
                await asyncio.sleep(0.1)

    async def open(self, url: str) -> None:
        """Open a URL, and wait until a page with a title and without a redirect is complete."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState == 'complete' && !document.querySelector('meta[http-equiv=refresh]')")

    async def look(self, *, dark: bool, width: int, height: int) -> None:
        """Set the colour scheme and the size of the window; below 600 pixels it is a phone."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)

    async def screenshot(self, file: Path, *, whole: bool = False) -> None:
        """Write what the window shows, or the whole page, as PNG."""
        found = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def new_page(address: str) -> AsyncIterator[Page]:
    """Yield a new page of the browser at an address, e.g. 127.0.0.1:41234, with a profile of its own."""
    async with aiohttp.ClientSession() as session:
        browser = (await (await session.get(f"http://{address}/json/version")).json())["webSocketDebuggerUrl"]
        async with session.ws_connect(browser, max_msg_size=0) as socket:
            control = Page(socket)
            context = (await control.call("Target.createBrowserContext"))["browserContextId"]
            target = await control.call("Target.createTarget", url="about:blank", browserContextId=context)
            url = f"ws://{address}/devtools/page/{target['targetId']}"
            async with session.ws_connect(url, max_msg_size=0) as connection:
                page = Page(connection)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.call(f"{domain}.enable")
                yield page
            await control.call("Target.disposeBrowserContext", browserContextId=context)


@contextlib.contextmanager
def chromium(built: Path) -> Iterator[str]:
    """Run the browser until the end of the block; yield the address of its debugger."""
    with tempfile.TemporaryDirectory(prefix="observatory-chromium-") as profile:
        entry = bubblewrap.entry(built, Path(profile))
        command = bubblewrap.command(
            built,
            entry,
            ["/usr/bin/chromium", *OPTIONS, "about:blank"],
            mounts=["--bind", profile, PROFILE, "--setenv", "HOME", PROFILE],
        )
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            port = Path(profile) / "DevToolsActivePort"
            until(lambda: port.exists() and port.read_text().strip(), "Chromium to listen", timeout_s=ANSWER_S)
            yield f"127.0.0.1:{port.read_text().splitlines()[0]}"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
