"""What the fork server imports: one thread, no hub, no proxy, none of the user's settings; the scripts; this folder."""

import gc
import importlib
import os
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
for variable in [name for name in os.environ if name.upper().startswith("EMG_")]:
    del os.environ[variable]

SCRIPTS = ("Preprocessing", "main", "emg_gpt2.live.predicting", "emg_gpt2.study.evaluation", "emg_gpt2.study.simulator")
OWN = [f"stress.{path.stem}" for path in sorted(Path(__file__).parent.glob("[a-z]*.py"))]
for module in (*SCRIPTS, *OWN):
    importlib.import_module(module)
gc.collect()
gc.freeze()  # a collection in a child would copy the memory of all modules
