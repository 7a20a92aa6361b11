"""Atomic writes, locks and abandoned temporary files. No other package does these."""
