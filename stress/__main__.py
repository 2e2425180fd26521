"""Try to make the pipeline lose something: hostile and damaged files, kills, full disks, odd numbers.

    python -m tools.stress [PROGRAMME ...] [--nightly] [--out DIR] [--seed N]

Without --nightly each programme is tried a little, in some minutes. Exit status: 0 nothing was lost, 1 something was
or could not be tried, 130 interrupted.
"""

import argparse
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emg_gpt2.base.command_line import Parser, with_status
from emg_gpt2.base.files import make_folder, replace_file
from stress.row import Row

PROGRAMMES = {  # modules of this folder → what they try
    "hostile": "recordings and windows files from strangers",
    "hostile_models": "model folders, checkpoints and runs from strangers",
    "fuzz": "damaged files: flipped bits, swapped blocks, cut ends",
    "properties": "windows, splits and decisions on random recordings",
    "faults": "kills, full and read-only disks, files that change",
    "numbers": "odd numbers, shapes and classes",
    "limits": "runs at the same moment, memory",
    "supply": "packages, sources, downloads",
}
HEADER = ("programme", "what was tried", "times", "refused", "right", "lost", "longest", "memory")

Say = Callable[[str], None]


def main(argv: list[str] | None = None) -> int:
    """Run the programmes of the command line; returns the exit status."""
    return with_status("stress", lambda: stress(parse(argv), Console(stderr=True, highlight=False)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    parser = Parser(prog="python -m tools.stress", description="Try to make the pipeline lose something.")
    add = parser.add_argument
    listed = "; ".join(f"{name}: {about}" for name, about in PROGRAMMES.items())
    add("programmes", nargs="*", type=programme, metavar="PROGRAMME", help=f"{listed} (all)")
    add("--nightly", action="store_true", help="as often as the README's table says, which takes an hour")
    add("--seed", type=int, default=0, help="of all that is drawn (%(default)s)")
    add(
        "--out",
        type=Path,
        default=Path("runs/stress"),
        metavar="DIR",
        help="for stress.json and stress.md (%(default)s)",
    )
    return parser.parse_args(argv)


def programme(name: str) -> str:
    """An argparse type."""
    if name not in PROGRAMMES:
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(PROGRAMMES)}")
    return name


def stress(args: argparse.Namespace, console: Console) -> int:
    """Run the programmes one after the other, write the table after each; returns 1 where something was lost."""
    make_folder(args.out)
    rows, began = [], time.monotonic()
    for name in args.programmes or PROGRAMMES:
        with tempfile.TemporaryDirectory(prefix="stress-") as folder:
            for row in rows_of(name)(args.nightly, Path(folder), args.seed, say_with(console, name)):
                rows.append(row)
                console.print(f"{name}: {row.tried}: {row.times} times, {len(row.lost)} lost", markup=False)
                write_results(rows, args, args.out)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for table in (rows, in_all(rows)):
        print_table(table, console)
    print_lost(rows, console)
    print(f"\n{args.out}: stress.json, stress.md ({time.monotonic() - began:.0f} s)")
    return 1 if any(row.lost for row in rows) else 0


def rows_of(name: str) -> Callable[[bool, Path, int, Say], Iterator[Row]]:
    """The function `rows` of a programme: (nightly, a folder of its own, seed, say) → one row after the other."""
    return importlib.import_module(f"stress.{name}").rows


def say_with(console: Console, name: str) -> Say:
    return lambda words: console.print(f"{name}: {words}", markup=False, soft_wrap=True)


def cells(row: Row) -> list[str]:
    longest = f"{row.seconds:.1f} s" if row.seconds else ""
    memory = f"{row.megabytes:.0f} MB" if row.megabytes else ""
    tried = f"{row.tried} ({row.note})" if row.note else row.tried
    return [row.programme, tried, *map(str, (row.times, row.refused, row.right, len(row.lost))), longest, memory]


def print_table(rows: list[Row], console: Console) -> None:
    table = Table(*HEADER, box=None)
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*cells(row))
    console.print(table)
    console.print()


def in_all(rows: list[Row]) -> list[Row]:
    """One row per programme."""
    sums = {}
    for row in rows:
        total = sums.setdefault(row.programme, Row(row.programme, PROGRAMMES[row.programme]))
        total.refused, total.right, total.lost = (
            total.refused + row.refused,
            total.right + row.right,
            total.lost + row.lost,
        )
        total.seconds, total.megabytes = max(total.seconds, row.seconds), max(total.megabytes, row.megabytes)
    return list(sums.values())


def print_lost(rows: list[Row], console: Console) -> None:
    for row in rows:
        for sentence in row.lost:
            console.print(f"lost: {row.tried}: {sentence}", markup=False, soft_wrap=True)


def write_results(rows: list[Row], args: argparse.Namespace, out: Path) -> None:
    """stress.json: every row, with what was lost; stress.md: the tables of docs/stress.md and the README."""
    described = {"nightly": args.nightly, "seed": args.seed, "rows": [row.described() for row in rows]}
    text = json.dumps(described, indent=1, ensure_ascii=False)
    tables = "\n\n".join(map(as_markdown, (in_all(rows), rows)))
    for name, content in (("stress.json", text), ("stress.md", tables)):
        replace_file(out / name, lambda path, content=content: path.write_text(content + "\n", encoding="utf-8"))


def as_markdown(rows: list[Row]) -> str:
    lines = [HEADER, ["---"] * 2 + ["---:"] * 6, *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
