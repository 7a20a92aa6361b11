"""The alerts, one module for each category."""
