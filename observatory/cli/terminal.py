"""Terminal output: progress and errors on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from observatory.progress import Phase, Progress

MARKS = {Phase.DONE: "[green]✓[/]", Phase.FAILED: "[red]✗[/]", Phase.WARNED: "[yellow]![/]"}


class _Stderr(Console):
    """Standard error. If its reader closes the pipe, output stops and the command continues."""

    def __init__(self, *, soft_wrap: bool = False) -> None:
        super().__init__(stderr=True, highlight=False, soft_wrap=soft_wrap)

    def on_broken_pipe(self) -> None:
        """Discard further output. rich would exit; a flush at exit would fail with exit code 120."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stderr.fileno())  # as in Python's documentation of the module signal, "Note on SIGPIPE"
        os.close(devnull)


class ConsoleReporter:
    """Shows running tasks as spinners on a terminal and finished tasks as lines; without a terminal, lines only."""

    def __init__(self) -> None:
        self._console = _Stderr()
        self._running: dict[str, str] = {}
        self._spinner = Spinner("dots")
        self._live = Live(console=self._console, transient=True, get_renderable=self._table, refresh_per_second=8)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show one progress report. Thread-safe. A closed stderr is ignored."""
        with contextlib.suppress(OSError):
            self._show(progress)

    def _show(self, progress: Progress) -> None:
        if progress.phase in MARKS:
            self._running.pop(progress.task, None)
            seconds = f" [dim]{progress.seconds:.1f} s[/]" if progress.seconds >= 0.05 else ""  # noqa: PLR2004
            self._console.print(
                Text.from_markup(MARKS[progress.phase]) + Text(f" {progress.task}") + Text.from_markup(seconds)
            )
            return
        if progress.phase is Phase.STARTED and not self._console.is_terminal:
            self._console.print(f"… {progress.task}")
        self._running[progress.task] = progress.detail

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, detail in list(self._running.items()):
            table.add_row(self._spinner, Text(name), Text(detail, style="dim"))
        return table


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str | Text, ...]]) -> Table:
    """Return a table. Cells that are strings are printed literally, without markup."""
    result = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return result


def print_result(renderable: object) -> None:
    """Print the result of the command on stdout."""
    Console(file=sys.stdout, highlight=False).print(renderable)


def show_live(view: Callable[[], RenderableType]) -> None:
    """Show a full-screen view, refreshed every second, until the user interrupts."""
    with contextlib.suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(view(), refresh=True)
            time.sleep(1)


def print_error(message: str) -> None:
    """Print an error on stderr. A closed stderr is ignored."""
    with contextlib.suppress(OSError):
        _Stderr(soft_wrap=True).print(Text(f"error: {message}", style="red"))
