"""Small programs that units run on a machine's own Python. Each is one file and needs only the standard library."""
