"""Atomic writes, locks, abandoned temporary files and disk reserves. No other package does these."""
