"""`observatory` and `python -m observatory`."""

import os
import sys

from observatory.errors import INTERRUPTED


def main() -> None:
    """Run the command. An interrupt while it is being imported ends it with a message, not with a traceback."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # a look for some reads the list of every package
    try:
        from observatory.cli import main as run  # noqa: PLC0415 - takes most of a second
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted before anything was begun\n")
        sys.exit(INTERRUPTED)
    run()


if __name__ == "__main__":
    main()
