"""README and pages: every link, command, flag, setting, file and Python name in them exists."""

import ast
import importlib
import io
import re
import shlex
from contextlib import redirect_stdout
from functools import cache
from itertools import chain, takewhile
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT

import emg_gpt2
from emg_gpt2.__main__ import commands
from emg_gpt2.base.command_line import flag
from emg_gpt2.settings import NAME_RULE, PreprocessingSettings, Settings, read_settings

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TOUR = ROOT / "docs" / "tour.ipynb"
SCRIPTS = {"main.py": Settings, "Preprocessing.py": PreprocessingSettings}
PROGRAMS = ("python", "emg-gpt2", "make", "torchrun")  # a command in a sentence begins with one of them
BEFORE = re.compile(r"`(python -m tools|EMG_\w+)\.\w+`|`tools/\w+\.py`")  # what the changelog translates
FLAG = re.compile(r"--[a-z][a-z0-9-]*")
OUTSIDE = {"--nproc-per-node", "--nthreads", "--logdir", "--requeue", "--time"}  # torchrun, dask, tensorboard, SLURM
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


@page
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@page
def test_every_command_can_be_given(page):
    for words in commands_in_blocks(page):
        check(words, whole=True)
    for words in commands_in_sentences(page):
        check(words, whole=False)


def test_the_tour_gives_commands_that_exist():
    given, place = [], ROOT / "runs" / "tour"
    known = {"TOUR": place, "ROOT": ROOT, "recording": place / "raw" / "a.zip", "unseen": "a"}
    known["run"] = lambda *words: given.append(["python", *map(str, words)])
    for cell in nbformat.read(TOUR, as_version=4).cells:
        if cell.cell_type == "markdown":
            check_words(cell.source)
        else:
            calls = [line for line in ast.parse(cell.source).body if ast.unparse(line).startswith("run(")]
            exec(compile(ast.Module(calls, []), "tour", "exec"), known)
    assert len(given) == 6
    for words in given:
        check(words, whole=True)


@page
def test_every_flag_setting_and_file_that_a_sentence_names_exists(page):
    check_words(page.read_text(encoding="utf-8"))


@page
def test_python_examples_import_public_names(page):
    for code in blocks(page, "python"):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module == "emg_gpt2":
                assert {alias.name for alias in node.names} <= set(emg_gpt2.__all__)


def test_the_reference_shows_every_public_name():
    reference = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^::: emg_gpt2\.(\w+)$", reference, re.MULTILINE), "__version__"} == set(emg_gpt2.__all__)


def test_the_example_of_the_example_model_runs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    exec(blocks(ROOT / "docs" / "share.md", "python")[0], {})
    assert "idle" in capsys.readouterr().out


def test_the_bibtex_says_what_citation_cff_says():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    (paper,), (text,) = cited["references"], blocks(ROOT / "docs" / "share.md", "bibtex")
    software, article = (
        dict(re.findall(r"^  (\w+) = \{+(.*?)\}+,?$", one, re.MULTILINE)) for one in text.split("\n@article")
    )
    own = {"author": cited["authors"][0]["name"], "year": str(cited["date-released"])[:4]}
    assert software == own | {name: cited[name] for name in ("title", "version", "license")}
    names = [f"{one['family-names']}, {one['given-names']}" for one in paper["authors"]]
    assert article["author"].replace(r"{\'n}", "ń").split(" and ") == names
    assert (article["number"], article["pages"]) == (str(paper["issue"]), paper["start"])
    for name in ("title", "journal", "volume", "year", "doi"):
        assert article[name] == str(paper[name])


def test_the_front_page_fits_on_a_page():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def commands_in_blocks(page: Path) -> list[list[str]]:
    """The words of every command in ```sh blocks."""
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in line.split("&&")]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def commands_in_sentences(page: Path) -> list[list[str]]:
    text = BEFORE.sub("", page.read_text(encoding="utf-8"))
    return [code.split() for code in inline_codes(text) if code.split()[0] in PROGRAMS]


