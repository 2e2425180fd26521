"""What the fork server imports, in the surroundings that a small script is best run in: one thread, no downloads."""

import importlib
import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
for variable in [name for name in os.environ if name.upper().startswith("EMG_")]:
    del os.environ[variable]

for script in ("Preprocessing", "main", "tools.evaluate", "tools.predict", "tools.simulate"):
    importlib.import_module(script)
