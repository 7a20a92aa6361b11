"""Runs a Pulumi program in this process, as the CLI's Python launcher does in a process of its own.

Sets up a context for the SDK's settings, the working directory, the program's standard streams and its modules, and
restores them afterwards. Follows sdk/python/cmd/pulumi-language-python-exec in Pulumi's source.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import io
import runpy
import sys
import threading
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import pulumi
import pulumi.runtime

from observatory.engines.embedded.errors import EngineError, ProgramError
from observatory.engines.embedded.events import Emitter, in_program
from observatory.engines.embedded.values import Properties, is_secret, reveal

# Threads of the program for each resource worked on at once, as in the CLI's launcher; they wait for steps.
_THREADS_PER_STEP = 4
_LIBRARY = Path(__file__).parent


def run_program(main: Path, settings: pulumi.runtime.Settings, config: Properties, emit: Emitter) -> None:
    """Run the program to its end.

    Args:
        main: The program's file or directory.
        settings: The SDK's settings for this run.
        config: The configuration, secrets wrapped.
        emit: Receives what the program prints.

    Raises:
        ProgramError: the program failed; the message is its traceback, from its own first frame on.
    """
    directory = main if main.is_dir() else main.parent

    def program() -> None:
        runpy.run_path(str(main), run_name="__main__")

    def run() -> None:
        in_program.set(True)
        pulumi.runtime.set_all_config(reveal(config), [key for key, value in config.items() if is_secret(value)])
        pulumi.runtime.configure(settings)
        with asyncio.Runner() as runner, ThreadPoolExecutor((settings.parallel or 1) * _THREADS_PER_STEP) as executor:
            runner.get_loop().set_default_executor(executor)
            # The SDK leaves futures unawaited when a program fails; the failure itself is reported.
            runner.get_loop().set_exception_handler(lambda *_: None)
            runner.run(pulumi.runtime.run_in_stack(program))

    with _process_environment(directory, emit):
        try:
            contextvars.copy_context().run(run)
        except EngineError:
            raise
        except pulumi.RunError as error:
            raise ProgramError(str(error)) from error
        except (Exception, SystemExit) as error:
            raise ProgramError(f"the program failed:\n{_own_traceback(error, directory)}") from error


@contextlib.contextmanager
def _process_environment(directory: Path, emit: Emitter) -> Iterator[None]:
    """Set the directory, arguments and output as in a process of the program's own, and unload its modules afterwards.

    The next run therefore imports the modules' current source. Packages that the caller has imported stay loaded.
    Garbage collection is off meanwhile, and afterwards ignores the objects that exist then, until the next run: with
    the thousands of classes of a cloud package it would take a quarter of a plan's time.
    """
    arguments, before, was_collecting = sys.argv, set(sys.modules), gc.isenabled()
    out, err = _ProgramStream(sys.stdout, emit), _ProgramStream(sys.stderr, emit)
    try:
        gc.unfreeze()
        gc.disable()
        sys.argv = [str(directory)]
        with contextlib.chdir(directory), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            yield
    finally:
        gc.freeze()
        gc.enable() if was_collecting else gc.disable()
        sys.argv = arguments
        out.end_line()
        err.end_line()
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None) or ""
            is_shared = name.partition(".")[0] in before
            if not is_shared and Path(file).is_relative_to(directory) and "site-packages" not in file:
                del sys.modules[name]


class _ProgramStream(io.TextIOBase):
    """Turns what the program prints into messages; other output of this process passes through."""

    def __init__(self, original: TextIO, emit: Emitter) -> None:
        self._original, self._emit = original, emit
        self._line = threading.local()

    def write(self, text: str) -> int:
        if not in_program.get():
            return self._original.write(text)
        *lines, self._line.rest = (getattr(self._line, "rest", "") + text).split("\n")
        for line in lines:
            self._emit.message(line)
        return len(text)

    def end_line(self) -> None:
        """Emit the last line if it has no line end."""
        if rest := getattr(self._line, "rest", ""):
            self._emit.message(rest)

    def flush(self) -> None:
        self._original.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


def _own_traceback(error: BaseException, directory: Path) -> str:
    """Return the error's traceback from the program's first frame on; the error alone if it is in none of them."""
    frame = error.__traceback__
    while frame is not None and not _is_of_program(Path(frame.tb_frame.f_code.co_filename), directory):
        frame = frame.tb_next
    return "".join(traceback.format_exception(type(error), error, frame, chain=False)).rstrip()


def _is_of_program(file: Path, directory: Path) -> bool:
    """Return whether a file is the program's and not this library's or an installed one, which may be beside it."""
    return file.is_relative_to(directory) and "site-packages" not in file.parts and not file.is_relative_to(_LIBRARY)
