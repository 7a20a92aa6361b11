"""Validation errors of documents as one line."""

from pydantic import ValidationError

from observatory.settings.expectations import expectation


def problems(error: ValidationError) -> str:
    """Return each error as `place: what was expected`, for example `blue.weight: is required and not set`."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'document'}: {expectation(each)}" for each in error.errors())
