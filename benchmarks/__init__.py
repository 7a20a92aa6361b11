"""Benchmarks of the project's targets; `make bench` runs them all and writes docs/benchmarks*.md."""
