"""Small programs that units run on a machine's own Python: each file is whole by itself, on the standard library."""
