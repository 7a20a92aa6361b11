"""Operates the storage layer of an LLM-observability product: the library behind the `observatory` command."""
