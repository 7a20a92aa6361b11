"""Whether the running program is planned offline.

The engine sets it while it runs the program for ``plan_offline``. A program reads it before it would open a connection,
and uses a placeholder instead.
"""

from __future__ import annotations

from contextvars import ContextVar

offline_plan: ContextVar[bool] = ContextVar("offline_plan", default=False)
