"""What every script promises: help in groups, one sentence for what is wrong, Ctrl-C at any moment, plain output."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run

import Preprocessing
from emg_gpt2.base import interrupts
from emg_gpt2.base.command_line import Parser, sections_of
from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands.evaluate import EvaluationSettings
from emg_gpt2.settings import PreprocessingSettings, Settings, read_settings
from EMG_utils import time_to_go

SCRIPTS = [["main.py"], ["Preprocessing.py"], ["-m", "emg_gpt2", "evaluate"], ["-m", "emg_gpt2", "simulate"]]
SECTIONS = ["data", "preprocessing", "download", "split", "model", "training", "validation loop", "results"]
ESCAPES = re.compile(r"[\x1b\r]")
on_posix = pytest.mark.skipif(os.name != "posix", reason="pseudo terminals and signals as POSIX has them")


def help_of(settings_class, monkeypatch, capsys) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        read_settings(settings_class, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


# ---- help -----------------------------------------------------------------------------------------------------


def test_every_setting_of_env_has_a_section():
    sections = sections_of(Settings)
    assert sections.keys() == Settings.model_fields.keys()
    assert [title.partition(" (")[0] for title in dict.fromkeys(sections.values())] == SECTIONS


def test_help_shows_the_settings_in_sections_with_units_and_defaults(monkeypatch, capsys):
    text = help_of(PreprocessingSettings, monkeypatch, capsys)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  --window-ms X         Length of a window (ms); 0 < x ≤ 10000. (default: 250)" in lines
    assert [line.partition(" (")[0].rstrip(":") for line in lines if re.match(r"[a-z].*:$", line)] == [
        *("positional arguments", "options"),
        *SECTIONS,
    ]
    assert lines[0].endswith(" [options] RAW [RAW ...]")
    written = re.sub(r"\s+", " ", text)
    assert "--band-hz X,X Pass band (Hz), low,high;" in written
    assert "(default: 20,700)" in written
    assert "--freeze, --no-freeze Freeze all below" in written
    assert "--run-dir PATH Folder of the results" in written
    assert "--tokens {covariance,power,bands,raw},… Tokens" in written


def test_help_begins_with_the_options_of_the_tool(monkeypatch, capsys):
    text = help_of(EvaluationSettings, monkeypatch, capsys)
    own = [
        text.index(f"\n  {flag}") for flag in ("--seeds N,…", "--protocol {none,A,B,C,D}", "--out PATH", "--baselines")
    ]
    assert own == sorted(own)
    assert own[-1] < text.index("\ndata:\n") < text.index("\n  --data-location PATH")


def test_help_shows_what_a_tool_overrides(monkeypatch, capsys):
    class Wider(Settings):
        """A tool with another default."""

        BLOCKS: int = 12
        """Number of blocks."""

    text = re.sub(r"\s+", " ", help_of(Wider, monkeypatch, capsys))
    assert "model: --model-name" in text
    assert text.index("model: ") < text.index("--blocks N Number of blocks. (default: 12)") < text.index("training: ")


# ---- errors and the time left ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--rnig", "3"], "--rnig 3: there is no such flag; did you mean --ring?; --help lists the flags"),
        (["--rin", "3"], "--rin 3: there is no such flag; did you mean --ring?; --help lists the flags"),
        (["--xyz"], "--xyz: there is no such flag; --help lists the flags"),
        (["there"], "there: not expected here; --help lists the flags"),
        (["--ring"], "argument --ring: expected one argument; --help lists the flags"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_of_every_parser(argv, sentence):
    parser = Parser()
    parser.add_argument("--ring", type=int)
    with pytest.raises(EMGError) as of_tools:
        parser.parse_args(argv)
    with pytest.raises(EMGError) as of_settings:
        read_settings(Settings, argv)
    assert str(of_tools.value) == str(of_settings.value) == sentence


def test_the_time_to_go_is_that_of_what_is_done():
    assert time_to_go(0.2, 0, 9) == ""
    assert time_to_go(60, 2, 5) == ", about 0:02:30 to go"


# ---- Ctrl-C and closed pipes ----------------------------------------------------------------------------------


@on_posix
@pytest.mark.parametrize("script", [SCRIPTS[0], SCRIPTS[2]], ids=["main", "evaluate"])
@pytest.mark.parametrize(
    ("number", "seconds"), [(signal.SIGINT, 0.3), (signal.SIGINT, 1.0), (signal.SIGINT, 2.0), (signal.SIGTERM, 1.0)]
)
def test_ctrl_c_and_sigterm_during_the_imports_are_one_sentence(script, number, seconds, tmp_path):
    """torch alone takes more than a second; a script that is quicker has not begun either: it lacks its windows."""
    command = [sys.executable, *script, "--data-location", str(tmp_path / "none.parquet")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(number)
        said, complained = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert "interrupted; nothing was begun, run the same command again" in complained
    assert complained.count("\n") == 1


@on_posix
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_after_the_work_comes_too_late_to_be_a_traceback(number):
    """The first one: where the process's own end hangs, a second one ends it."""
    ended = "def main(): pass\n"
    ended += f"import interrupts, signal; interrupts.start_script(); main(); signal.raise_signal(signal.{number})\n"
    done = run("-c", ended + "print('on')")
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")
    done = run("-c", ended + f"signal.raise_signal(signal.{number}); print('on')")
    assert (done.returncode, done.stdout, done.stderr) == (-getattr(signal, number), "", "")


