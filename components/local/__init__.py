"""The `local` platform: components made of real processes on one machine."""
