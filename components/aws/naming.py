"""Names and tags. Pulumi derives most names from the logical name; this module names the other resources."""

from __future__ import annotations

import hashlib

from observatory.settings import PROJECT

AUTONAMING_SUFFIX = 8  # characters that Pulumi adds to a logical name: a dash and seven hexadecimal digits
DIGEST = 8  # hexadecimal digits that keep shortened names apart


def physical_name(*parts: str, limit: int) -> str:
    """Return the parts joined by dashes in at most `limit` characters; a longer name is cut and ends in its digest."""
    whole = "-".join(parts)
    if len(whole) <= limit:
        return whole
    digest = hashlib.sha256(whole.encode()).hexdigest()[:DIGEST]
    return f"{whole[: limit - DIGEST - 1].rstrip('-')}-{digest}"


def tags(stack: str, name: str, **more: str) -> dict[str, str]:
    """Return the tags of a resource, such as `Name=llm-observatory-production-database-data`."""
    own = {"Project": PROJECT, "Stack": stack, "ManagedBy": "pulumi"}
    return {**own, "Name": physical_name(PROJECT, stack, name, limit=256), **more}
