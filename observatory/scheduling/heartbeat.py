"""The end of monitoring is noticed outside of it: the watcher reads the time of the last heartbeat, and sends notices.

Prometheus' alert Watchdog always fires. Alertmanager sends it to the stack's receiver every 10 to 20 s, and the
receiver touches a file. If Prometheus, Alertmanager or the receiver has stopped, the file grows old. The notices go
to Slack, PagerDuty and email of the setting `receivers`, and through the channels of `notifications` that are not set
there; without them to the stack's own receiver. `observatory status` and `observatory verify` report it too.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from observatory.nodes import Paths
from observatory.nodes.programs.alert_receiver import HEARTBEAT_FILE, SILENCE_SECONDS
from observatory.runtime import Sandbox

if TYPE_CHECKING:
    from observatory.notifications import Channel
    from observatory.notifications.messages import Kind

LOG = logging.getLogger("observatory.watcher")
START_SECONDS = 90.0  # from the watcher's start, for the first heartbeat of daemons that start too
REPEAT_SECONDS = 1800.0  # between two notices while monitoring stays down
FILE = f"{Paths().data}/alerts/{HEARTBEAT_FILE}"  # of the stack's alert receiver


def heartbeat_age(sandbox: Sandbox) -> float | None:
    """Return how long ago the last heartbeat was, in seconds; None before the first one."""
    try:
        return max(0.0, time.time() - sandbox.host_path(FILE).stat().st_mtime)
    except OSError:
        return None


def stack_channels(root: Path, stack: str) -> list[Channel]:
    """Return the channels of a local stack's notices about its monitoring."""
    # The watcher always runs and seldom sends a notice.
    from observatory.engines.stack_settings import load_settings  # noqa: PLC0415
    from observatory.nodes.alertmanager import receiver_url  # noqa: PLC0415
    from observatory.nodes.tls import MONITORING, authority_file, combined_file  # noqa: PLC0415
    from observatory.notifications.configured import alert_channels, receiver_channels  # noqa: PLC0415
    from observatory.security.client_certificate import ClientCertificate  # noqa: PLC0415
    from observatory.workspace import Workspace  # noqa: PLC0415

    workspace = Workspace(root=root, stack=stack)
    settings, host = load_settings(workspace), workspace.sandbox.host_path
    client = ClientCertificate(
        certificate=host(combined_file(Paths(), MONITORING)), authority=host(authority_file(Paths()))
    )
    own = receiver_channels(receiver_url(settings), client)
    return list((own | alert_channels(settings, workspace.root)).values())


@dataclass(kw_only=True)
class HeartbeatWatch:
    """Sends a notice when the heartbeat of monitoring ends, and one when it returns.

    A file in the stack's home records that it has ended, so that a new watcher does not send the notice again. Where it
    cannot be written, as on a full disk, the notice is sent all the same. A change of the machine's time or its
    suspension is no silence: only the first look at a file compares its time with the machine's; later ones measure by
    a clock that neither moves.

    Attributes:
        sandbox: of the stack.
        stack: its name.
        channels: returns the channels; called for each notice, because their settings may have changed.
        started: when the watcher started, by the steady clock.
        now: the machine's time.
        steady: the steady clock.
    """

    sandbox: Sandbox
    stack: str
    channels: Callable[[], Sequence[Channel]]
    started: float = field(default_factory=time.monotonic)
    now: Callable[[], float] = time.time
    steady: Callable[[], float] = time.monotonic
    _seen: tuple[float, float] | None = field(default=None, init=False)  # time of the file, and of its first sight
    _reported: float | None = field(default=None, init=False)  # when the end was last reported, by the steady clock

    def __post_init__(self) -> None:
        """Continue where the last watcher ended."""
        with contextlib.suppress(OSError):
            self._reported = self.steady() - max(0.0, self.now() - self._marker.stat().st_mtime)

    @classmethod
    def of(cls, sandbox: Sandbox, root: Path, stack: str) -> HeartbeatWatch:
        """Return the watch of a stack with the channels of its settings."""
        return cls(sandbox=sandbox, stack=stack, channels=lambda: stack_channels(root, stack))

    def check(self) -> None:
        """Compare the time of the last heartbeat with the limit."""
        silent, reported = self._silent_seconds(), self._reported
        if silent is not None and (reported is None or self.steady() - reported > REPEAT_SECONDS):
            self._send("monitoring-down", f"no heartbeat for {silent:.0f} s: see `observatory status`")
        elif silent is None and reported is not None and self._beats():
            self._send("monitoring-up", "the heartbeat has returned")

    @property
    def _marker(self) -> Path:
        return self.sandbox.home / "lock" / "monitoring-down"

    def _record(self, kind: Kind) -> None:
        """Record a notice that is about to be sent; what stops monitoring, as a full disk, may prevent the file."""
        down = kind == "monitoring-down"
        self._reported = self.steady() if down else None
        try:
            if down:
                self._marker.touch(mode=0o600)
            else:
                self._marker.unlink(missing_ok=True)
        except OSError as error:
            LOG.error("the next watcher may send this notice again: %s", error)  # noqa: TRY400

    def _last(self) -> float:
        try:
            return self.sandbox.host_path(FILE).stat().st_mtime
        except OSError:
            return 0.0

    def _age(self) -> float:
        """Return how long ago the last heartbeat was."""
        last = self._last()
        if self._seen is None:
            self._seen = last, self.steady() - abs(self.now() - last)
        elif last not in (0.0, self._seen[0]):
            self._seen = last, self.steady()
        return self.steady() - self._seen[1]

    def _beats(self) -> bool:
        return self._age() <= SILENCE_SECONDS

    def _silent_seconds(self) -> float | None:
        """Return how long no heartbeat came, None within the limit."""
        up = self.steady() - self.started
        if self._beats() or up <= START_SECONDS:
            return None
        return min(self._age(), up)

    def _send(self, kind: Kind, text: str) -> None:
        """Send a notice through every channel, each on a thread of its own, and log what was not delivered."""
        from observatory.notifications import Notice, Notifier  # noqa: PLC0415 - as in `stack_channels`
        from observatory.notifications.messages import TITLES  # noqa: PLC0415
        from observatory.notifications.notifier import RETRY_SECONDS  # noqa: PLC0415

        LOG.error("%s: %s", TITLES[kind], text)
        notifier = Notifier(self.stack, self.channels(), self._not_delivered)
        self._record(kind)
        notifier.send(
            Notice(
                kind=kind,
                stack=self.stack,
                deployment="monitoring",
                title=f"{self.stack}: {TITLES[kind]}",
                text=text,
                actor="watcher",
                at=datetime.fromtimestamp(self.now(), UTC).isoformat(timespec="milliseconds"),
                details={"reason": text},
            )
        )
        notifier.close(RETRY_SECONDS)

    @staticmethod
    def _not_delivered(event: str, **details: object) -> None:
        LOG.error("%s: %s", event, details)
