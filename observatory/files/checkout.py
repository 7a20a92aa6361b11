"""The path of a checkout: which ones the programs of a stack cannot use.

`scripts/venv.sh` refuses the same, before any of this runs.
"""

from __future__ import annotations

import re
from pathlib import Path

from observatory.errors import WRONG_USAGE, ObservatoryError

# PATH ends a directory at a colon; libpq, a host at a comma; setuptools expands $NAME and {NAME}; the launchers of uv
# are scripts of sh and of Python, which read a backslash in two ways; name tables and .pth files are lines.
UNUSABLE = re.compile(r"[:,{}\\\x00-\x1f\x7f]|\$(?=[A-Za-z_])")


class CheckoutPathError(ObservatoryError):
    """Programs of the stack cannot use the checkout's path; nothing was changed."""

    exit_code = WRONG_USAGE


def check_path(root: Path) -> None:
    """Check that every program of a stack can use the path of its checkout.

    Raises:
        CheckoutPathError: the path has a character that one of them reads as something else.
    """
    text = str(root)
    remedy = "Move or rename the directory: mv OLD NEW. Then run the command again."
    if found := UNUSABLE.search(text):
        raise CheckoutPathError(
            f"the path of the checkout, {text!r}, contains {found[0]!r}, which programs of the stack read as something"
            " else",
            remedy=remedy,
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise CheckoutPathError(f"the path of the checkout, {text!r}, is not UTF-8", remedy=remedy) from error
