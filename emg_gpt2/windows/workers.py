"""Who does the work of Preprocessing.py: processes of this machine, or the workers of a Dask cluster."""

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from joblib import Parallel, parallel_config

from emg_gpt2.base.errors import EMGError
from emg_gpt2.settings import Settings

PACKAGE = Path(__file__).parents[1]
CLUSTER_PATIENCE = 10  # s, for the scheduler's answer, and for a worker where there is none
ORPHAN_PATIENCE = 20  # s without work, after which the processes of a killed run end


@contextmanager
def open_workers(settings: Settings, places: set[Path]) -> Iterator[Callable]:
    """A function that runs `delayed` calls side by side, WORKERS at a time or on CLUSTER: their results, in order.

    `places` are the folders that the workers of a cluster must see. Raises EMGError where a cluster cannot be used,
    and the executor's BrokenExecutor where a process was killed.
    """
    if settings.CLUSTER:
        with _cluster(settings.CLUSTER, places), parallel_config(backend="dask"):
            yield Parallel(return_as="generator")
    else:
        patience = {"idle_worker_timeout": ORPHAN_PATIENCE} if settings.WORKERS > 1 else {}
        with Parallel(n_jobs=settings.WORKERS, return_as="generator", **patience) as parallel:
            yield partial(_undisturbed, parallel)


def _undisturbed(parallel: Parallel, tasks: Iterable) -> Iterator:
    """The results, from processes that inherit from here to ignore Ctrl-C, and so end without a traceback."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return parallel(tasks)
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _cluster(address: str, places: set[Path]) -> Iterator[None]:
    try:
        from distributed import Client, KilledWorker  # an optional dependency
        from distributed.client import CancelledError
        from distributed.comm import CommClosedError
    except ImportError:
        raise EMGError(f"CLUSTER = {address}: a package is missing; pip install distributed") from None
    for name in [name for name in logging.root.manager.loggerDict if name.startswith("distributed")]:
        logging.getLogger(name).setLevel(logging.CRITICAL)  # their tracebacks become the sentences below
    try:
        client = Client(address, timeout=CLUSTER_PATIENCE)
    except (OSError, ValueError) as error:
        raise EMGError(
            f"CLUSTER = {address}: no scheduler answers ({error}); start it or correct the address"
        ) from None
    try:
        with client, _watched(client):
            _prepare(client, address, places)
            yield
    except (CommClosedError, KilledWorker, CancelledError, TimeoutError) as error:
        raise EMGError(
            f"CLUSTER = {address}: scheduler or workers went away ({type(error).__name__}); start them, then run the "
            "same command again, which goes on from here"
        ) from None


def _prepare(client, address: str, places: set[Path]) -> None:
    """Wait for workers, send them this package, and check that they see the folders that they read and write."""
    patience = time.monotonic() + CLUSTER_PATIENCE
    while sum(client.ncores().values()) < 2:  # with a single one joblib would do the work in this process
        if time.monotonic() > patience:
            raise EMGError(f"CLUSTER = {address}: it has fewer than two worker threads; start more workers")
        time.sleep(0.2)
    _send_package(client)
    for place in sorted(places):
        for worker, seen in client.run(os.path.exists, str(place)).items():
            if not seen:
                raise EMGError(
                    f"CLUSTER = {address}: {worker} does not see {place}; share that folder with all workers"
                )


def _send_package(client) -> None:
    """As a zip, from which the workers import it; they forget the version that an earlier run may have sent."""

    def forget(name: str) -> None:
        import sys

        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            del sys.modules[module]

    client.run(forget, PACKAGE.name)
    with tempfile.TemporaryDirectory(prefix=f"{PACKAGE.name}-") as folder:
        base = Path(folder, Path(folder).name)  # another name each time: Python remembers what a zip of a name holds
        client.upload_file(shutil.make_archive(str(base), "zip", PACKAGE.parent, PACKAGE.name))


@contextmanager
def _watched(client) -> Iterator[None]:
    """Close the client when there is no worker for CLUSTER_PATIENCE: the scheduler would wait for another for ever."""
    done = threading.Event()

    def watch() -> None:
        last_seen = time.monotonic()
        while not done.wait(1):
            if client.scheduler_info()["workers"]:
                last_seen = time.monotonic()
            elif time.monotonic() - last_seen > CLUSTER_PATIENCE:
                client.close()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
