"""Issues certificates, signs and verifies releases, and names the acting user."""
