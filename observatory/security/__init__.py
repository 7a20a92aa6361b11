"""Certificates, signatures and the acting user."""
