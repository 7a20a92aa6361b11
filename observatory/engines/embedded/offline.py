"""Whether the program is planned from itself and its settings alone, and so may ask nobody.

Set by whoever plans so, around the run of the program in the same process; heeded by what would ask.
"""

from __future__ import annotations

from contextvars import ContextVar

offline_plan: ContextVar[bool] = ContextVar("offline_plan", default=False)
