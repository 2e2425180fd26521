"""Try to make the pipeline lose something: hostile and damaged files, kills, full disks, odd numbers.

    python -m stress [PROGRAMME ...] [--nightly] [--out DIR] [--seed N]

Without --nightly each programme is tried a little, in some minutes. A programme is a module of this folder with a
function `rows`; the first line of its docstring says what it tries.

Exit status: 0 nothing was lost, 1 something was, or a programme could not begin, 130 interrupted.
"""

import argparse
import ast
import importlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from emg_gpt2.base.command_line import Parser
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.files import make_folder, replace_file
from stress.process import CannotForkError
from stress.row import Row

HEADER = ("programme", "what was tried", "times", "refused", "right", "lost", "longest", "memory")


def main(argv: list[str] | None = None) -> int:
    """Run the programmes of the command line; returns the exit status."""
    return exit_status("stress", lambda: run(parse(argv), Console(stderr=True, highlight=False)))


def programmes() -> dict[str, str]:
    """Name → what it tries, of every programme, read without importing it."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "rows" for node in tree.body):
            about = ast.get_docstring(tree).partition("\n")[0].rstrip(".")
            found[path.stem] = about[0].lower() + about[1:]
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    parser = Parser(prog="python -m stress", description="Try to make the pipeline lose something.")
    add, listed = parser.add_argument, "; ".join(f"{name}: {about}" for name, about in programmes().items())
    add("programmes", nargs="*", type=known_programme, metavar="PROGRAMME", help=f"{listed} (all)")
    add("--nightly", action="store_true", help="as often as the table in the documentation says, which takes an hour")
    add("--seed", type=int, default=0, help="of all that is drawn at random (%(default)s)")
    where = "for stress.json and stress.md (%(default)s)"
    add("--out", type=Path, default=Path("runs/stress"), metavar="DIR", help=where)
    return parser.parse_args(argv)


def known_programme(name: str) -> str:
    """An argparse type."""
    if name not in programmes():
        raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(programmes())}")
    return name


def run(args: argparse.Namespace, console: Console) -> int:
    """Run the programmes one after the other, write the table after each row; returns 1 where something was lost."""
    make_folder(args.out)
    rows, began = [], time.monotonic()
    for name in args.programmes or programmes():
        log = lambda words, name=name: console.print(f"{name}: {words}", markup=False, soft_wrap=True)  # noqa: E731
        for row in rows_of(name, args, log):
            rows.append(row)
            log(f"{row.tried}: {row.times} times, {len(row.lost)} lost")
            write_results(rows, args)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    for table in (rows, sums(rows)):
        print_table(table, console)
    for row in rows:
        for sentence in row.lost:
            console.print(f"lost: {row.tried}: {sentence}", markup=False, soft_wrap=True)
    print(f"\n{args.out}: stress.json, stress.md ({time.monotonic() - began:.0f} s)")
    return 1 if any(row.lost for row in rows) else 0


def rows_of(name: str, args: argparse.Namespace, log: Callable[[str], None]) -> Iterator[Row]:
    """The rows of a programme, one after the other; one with a note where the system cannot fork."""
    with tempfile.TemporaryDirectory(prefix="stress-") as folder:
        try:
            yield from importlib.import_module(f"stress.{name}").rows(args.nightly, Path(folder), args.seed, log)
        except CannotForkError as error:
            yield Row(name, programmes()[name], note=f"not tried: {error}")


# ---- tables -----------------------------------------------------------------------------------------------------


def sums(rows: list[Row]) -> list[Row]:
    """One row per programme."""
    found, about = {}, programmes()
    for row in rows:
        found.setdefault(row.programme, Row(row.programme, about[row.programme])).include(row)
    return list(found.values())


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


def write_results(rows: list[Row], args: argparse.Namespace) -> None:
    """stress.json: every row, with what was lost; stress.md: the tables of the documentation."""
    content = {"nightly": args.nightly, "seed": args.seed, "rows": [row.as_json() for row in rows]}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    tables = "\n\n".join(map(as_markdown, (sums(rows), rows))) + "\n"
    replace_file(args.out / "stress.json", lambda path: path.write_text(text, encoding="utf-8"))
    replace_file(args.out / "stress.md", lambda path: path.write_text(tables, encoding="utf-8"))


def as_markdown(rows: list[Row]) -> str:
    lines = [HEADER, ["---"] * 2 + ["---:"] * 6, *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
