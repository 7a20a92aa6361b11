"""The components of the `local` stack: real processes on one machine. `stack` declares them."""
