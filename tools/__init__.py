"""Tools around the experiment; each runs as `python -m tools.NAME`."""
