"""Expressions that several panels share."""

from __future__ import annotations

from monitoring.dashboards.model import STACK, WINDOW

API_REQUESTS = f'storage_http_requests_total{{stack="{STACK}",route=~"/v1/.+"}}'
SERVER_ERRORS = f'storage_http_requests_total{{stack="{STACK}",route=~"/v1/.+",status=~"5.."}}'


def rate(selector: str, *, by: str) -> str:
    """Return the rate of a counter per second, summed by labels."""
    return f"sum by ({by}) (rate({selector}[{WINDOW}]))"


def share(part: str, whole: str, *, by: str) -> str:
    """Return the share of one counter in another: 0 without a part, and no value while the whole stands still."""
    return f"({rate(part, by=by)} or 0 * {rate(whole, by=by)}) / ({rate(whole, by=by)} > 0)"
