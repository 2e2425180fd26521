"""Full and read-only disks: small file systems in memory, which only the processes that try them see."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from emg_gpt2.base.errors import EMGError
from stress.process import Ended, run
from stress.row import Row
from stress.snapshot import snapshot
from stress.work import Files, Undisturbed, Work, flaw_after, flaw_at_the_end, hidden_files

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000  # of sched.h
ROOM = 64 << 20  # bytes of a disk with space
HOURS = 4 * 3600.0  # s for all tries of a script

Outcomes = list[tuple[str, float]]  # and seconds


def in_own_mounts(
    tries: Callable, row: Row, work: Work, expected: Undisturbed, place: Path, shares: list[float]
) -> Row:
    """Add what `tries` returns in a process with mounts of its own; a note where there can be none."""
    ended = run(_with_own_mounts, tries, work, expected, place, shares, memory=0, patience=HOURS)
    if ended.refused:
        row.note = f"not tried: {ended.last_line}"
    elif ended.status:
        row.add(f"trying it failed: {ended.outcome}")
    for outcome, seconds in ended.value or []:
        row.add(outcome, seconds)
    return row


def _with_own_mounts(tries: Callable[..., Outcomes], *given) -> Outcomes:
    try:
        own_mounts()
    except (OSError, subprocess.CalledProcessError) as error:
        raise EMGError(f"no file system can be mounted here ({error}); try it on Linux") from None
    return tries(*given)


def own_mounts() -> None:
    """Let this process, root or not, mount what others do not see; raises OSError."""
    if sys.platform != "linux":
        raise OSError("only Linux has mounts of a process's own")
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    if user or libc.unshare(CLONE_NEWNS):
        if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    mount("--make-rprivate", "/")


def mount(*arguments) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


def make_disk(work: Work, place: Path, with_older: bool) -> Files:
    """Mount a new disk on `place`; returns its files."""
    place.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", place)
    return snapshot(work.prepare(place, with_older))


# ---- what is tried ----------------------------------------------------------------------------------------------


def full(work: Work, expected: Undisturbed, place: Path, shares: list[float]) -> Outcomes:
    """On a disk with room for each share of what the script writes; then again with more room."""
    found = []
    for number, share in enumerate(shares):
        before = make_disk(work, place, with_older=number % 2 == 0)
        used = os.statvfs(place)
        room = (used.f_blocks - used.f_bfree) * used.f_frsize + int(share * expected.size)
        mount("-o", f"remount,size={max(room, 4096)}", place)
        ended = work.start(place).end()
        wrong = flaw_on_disk(ended, place, before, expected)
        mount("-o", f"remount,size={ROOM}", place)
        if ended.status and not wrong and (later := flaw_at_the_end(work, expected, place)):
            wrong = f"with more room again, {later}"
        subprocess.run(["umount", "--lazy", place], check=True)
        words = f"with room for {share:.0%} of {expected.size / 1e3:.0f} kB: {wrong}"
        found.append((words if wrong else ended.outcome, ended.seconds))
    return found


def read_only(work: Work, expected: Undisturbed, place: Path, shares: list[float]) -> Outcomes:
    """On a mount that nothing can be written to; modes would not stop root."""
    before = make_disk(work, place, with_older=True)
    mount("-o", "remount,ro", place)
    ended = work.start(place).end()
    wrong = flaw_on_disk(ended, place, before, expected) or ("" if ended.status else "it claims to have written")
    subprocess.run(["umount", "--lazy", place], check=True)
    return [(wrong or ended.outcome, ended.seconds)]


def flaw_on_disk(ended: Ended, place: Path, before: Files, expected: Undisturbed) -> str:
    """What is wrong after a start on a disk that was too small or read-only."""
    if ended.outcome not in ("refused", "right"):
        return ended.outcome
    hidden = [name for name in hidden_files(snapshot(place)) if ".parts/" not in name]
    return f"{', '.join(hidden)} stays behind" if hidden else flaw_after(place, before, expected.files)
