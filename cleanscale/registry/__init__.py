"""Runs as registered models: register, promote, roll back, list (`cleanscale register --help`)."""