def test_ctrl_c_while_the_table_is_printed_is_one_sentence(monkeypatch, capsys, tiny_raw, tmp_path):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Preprocessing, "print_table", interrupted)
    monkeypatch.setattr(sys, "argv", ["", str(tiny_raw), "--data-location", str(tmp_path / "windows.parquet")])
    assert Preprocessing.main() == 130
    assert capsys.readouterr().err.startswith("Preprocessing.py: interrupted; run the same command again")


@on_posix
def test_a_script_in_the_background_goes_on_ignoring_ctrl_c(tmp_path):
    """As a shell starts it with &: SIGINT is ignored from the beginning."""
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    started = (
        f"{ignoring}; import EMG_start; interrupts.start_script(); signal.raise_signal(signal.SIGINT); print('on')"
    )
    assert run("-c", started).stdout == "on\n"


@on_posix
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script[-1])
def test_help_into_a_closed_pipe_leaves_no_traceback(script):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, *script, "--help"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@on_posix
def test_a_tool_whose_reader_goes_away_leaves_no_traceback(tmp_path):
    read, write = os.pipe()
    os.close(read)
    small = ["--repetitions", "1", "--channels", "2", "--sampling-rate", "500", "--trajectories", "sequential"]
    command = [sys.executable, "-m", "emg_gpt2", "simulate", tmp_path, *small]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


# ---- terminals and pipes --------------------------------------------------------------------------------------


def in_terminal(*command: str, **environment: str) -> str:
    """What a script writes to a pseudo terminal of 100 columns."""
    outer, inner = os.openpty()
    variables = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "OMP_NUM_THREADS": "1"} | environment
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables, stdout=inner, stderr=inner) as process:
        os.close(inner)
        said = b""
        try:
            while piece := os.read(outer, 1 << 16):
                said += piece
        except OSError:  # Linux says so that the other end is closed
            pass
    os.close(outer)
    assert process.returncode == 0, said.decode()
    return said.decode()


@on_posix
def test_output_is_plain_where_there_is_no_terminal_and_colours_can_be_refused(tiny_raw, tmp_path):
    """Preprocessing.py shows its bar and the time left on a terminal alone."""
    recording = str(next(tiny_raw.glob("*.hdf5")))
    command = ["Preprocessing.py", recording, "--data-location"]
    piped = run(*command, tmp_path / "piped.parquet")
    assert piped.returncode == 0
    assert not ESCAPES.search(piped.stdout + piped.stderr)
    shown = in_terminal(*command, str(tmp_path / "shown.parquet"))
    assert re.search(r"\x1b\[3\d|\x1b\[38;", shown), "a bar has colours"
    assert re.search(r"\d/1.*-?:--|\d:\d\d:\d\d", shown), "a bar says how many are done, and the time left"
    refused = in_terminal(*command, str(tmp_path / "refused.parquet"), NO_COLOR="1")
    assert not re.search(r"\x1b\[(3|4|9)\d|\x1b\[38;", refused)


def test_an_interrupt_that_a_library_took_for_its_own_error_is_one_all_the_same(monkeypatch):
    monkeypatch.setattr(interrupts, "_asked", [])
    with pytest.raises(ValueError, match="shape"), interrupts.working():
        raise ValueError("the shape is wrong")
    monkeypatch.setattr(interrupts, "_asked", [signal.SIGTERM])
    with pytest.raises(KeyboardInterrupt), interrupts.working():
        raise ValueError("the shape is wrong")
