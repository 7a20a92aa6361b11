"""The reference storage service: stores and returns LLM traces, metrics and logs over HTTP, in TimescaleDB.

Owns the HTTP contract of a storage service. Does not own the schema (`migrations/`), deployment or load balancing.
Imports are relative, so the package runs both from a checkout and from the top of an artifact's path.
"""
