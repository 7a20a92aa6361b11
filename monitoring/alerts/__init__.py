"""The alerts, one module for each subject."""
