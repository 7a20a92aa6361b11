"""Measurements of what the project promises; `make bench` runs them all and writes docs/benchmarks.md."""
