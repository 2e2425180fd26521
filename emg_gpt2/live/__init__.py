"""A model in use: sources of signal, decisions, judging, timelines."""
