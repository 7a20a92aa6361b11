"""Operates the storage layer of an LLM-observability product: the library behind the `observatory` command."""

__version__ = "0.2.0"  # as in pyproject.toml
