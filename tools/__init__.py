"""Tools around the experiment; each runs as `python -m tools.NAME`."""

import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for the tool, whose imports take seconds
    from EMG_start import start_script

    start_script()
