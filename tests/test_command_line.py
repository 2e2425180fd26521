"""What every script and command promises: help in groups, one sentence for what is wrong, Ctrl-C at any moment."""

import importlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run
from rich.console import Console

import emg_gpt2.__main__ as front
from emg_gpt2 import __version__
from emg_gpt2.base import log
from emg_gpt2.base.command_line import Parser
from emg_gpt2.base.errors import EMGError, exit_status
from emg_gpt2.base.text import in_short, one_line, printable, some_lines
from emg_gpt2.settings import PreprocessingSettings, Role, Settings, read_settings
from emg_gpt2.study.options import EvaluationSettings

SCRIPTS = [["main.py"], ["Preprocessing.py"], ["-m", "emg_gpt2"]]
SECTIONS = [role.value for role in Role]
ESCAPES = re.compile(r"[\x1b\r]")
on_posix = pytest.mark.skipif(os.name != "posix", reason="pseudo terminals and signals as POSIX has them")


def help_of(settings_class, monkeypatch, capsys) -> str:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stop:
        read_settings(settings_class, ["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


# ---- help of the settings -------------------------------------------------------------------------------------


def test_help_shows_the_settings_by_role_with_units_and_defaults(monkeypatch, capsys):
    text = help_of(PreprocessingSettings, monkeypatch, capsys)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert "  --window-ms X         Length of a window (ms); 0 < x ≤ 10000. (default: 250)" in lines
    titles = [line.removesuffix(":") for line in lines if re.match(r"[a-z].*:$", line) and not line.startswith("usage")]
    assert titles == ["positional arguments", "options", *SECTIONS]
    assert lines[0].endswith(" [options] FOLDER [FOLDER ...]")
    written = re.sub(r"\s+", " ", text)
    assert "--band-hz X,X Pass band (Hz), low,high;" in written
    assert "(default: 20,700)" in written
    assert "--freeze, --no-freeze Freeze all below" in written
    assert "--run-dir PATH Folder of the results" in written
    assert "--tokens TEXT,… Tokens" in written


def test_help_begins_with_the_options_of_the_command(monkeypatch, capsys):
    text = help_of(EvaluationSettings, monkeypatch, capsys)
    own = ("--seeds N,…", "--protocol {none,A,B,C,D}", "--out PATH", "--baselines")
    places = [text.index(f"\n  {flag}") for flag in own]
    assert places == sorted(places)
    assert places[-1] < text.index(f"\n{SECTIONS[0]}:\n") < text.index("\n  --data-location PATH")


def test_help_shows_what_a_command_overrides(monkeypatch, capsys):
    class Wider(Settings):
        """A command with another default."""

        BLOCKS: int = 12
        """Number of blocks."""

    text = re.sub(r"\s+", " ", help_of(Wider, monkeypatch, capsys))
    blocks = text.index("--blocks N Number of blocks. (default: 12)")
    assert text.index(" model: --") < blocks < text.index(" training: ")


# ---- python -m emg_gpt2 ---------------------------------------------------------------------------------------


@pytest.fixture
def call_front(monkeypatch, capsys):
    """`python -m emg_gpt2 …` in this process, which keeps its own handlers of signals."""
    monkeypatch.setattr(front, "start_script", lambda: None)

    def call(*argv: str, called: str = "emg-gpt2") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [called, *argv])
        return front.main(), *capsys.readouterr()

    return call


def test_help_lists_every_command_once_in_its_group(call_front):
    status, text, _ = call_front("--help")
    assert (status, text) == call_front()[:2]
    titles = [line.removesuffix(":") for line in text.splitlines() if line and line[0] != " "]
    assert titles[1:] == list(front.GROUPS)
    listed = re.findall(r"^  (\w+) +(\S.*)$", text, re.MULTILINE)
    files = (ROOT / "emg_gpt2" / "commands").glob("*.py")
    assert sorted(name for name, _ in listed) == sorted(file.stem for file in files if file.stem != "__init__")


def test_version_and_an_unknown_command(call_front):
    assert call_front("--version") == (0, f"emg-gpt2 {__version__}\n", "")
    said = "emg-gpt2: there is no command evaluat (did you mean evaluate?); --help lists them\n"
    assert call_front("evaluat", "--help") == (1, "", said)


def test_it_answers_as_it_was_called(call_front):
    said = "python -m emg_gpt2: there is no command inspekt (did you mean inspect?); --help lists them\n"
    assert call_front("inspekt", called=front.__file__) == (1, "", said)


@pytest.mark.parametrize("name", front.commands())
def test_every_command_has_help_and_refuses_an_unknown_flag(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["emg-gpt2"])
    main = importlib.import_module(f"emg_gpt2.commands.{name}").main
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    said = capsys.readouterr().out
    assert (stop.value.code, said.partition(" [")[0]) == (0, f"usage: emg-gpt2 {name}")
    assert main(["here", "--no-such-flag"]) == 1
    said = capsys.readouterr()
    assert re.fullmatch(rf"{name}: .*--help lists the flags\n", said.err)
    assert said.out == ""


def test_help_and_a_wrong_flag_import_nothing_heavy():
    """Every command in one process of its own; one takes less than 2 s."""
    code = f"""
import contextlib, importlib, io, sys, time
for name in {front.commands()}:
    began = time.process_time()
    main = importlib.import_module("emg_gpt2.commands." + name).main
    silent = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        with contextlib.suppress(SystemExit):
            main(["--help"])
        assert main(["here", "--no-such-flag"]) == 1, name
    assert not {{"torch", "pandas", "scipy", "matplotlib"}} & sys.modules.keys(), name
    assert time.process_time() - began < 2, name
"""
    done = run("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


WITH_HELP = [(script, flag) for script in ("main.py", "Preprocessing.py") for flag in ("--help", "--no-such-flag")]


@pytest.mark.parametrize(
    ("script", "flag"), [*WITH_HELP, ("-m benchmarks train", "--no-such-flag"), ("-m stress", "--no-such-flag")]
)
def test_help_and_a_wrong_flag_of_a_script_import_nothing_heavy(script, flag):
    done = run("-X", "importtime", *script.split(), flag)
    assert done.returncode == (flag != "--help")
    assert re.search(r"\| +emg_gpt2.base.command_line$", done.stderr, re.MULTILINE)
    assert not re.search(r"\| +(torch|pandas|scipy)$", done.stderr, re.MULTILINE)
    assert flag == "--help" or "--no-such-flag: there is no such flag; --help lists the flags" in done.stderr


def test_a_slip_in_a_flag_is_named_before_what_is_missing():
    parser = Parser()
    parser.add_argument("run")
    parser.add_argument("--ring")
    with pytest.raises(EMGError, match=r"^--rnig: there is no such flag \(did you mean --ring\?\)"):
        parser.parse_args(["--rnig=3"])
    with pytest.raises(EMGError, match=r"^nothing was given for run: write .* run;"):
        parser.parse_args(["--ring", "3"])


def test_a_windows_file_without_its_flag_is_told_which():
    with pytest.raises(EMGError, match=r"^a\.parquet: not expected here \(did you mean --data-location a\.parquet\?"):
        read_settings(Settings, ["a.parquet"])


@pytest.mark.parametrize("argv", [["--device", "cuda"], ["--device=cuda"], ["--gpu"]])
def test_who_asks_for_a_gpu_hears_that_it_is_taken_by_itself(argv):
    with pytest.raises(EMGError, match=r"there is no such flag, and none is needed: main\.py takes a GPU by itself"):
        read_settings(Settings, argv)


# ---- errors ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--rnig", "3"], "--rnig 3: there is no such flag (did you mean --ring?); --help lists the flags"),
        (["--rin", "3"], "--rin 3: there is no such flag (did you mean --ring?); --help lists the flags"),
        (["--xyz"], "--xyz: there is no such flag; --help lists the flags"),
        (["there"], "there: not expected here; --help lists the flags"),
        (["--ring"], "argument --ring: expected one argument; --help lists the flags"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_of_every_parser(argv, sentence):
    parser = Parser()
    parser.add_argument("--ring", type=int)
    with pytest.raises(EMGError) as of_commands:
        parser.parse_args(argv)
    with pytest.raises(EMGError) as of_settings:
        read_settings(Settings, argv)
    assert str(of_commands.value) == str(of_settings.value) == sentence


def test_an_error_of_the_system_is_told_without_its_number(tmp_path):
    with pytest.raises(FileNotFoundError) as found:
        (tmp_path / "none").read_text()
    assert in_short(found.value) == f"No such file or directory: '{tmp_path / 'none'}'"


def raising(error: BaseException, *notes: str):
    """A function that raises the error with the notes."""
    for note in notes:
        error.add_note(note)

    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "notes", "status", "sentence"),
    [
        (EMGError("no such file; name another"), [], 1, "no such file; name another"),
        (EMGError("no such file; name another"), ["go on"], 1, "no such file; name another"),
        (KeyboardInterrupt(), [], 130, "interrupted; do it again"),
        (KeyboardInterrupt(), ["go on with --resume run", "start anew"], 130, "interrupted; start anew"),
        (OSError(28, "Full", "a.csv"), [], 1, "a.csv: Full; free or mend the place, then do it again"),
        (OSError("odd"), ["go on"], 1, "a file: odd; free or mend the place, then go on"),
        (MemoryError(), ["go on"], 1, "the memory is full; buy more, then go on"),
    ],
)
def test_an_error_is_a_sentence_and_a_status(error, notes, status, sentence, capsys):
    assert exit_status("x.py", raising(error, *notes), again="do it again", memory="buy more") == status
    assert capsys.readouterr() == ("", f"x.py: {sentence}\n")


def test_the_status_is_that_of_the_work_and_a_closed_pipe_is_quiet(capsys):
    assert [exit_status("x", lambda: None), exit_status("x", lambda: 3)] == [0, 3]
    assert exit_status("x", raising(BrokenPipeError(32, "Broken pipe"))) == 1
    assert capsys.readouterr() == ("", "")
    with pytest.raises(ValueError, match="a mistake of ours"):
        exit_status("x", raising(ValueError("a mistake of ours")))


def test_a_process_that_trains_with_others_says_which_it_is(monkeypatch, capsys):
    for rank, name in (("0", "main.py"), ("1", "main.py (process 1)")):
        monkeypatch.setenv("RANK", rank)
        exit_status("main.py", raising(EMGError("no")))
        assert capsys.readouterr().err == f"{name}: no\n"


def test_text_of_untrusted_files_is_harmless():
    assert printable("a\x1b[2Jb\u202e") == "a?[2Jb?"
    assert in_short(ValueError("first\x07\nsecond")) == "first?"
    assert len(in_short(ValueError("x" * 1000))) == 300
    assert in_short(KeyError()) == "KeyError"
    assert one_line("a µV") == "a µV"
    assert some_lines("a\n\tb") == "a\n\tb"
    for check, text in ((one_line, "a\nb"), (one_line, "\x1b[1m"), (some_lines, "a\r"), (some_lines, "\u2028")):
        with pytest.raises(ValueError, match="has the control character"):
            check(text)


# ---- log and progress -----------------------------------------------------------------------------------------


@pytest.fixture
def handlers():
    """The log of this process as it was."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)


def test_the_log_has_the_projects_messages_and_the_warnings_of_libraries(handlers, tmp_path):
    said = io.StringIO()
    log.start_log(Console(file=said, width=20), tmp_path / "log.txt")
    logging.getLogger("emg_gpt2.any.module").info("a sentence that is wider than the terminal, [bold] and all")
    logging.getLogger("library").info("talk")
    logging.getLogger("library").warning("beware")
    with log.also_logged_to(tmp_path / "part.txt"):
        logging.getLogger("emg_gpt2").info("a part")
    log.start_log(Console(file=said, width=20))  # lets go of the file
    lines = ["a sentence that is wider than the terminal, [bold] and all", "beware", "a part"]
    assert said.getvalue().splitlines() == lines
    stamped = (tmp_path / "log.txt").read_text().splitlines()
    assert [line[20:] for line in stamped] == lines
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d a part\n", (tmp_path / "part.txt").read_text())


@pytest.mark.parametrize(("terminal", "colours"), [(True, True), (True, False), (False, True)])
def test_a_bar_is_shown_on_a_terminal_alone_and_colours_can_be_refused(handlers, terminal, colours, monkeypatch):
    """The name gives way in a narrow terminal; counts, fields and time do not."""
    monkeypatch.setenv("TERM", "xterm-256color")
    said = io.StringIO()
    log.start_log(Console(file=said, force_terminal=terminal, width=80, no_color=not colours))
    with log.progress("loss {task.fields[loss]:.2f}") as bar:
        bar.add_task("a recording whose name is far too long for one line of this terminal", total=9, loss=0.5)
        bar.update(0, completed=4)
        logging.getLogger("emg_gpt2").info("a line")
    text = said.getvalue()
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "a line" in plain
    assert bool(re.search(r"a recording.*… .*4/9 loss 0.50 0:00:0\d", plain)) == terminal
    assert bool(re.search(r"\x1b\[(3|9)\d|\x1b\[38;", text)) == (terminal and colours)
    assert terminal or not ESCAPES.search(text)


def test_the_time_left_follows_from_all_steps_however_long_each_takes(handlers):
    """Ten minutes for each of the first two of five: half an hour is left; a bar inside stands below."""
    said, clock = io.StringIO(), [0.0]
    console = Console(file=said, force_terminal=True, width=80, get_time=lambda: clock[0])
    log.start_log(console)
    for number in log.track(range(5), "runs"):
        if number == 2:
            with log.progress() as inner:
                inner.add_task("epoch", total=3)
            break
        clock[0] += 600
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.getvalue())
    assert re.search(r"runs .* 2/5 0:30:00", plain)
    assert re.search(r"epoch .* 0/3 -:--:--", plain)


def test_the_time_to_go_is_that_of_what_is_done():
    assert log.time_to_go(0.2, 0, 9) == ""
    assert log.time_to_go(60, 2, 5) == ", about 0:02:30 to go"


# ---- Ctrl-C, SIGTERM and closed pipes -------------------------------------------------------------------------

START = "from emg_gpt2.base import interrupts; from emg_gpt2.base.errors import exit_status; import signal, sys\n"
START += "interrupts.start_script(); hit = lambda *_: signal.raise_signal(signal.{})\n"


def after_signal(code: str, number: str = "SIGTERM") -> tuple[int, str, str]:
    done = run("-c", START.format(number) + code, "command")
    return done.returncode, done.stdout, done.stderr


@on_posix
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_before_the_work_ends_it_with_a_sentence(number):
    begun = "command: interrupted; nothing was begun, run the same command again\n"
    assert after_signal("hit(); print('on')", number) == (130, "", begun)


@on_posix
def test_a_signal_while_the_work_imports_ends_it_with_a_sentence():
    code = "def work():\n with interrupts.importing():\n  hit()\nexit_status('x', work); print('on')"
    assert after_signal(code) == (130, "", "command: interrupted; nothing was begun, run the same command again\n")


@on_posix
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_in_the_work_is_the_status_130(number):
    code = "status = exit_status('x', hit); print(status)"
    assert after_signal(code, number) == (0, "130\n", "x: interrupted; run the same command again\n")


@on_posix
def test_a_signal_that_a_library_turns_into_its_own_error_counts_all_the_same():
    code = """
def work():
    try:
        hit()
    except KeyboardInterrupt:
        raise ValueError("the shape is wrong")
print(exit_status("x", work))
"""
    assert after_signal(code) == (0, "130\n", "x: interrupted; run the same command again\n")


@on_posix
def test_signals_can_wait_for_the_end_of_a_step_but_the_second_acts_at_once():
    code = """
def work():
    with interrupts.deferred_signals() as asked:
        hit()
        print(asked == [signal.SIGTERM])
        hit()
print(exit_status("x", work))
"""
    assert after_signal(code) == (0, "True\n130\n", "x: interrupted; run the same command again\n")


@on_posix
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_after_the_work_comes_too_late_and_a_second_one_ends_a_process_that_hangs(number):
    code = "exit_status('x', lambda: 0); hit(); print('on', flush=True); hit(); print('still on')"
    assert after_signal(code, number) == (-getattr(signal, number), "on\n", "")


@on_posix
def test_a_script_in_the_background_goes_on_ignoring_ctrl_c():
    """As a shell starts it with &: SIGINT is ignored from the beginning."""
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = run("-c", ignoring + START.format("SIGINT") + "hit(); print('on')")
    assert (done.returncode, done.stdout) == (0, "on\n")


@on_posix
@pytest.mark.parametrize("script", [SCRIPTS[0], [*SCRIPTS[2], "evaluate"]], ids=["main", "evaluate"])
@pytest.mark.parametrize(
    ("number", "seconds"),
    [
        pytest.param(signal.SIGINT, 0.3, marks=pytest.mark.nightly),
        (signal.SIGINT, 1.5),
        pytest.param(signal.SIGINT, 2.0, marks=pytest.mark.nightly),
        pytest.param(signal.SIGTERM, 1.0, marks=pytest.mark.nightly),
    ],
)
def test_signals_during_the_imports_are_one_sentence(script, number, seconds, tmp_path):
    """torch alone takes more than a second."""
    command = [sys.executable, *script, "--data-location", str(tmp_path / "none.parquet")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(seconds)
        process.send_signal(number)
        said, complained = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "")
    assert re.search("interrupted; .*run the same command again", complained)
    assert complained.count("\n") == 1


def closed_pipe() -> int:
    """The writing end of a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    return write


@on_posix
@pytest.mark.parametrize("script", [*SCRIPTS, [*SCRIPTS[2], "evaluate"]], ids=lambda script: script[-1])
def test_help_into_a_closed_pipe_leaves_no_traceback(script):
    write = closed_pipe()
    command = [sys.executable, *script, "--help"]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(write)
    assert (done.returncode in (0, 1), done.stderr) == (True, "")


@on_posix
@pytest.mark.nightly
def test_a_command_whose_reader_goes_away_leaves_no_traceback(tmp_path):
    write = closed_pipe()
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
@pytest.mark.nightly
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
