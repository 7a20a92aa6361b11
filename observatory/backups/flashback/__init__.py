"""Flashback: what a table had at an earlier time, beside what it has now, and putting back rows that are missing."""
