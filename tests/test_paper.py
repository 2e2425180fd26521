"""Tables for a paper: worked out by hand from changed copies of a run, with hostile names, read by a real LaTeX."""

import csv
import io
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import call

from emg_gpt2.base.errors import EMGError
from emg_gpt2.results.paper import METRICS, paper_tables

HOSTILE = r"100 %_& \input{x} $a$ #~^{ <b>|*`"
IN_LATEX = (
    r"100 \%\_\& \textbackslash{}input\{x\} \$a\$ \#\textasciitilde{}\textasciicircum{}\{ "
    r"\textless{}b\textgreater{}\textbar{}*`"
)
FIGURES = {("a", 0): 0.8, ("a", 1): 0.9, ("b", 0): 0.7, ("b", 1): 0.7}  # balanced accuracy: row, seed


def changed(folder: Path, to: Path, env: dict, **metrics) -> Path:
    """A copy of a run with other figures in metrics.json and other settings in env.json."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("last", "tensorboard"))
    for name, more in (("metrics.json", metrics), ("env.json", env)):
        content = json.loads((to / name).read_text(encoding="utf-8")) | more
        (to / name).write_text(json.dumps(content), encoding="utf-8")
    return to


@pytest.fixture(scope="module")
def four(trained, tmp_path_factory) -> list[Path]:
    """Two learning rates with two seeds each; a note that is hostile to LaTeX."""
    place, rates = tmp_path_factory.mktemp("paper"), {"a": 0.01, "b": 0.02}
    figures = {"accuracy": 0.5, "macro_f1": 0.25, "data_note": HOSTILE}
    return [
        changed(trained, place / f"{row}{seed}", {"LR": rates[row], "SEED": seed}, balanced_accuracy=one, **figures)
        for (row, seed), one in FIGURES.items()
    ]


def table(form: str, *folders: Path) -> str:
    done = call("emg_gpt2.commands.report", "--format", form, *folders)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_runs_that_differ_in_seed_share_a_row_of_latex(four):
    """Mean of 0.8 and 0.9: 0.850; deviation √((0.05² + 0.05²) / 1) = 0.071."""
    lines = table("latex", *four).splitlines()
    assert r"LR 0.01 & 2 & \textbf{0.850 $\pm$ 0.071} & 0.500 $\pm$ 0.000 & 0.250 $\pm$ 0.000 \\" in lines
    assert r"LR 0.02 & 2 & 0.700 $\pm$ 0.000 & 0.500 $\pm$ 0.000 & 0.250 $\pm$ 0.000 \\" in lines
    assert [line for line in lines if line in (r"\toprule", r"\midrule", r"\bottomrule")] != []
    (caption,) = [line for line in lines if line.startswith(r"\caption")]
    assert IN_LATEX in caption
    assert r"Mean $\pm$ standard deviation over seeds 0, 1." in caption
    assert r"Weights before training: random. Chance: 0.125. Best in bold." in caption


def test_the_same_as_csv_and_markdown(four):
    first, second = csv.DictReader(io.StringIO(table("csv", *four)))
    assert (first["run"], first["runs"], float(first["balanced_accuracy"])) == ("LR 0.01", "2", pytest.approx(0.85))
    assert float(first["balanced_accuracy_std"]) == pytest.approx(0.005**0.5)
    assert (float(second["balanced_accuracy_std"]), second["note"]) == (0, HOSTILE)
    lines = table("markdown", *four).splitlines()
    assert "| LR 0.01 | 2 | **0.850 ± 0.071** | 0.500 ± 0.000 | 0.250 ± 0.000 |" in lines
    assert r"100 %\_& \\input{x} $a$ \#~^{ \<b\>\|\*\`" in lines[0]


def test_single_runs_have_their_folders_names_and_no_deviation(four, trained, tmp_path):
    named = changed(
        trained, tmp_path / HOSTILE.replace("/", ""), {"LR": 0.03}, balanced_accuracy=0.1, data_note=HOSTILE
    )
    text = table("latex", four[0], named)
    assert r"a0 & \textbf{0.800} & 0.500 & 0.250 \\" in text
    assert f"{IN_LATEX} & 0.100 &" in text
    assert "deviation" not in text


def test_nothing_is_best_where_the_rows_cannot_be_compared(four, trained, tmp_path):
    other = changed(trained, tmp_path / "other", {}, weights="pretrained", data_note=HOSTILE)
    text = table("latex", four[0], other)
    assert "textbf" not in text
    assert "The weights differ" in text
    fold = changed(trained, tmp_path / "fold", {"FOLD": 1, "LR": 0.02}, data_note=HOSTILE)
    text = table("latex", *four[:2], fold)
    assert "textbf" not in text
    assert "The folds differ" in text


def evaluation(folder: Path, rows: list[dict], people: int = 2) -> Path:
    folder.mkdir()
    found = {"title": "Protocol A: a day → another", "origin": "gpt2, random weights.", "chance": 0.125}
    figures = {name: {"mean": 0.5, "std": 0.1, "std_over_seeds": 0.2} for name in ("balanced_accuracy", "accuracy")}
    found |= {"overall": figures | {"macro_f1": {"mean": 0.5, "std": None, "std_over_seeds": None}}}
    found |= {"per_subject": dict.fromkeys(map(str, range(people))), "baselines": rows}
    (folder / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    return folder


def method(features: str, classifier: str, level: str, figure: float) -> dict:
    figures = {name: {"mean": figure, "std": 0.01} for name in METRICS}
    return {"features": features, "classifier": classifier, "level": level} | figures


def test_an_evaluation_has_a_row_for_the_first_method_of_every_level(tmp_path):
    """evaluation.json has the best one on validation first."""
    methods = {("ours", "", "unlabelled"): 0.8, ("RMS", "LDA", "unlabelled"): 0.9, ("RMS", "SVM", "unlabelled"): 0.95}
    methods[("RMS", "SVM", "inductive")] = 0.7
    rows = [method(*name, figure) for name, figure in methods.items()]
    text = table("latex", evaluation(tmp_path / "one", rows), evaluation(tmp_path / "two", [], people=1))
    cell = r"\textbf{0.900 $\pm$ 0.010}"
    assert rf"LDA on RMS & unlabelled & {cell} & {cell} & {cell} \\" in text
    assert r"this project & unlabelled & 0.800 $\pm$ 0.010 &" in text
    assert r"SVM on RMS & inductive & 0.700 $\pm$ 0.010 &" in text
    assert "SVM on RMS & unlabelled" not in text
    assert r"a day $\rightarrow$ another. Mean $\pm$ standard deviation over 2 people." in text
    assert r"this project &  & 0.500 $\pm$ 0.200 & 0.500 $\pm$ 0.200 & 0.500 \\" in text  # one person: over seeds
    assert "standard deviation over seeds." in text


def test_runs_and_evaluations_are_not_mixed(four, tmp_path):
    with pytest.raises(EMGError, match=r"one is an evaluation, and others are runs"):
        paper_tables([evaluation(tmp_path / "one", []), four[0]], "latex")
    (tmp_path / "one" / "evaluation.json").write_text("{}")
    done = call("emg_gpt2.commands.report", "--format", "csv", tmp_path / "one")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "files are damaged" in done.stderr


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not here: apt-get install texlive-latex-base")
def test_latex_reads_it(four, tmp_path):
    done = call("emg_gpt2.commands.report", "--format", "latex", *four, "--out", tmp_path / "table.tex")
    assert done.stdout == f"{tmp_path / 'table.tex'}\n"
    lines = [r"\documentclass{article}", r"\usepackage{booktabs}", r"\begin{document}", r"\input{table}"]
    (tmp_path / "paper.tex").write_text("\n".join([*lines, r"\end{document}"]))
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "paper.tex"]
    made = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout[-2000:]
    assert "Missing character" not in made.stdout
