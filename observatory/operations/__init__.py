"""The public library: every operation of the command `observatory`, for CI to call without a command line.

Operations return results and raise `ObservatoryError`; they print nothing, and report progress to a `Reporter`:

    workspace = open_workspace("staging")
    deploy_application(workspace, version="v0.2.0", strategy="canary", report=print)

The names are listed in `__init__.pyi`. Each is imported at its first use, so that an emergency rollback does not load
what brings a stack up.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
