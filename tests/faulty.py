"""What tests let the process that reads HDF5 files do in place of its work; it imports this module."""

import os
import sys


def crash(path: str):
    os.abort()


def loop(path: str):
    while True:
        pass


def allocate(path: str) -> tuple[list[str], int]:
    return [str(len(bytearray(2 << 30)))], 1


def loaded(path: str) -> tuple[list[str], int]:
    return list(sys.modules), 1
