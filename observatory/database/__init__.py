"""The database: creates it, deploys its schema, plans, verifies and reports. Uses psycopg, never Pulumi.

`__init__.pyi` lists the public names. Each one is imported on first use, so a program that only imports the package
does not load psycopg.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
