"""Terminal output: progress and errors on stderr, results on stdout."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.live import Live
from rich.measure import Measurement
from rich.segment import Segment
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from observatory.progress import Phase, Progress

NO_LIMIT = 1_000_000  # columns
MARKS = {
    Phase.DONE: ("✓", "green"),
    Phase.FAILED: ("✗", "red"),
    Phase.WARNED: ("!", "yellow"),
    Phase.UNKNOWN: ("?", "yellow"),
}


class _Stderr(Console):
    """Standard error. Lines are not folded. If its reader closes the pipe, output stops and the command continues."""

    def __init__(self) -> None:
        super().__init__(stderr=True, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Discard further output. rich would exit; a flush at exit would fail with exit code 120."""
        self.quiet = True
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stderr.fileno())  # as in Python's documentation of the module signal, "Note on SIGPIPE"
        os.close(devnull)


class ConsoleReporter:
    """Shows running tasks as spinners on a terminal and finished tasks as lines.

    Without a terminal each event is one line with its time.
    """

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
            seconds = f" {progress.seconds:.1f} s" if progress.seconds >= 0.05 else ""  # noqa: PLR2004
            mark, style = MARKS[progress.phase]
            coloured = style if progress.phase is not Phase.DONE else ""
            self._print(Text.assemble((mark, style), (f" {progress.task}", coloured), (seconds, "dim")))
            return
        if progress.phase is Phase.STARTED and not self._console.is_terminal:
            self._print(Text(f"… {progress.task}"))
        self._running[progress.task] = progress.detail

    def _print(self, line: Text) -> None:
        """Print a line; in a log it begins with the time."""
        if not self._console.is_terminal:
            line = Text(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} ") + line
        self._console.print(line)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 1))
        for name, detail in list(self._running.items()):
            table.add_row(self._spinner, Text(name), Text(detail, style="dim"))
        return table


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str | Text, ...]]) -> Table:
    """Return a table. Cells that are strings are printed literally, without markup."""
    result = Table(title=title, title_justify="left", title_style="bold", header_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        result.add_column(column, overflow="fold", min_width=_longest_word([column, *(row[number] for row in rows)]))
    for row in rows:
        result.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return result


def _longest_word(cells: Sequence[str | Text]) -> int:
    """Return the width, in columns, below which a word of the cells would be folded."""
    return max(cell_len(word) for cell in cells for word in (str(cell).split() or [""]))


def print_result(renderable: RenderableType) -> None:
    """Print the result of the command on stdout.

    A terminal's width folds lines between words; an identifier or a path is never folded. Without a terminal, lines
    have no limit.
    """
    console = Console(file=sys.stdout, highlight=False)
    if console.is_terminal:
        console.width = _uncut_width(console, renderable)
        console.print(renderable)
        return
    console.width = NO_LIMIT
    with console.capture() as captured:
        console.print(renderable)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def _uncut_width(console: Console, renderable: RenderableType) -> int:
    """Return the width from the console's on in which no word is folded and no column is cut off.

    rich's minimum is too small for a table: it shrinks wide columns below it, and then cuts the last ones off.
    """
    unlimited = console.options.update(max_width=NO_LIMIT)
    width = max(console.width, Measurement.get(console, unlimited, renderable).minimum)
    while True:
        lines = Segment.split_lines(console.render(renderable, console.options.update(max_width=width)))
        widest = max((Segment.get_line_length(line) for line in lines), default=0)
        if widest <= width:
            return width
        width = widest


def print_notice(renderable: RenderableType) -> None:
    """Print on stderr what the user needs before an answer or beside the result."""
    _Stderr().print(renderable)


def show_live(view: Callable[[], RenderableType]) -> None:
    """Show a full-screen view, refreshed every second, until the user interrupts."""
    console = Console(highlight=False)
    with contextlib.suppress(KeyboardInterrupt), Live(screen=True, auto_refresh=False, console=console) as live:
        while True:
            live.update(fitted(view(), console), refresh=True)
            time.sleep(1)


def fitted(renderable: RenderableType, console: Console) -> Text:
    """Return what fills the console's screen at most: long lines are folded, and lines that do not fit are counted."""
    wide = Console(
        file=io.StringIO(),
        force_terminal=True,
        width=_uncut_width(console, renderable),
        highlight=False,
    )
    with wide.capture() as captured:
        wide.print(renderable)
    lines = [
        part
        for line in captured.get().splitlines()
        for part in _without_end(Text.from_ansi(line)).wrap(console, console.width, overflow="fold") or [Text()]
    ]
    if len(lines) > console.height:
        hidden = len(lines) - console.height + 1
        lines = [*lines[: console.height - 1], Text(f"{hidden} more lines: enlarge the terminal", style="bold")]
    return Text("\n").join(lines)


def _without_end(line: Text) -> Text:
    line.rstrip()
    return line


def print_error(message: str) -> None:
    """Print an error on stderr. A closed stderr is ignored."""
    with contextlib.suppress(OSError):
        _Stderr().print(Text(f"error: {message}", style="red"))
