"""What bad versions do wrong. `tests.support.releases` puts this package into their artifacts.

A fault is a class around the application (`requests`, `data`) or the whole process (`process`), installed before the
service starts. `launch.FAULTS` lists all of them. They import nothing besides the service and the standard library.
"""
