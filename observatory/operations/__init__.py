"""The public library: what `observatory` does, for CI to call without a command line.

Wires settings, engine, runtime and service build together. Nothing here prints; progress goes to a `Reporter`.
The names stand in `__init__.pyi`; each is imported when it is first asked for, so that an emergency rollback does not
wait for what brings a stack up.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
