"""The Pulumi CLI as an engine, through its Automation API."""
