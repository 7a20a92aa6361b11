"""The database as operators see it: create it, bring its schema up, say where it stands. psycopg only, never Pulumi.

The names stand in `__init__.pyi`; each is imported when it is first asked for, so that only
whoever uses the database waits for its driver.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
