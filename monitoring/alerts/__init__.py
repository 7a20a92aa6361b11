"""Defines the alerts, one module for each subject; `monitoring.registry` joins them."""
