"""Typed stack settings: what `Pulumi.<stack>.yaml` says a stack is."""
