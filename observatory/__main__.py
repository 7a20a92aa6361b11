"""`observatory` and `python -m observatory`."""

import gc
import os
import sys

from observatory.errors import INTERRUPTED

OTHERS_WRITE = 0o022  # never in what a command makes: others could replace a release or a document that it reads again


def main() -> None:
    """Run the command. An interrupt while it is being imported ends it with a message, not with a traceback."""
    _open_standard_streams()
    os.umask(os.umask(0) | OTHERS_WRITE)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # a look for some reads the list of every package
    gc.disable()  # an import leaves no garbage, and looking for it takes a quarter of the time
    try:
        from observatory.cli import load_commands  # noqa: PLC0415 - takes most of a second
        from observatory.cli import main as run  # noqa: PLC0415

        load_commands(sys.argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted before anything was begun\n")
        sys.exit(INTERRUPTED)
    gc.freeze()  # what was imported stays
    gc.enable()
    run()


def _open_standard_streams() -> None:
    """Open those that the caller has closed: they are None, and the next open file would get their number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - as long as the process


if __name__ == "__main__":
    main()
