"""One thin module per command of `python -m emg_gpt2`."""
