"""Write the report of a run anew, one page that compares several runs, or their table for a paper.

    python -m emg_gpt2 report runs/2026-01-01_12-00-00                  # its report.html
    python -m emg_gpt2 report runs/FIRST runs/SECOND [--out FILE]       # runs/comparison.html
    python -m emg_gpt2 report --format latex runs/FIRST runs/SECOND     # prints a table; csv and markdown too

Exit status: 0 done, 1 something that the user can put right, 130 interrupted.
"""

import argparse
from pathlib import Path

from emg_gpt2.base.command_line import Parser, program
from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.base.interrupts import importing
from emg_gpt2.base.text import in_short

GROUP = "study"

FORMATS = ("html", "latex", "csv", "markdown")
DAMAGE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)  # of untrusted files


def main(argv: list[str] | None = None) -> int:
    """Write the page that the command line names; returns the exit status."""
    return exit_status("report", lambda: write(parse(argv)))


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    about = "Write the report of a run anew, one page that compares several runs, or their table for a paper."
    parser = Parser(prog=program("report"), description=about)
    which = "folders of finished runs; for a table also of evaluations"
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=which)
    form = "html: a page; else a table of the runs, where fold and seed give mean and deviation (default: html)"
    parser.add_argument("--format", choices=FORMATS, default="html", help=form)
    where = "file of the result (report.html in the run's folder; runs/comparison.html for several; a table is printed)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=where)
    return parser.parse_args(argv)


def write(args: argparse.Namespace) -> None:
    """Write a run's report, the comparison of several, or a table; prints it, or where it is. Raises EMGError."""
    with importing():  # seconds
        from jinja2 import TemplateError

        from emg_gpt2.base.files import replace_file
        from emg_gpt2.results.comparison import write_comparison
        from emg_gpt2.results.paper import paper_tables
        from emg_gpt2.results.report import write_report
    try:
        if args.format != "html":
            text = paper_tables(args.runs, args.format)
            if args.out:
                replace_file(args.out, lambda path: path.write_text(text, encoding="utf-8", newline="\n"))
            print(args.out or text, end="\n" if args.out else "")
        elif len(args.runs) == 1:
            print(write_report(args.runs[0], out=args.out))
        else:
            print(write_comparison(args.runs, args.out or Path("runs/comparison.html")))
    except EMGError:
        raise
    except (*DAMAGE, TemplateError) as error:
        runs = ", ".join(map(str, args.runs))
        raise EMGError(f"{runs}: files are damaged, or not of one run ({in_short(error)}); run main.py anew") from None
