"""Validation errors of documents as one line."""

from pydantic import ValidationError


def problems(error: ValidationError) -> str:
    """Return each error as `place: message`, for example `blue.weight: field required`."""
    found = ((".".join(map(str, each["loc"])) or "document", each["msg"]) for each in error.errors())
    return "; ".join(f"{place}: {message[0].lower()}{message[1:]}" for place, message in found)