def check(words: list[str], whole: bool) -> None:
    """One command of the project, with all that it needs or not; other programs are not judged."""
    words = list(takewhile(lambda word: word != ">", words))
    if words[:2] == ["torchrun", "--nproc-per-node"]:
        words = ["python", *words[3:]]
    match words:
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
        case ["python" | "python3", "-m", "emg_gpt2", *arguments] | ["emg-gpt2", *arguments]:
            check_command(arguments, whole)
        case ["python" | "python3", "-m", "benchmarks" | "stress" as folder, *arguments]:
            check_arguments(f"{folder}.__main__", arguments, whole)
        case ["python" | "python3", script, *_] if script.startswith("docs/"):
            assert (ROOT / script).is_file(), script
        case ["python" | "python3", script, *arguments] if script.endswith(".py"):
            check_settings(script, arguments)
        case ["python" | "python3", "-m", module, *_]:
            assert module in ("venv", "pytest", "pip", "playwright"), words


def check_command(arguments: list[str], whole: bool) -> None:
    match arguments:
        case [] | ["COMMAND" | "NAME" | "--help" | "--version" | "…", *_]:
            pass
        case [command, *rest]:
            assert command in commands()
            check_arguments(f"emg_gpt2.commands.{command}", rest, whole)


def check_arguments(module: str, arguments: list[str], whole: bool) -> None:
    """Against --help; and, where the module parses its own command line, by that."""
    assert set(FLAG.findall(" ".join(arguments))) <= flags(module), arguments
    parse = getattr(importlib.import_module(module), "parse", None)
    if parse and whole:
        parse(arguments)


def check_settings(script: str, arguments: list[str]) -> None:
    if "--help" not in arguments:
        read_settings(SCRIPTS[script], arguments or (["raw"] if script == "Preprocessing.py" else []))


@cache
def flags(module: str) -> set[str]:
    """All flags that --help of a command lists."""
    said = io.TextIOWrapper(io.BytesIO(), "utf-8")
    with redirect_stdout(said), pytest.raises(SystemExit):
        importlib.import_module(module).main(["--help"])
    said.seek(0)
    return set(FLAG.findall(said.read()))


def check_words(text: str) -> None:
    """What stands in `backticks`: flags, settings, files of this repository, modules."""
    for code in inline_codes(BEFORE.sub("", text)):
        if found := FLAG.match(code):
            assert found[0] in every_flag() | OUTSIDE, code
        if re.fullmatch(r"[A-Z][A-Z_]+( = .*)?", code):
            assert re.search(rf"\b{code.split()[0]}\b", sources()) or (ROOT / code).exists(), code
        if re.match(r"(emg_gpt2|tests|docs|benchmarks|stress|models)/|\w+\.py$", code) and " " not in code:
            assert (ROOT / code).exists() or [*ROOT.glob(f"emg_gpt2/**/{code}")], code
        if re.fullmatch(r"emg_gpt2(\.\w+)+", code):
            assert exists(code), code


@cache
def every_flag() -> set[str]:
    named = {f"emg_gpt2.commands.{name}" for name in commands()} | {"stress.__main__"}
    scripts = {flag(name) for name in PreprocessingSettings.model_fields}
    return {"--version", "--help", "--check", "--strict"} | scripts | set().union(*map(flags, named))


@cache
def sources() -> str:
    files = chain.from_iterable(map(ROOT.glob, ("*.py", "emg_gpt2/**/*.py", "tests/*.py")))
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


def exists(name: str) -> bool:
    module, _, member = name.rpartition(".")
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").exists() or hasattr(importlib.import_module(module), member)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def inline_codes(text: str) -> list[str]:
    """What stands in backticks outside of blocks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_rule_for_names_of_recordings_is_the_same_everywhere(capsys):
    """In docs/data.md, docs/formats.md and --help, but for line breaks and backticks."""
    pages = [(ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("data.md", "formats.md")]
    with pytest.raises(SystemExit):
        read_settings(PreprocessingSettings, ["--help"])
    for text in [*pages, capsys.readouterr().out]:
        assert "".join(NAME_RULE.split()) in "".join(text.replace("`", "").split())
