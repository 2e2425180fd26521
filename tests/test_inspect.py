"""inspect on recordings whose faults, RMS and spectra are known: what it names, what it draws, how it ends."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, SHARED, STEM, cut, needs_shared, raw_table, run, write_raw
from matplotlib.colors import to_hex
from matplotlib.image import AxesImage

from emg_gpt2.base.errors import EMGError
from emg_gpt2.commands import inspect
from emg_gpt2.raw import quality
from emg_gpt2.raw.putemg import read_recording
from emg_gpt2.raw.recording import Recording
from emg_gpt2.results.figures import ORANGE, plt
from emg_gpt2.results.lanes import envelope
from emg_gpt2.settings import Settings, read_settings
from emg_gpt2.study import inspecting
from emg_gpt2.windows.cut import filter_and_resample

OTHER_DAY = "emg_gestures-03-sequential-2018-06-14-11-10-52-120"


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def noise(channels: int = 8, samples: int = 10_000, counts: float = 20.0) -> np.ndarray:
    """(N, C) whole counts of white noise."""
    return np.rint(np.random.default_rng(5).normal(0, counts, (samples, channels)))


def rest_then_fist(samples: int = 10_000) -> np.ndarray:
    return np.arange(samples) >= samples // 2


def look(folder, emg: np.ndarray, *flags: str, labels: np.ndarray | None = None, ring: int = 8):
    """Findings as the terminal prints them, and the figure, of a recording at 1000 Hz whose clock begins at 5 s."""
    labels = rest_then_fist(len(emg)) if labels is None else labels
    path = write_raw(raw_table(emg, labels), folder / f"{STEM}.hdf5")
    report, figure = inspecting.inspect_recording(path, read_settings(Settings, [*flags]), ring)
    return [str(finding) for finding in report.findings], figure


def windows_of(folder, recordings: dict[str, np.ndarray], *flags: str, labels: np.ndarray):
    """The windows file of recordings, stem → (N, C) samples: 250 ms every 125 ms, nothing trimmed."""
    paths = [write_raw(raw_table(emg, labels), folder / f"{stem}.hdf5") for stem, emg in recordings.items()]
    path = folder / "windows.parquet"
    cut(*paths, "--data-location", path, "--trim-start-ms", "0", "--trim-end-ms", "0", *flags)
    return path


def maps(figure) -> list[np.ndarray]:
    """The numbers of every map, in the order in which they were drawn."""
    return [image.get_array().filled(np.nan) for image in figure.findobj(AxesImage)]


def axes_with(figure, label: str):
    [axes] = [axes for axes in figure.findobj(plt.Axes) if label in (axes.get_xlabel(), axes.get_ylabel())]
    return axes


# ---- what is wrong with a channel -----------------------------------------------------------------------------


def test_a_flat_stretch_of_two_seconds_is_named_and_drawn(tmp_path, capsys):
    emg = noise()
    emg[2999:5001, 4] = [1, *[7] * 2000, 1]
    write_raw(raw_table(emg, rest_then_fist()), tmp_path / f"{STEM}.hdf5")
    picture = tmp_path / "out" / f"{STEM}.png"
    assert inspect_main(capsys, tmp_path, "--out", tmp_path / "out") == (
        0,
        [
            STEM,
            "  10.0 s at 1000.00 Hz, 8 channels in whole counts; filter putemg, above 20 Hz (to Nyquist, 500 Hz)",
            "  idle 5.0 s, fist 5.0 s",
            "  EMG_5 flat: 2.00 s without a change from 8.00 s",
            f"  {picture}",
        ],
        [],
    )
    height, width = plt.imread(picture).shape[:2]
    assert min(height, width) > 1000


def test_standing_still_for_a_quarter_of_a_second_is_flat_and_less_is_not(tmp_path):
    emg = noise()
    emg[999:1251, 0] = [1, *[7] * 250, 1]
    emg[3999:4401, 0] = [1, *[7] * 400, 1]
    emg[999:1250, 1] = [1, *[7] * 249, 1]
    found, _ = look(tmp_path, emg)
    assert found == ["EMG_1 flat: 0.40 s without a change from 9.00 s, 0.65 s in 2 such stretches"]


@pytest.mark.parametrize("limit", [2047, 300])  # the converter's, and that of any other amplifier
def test_one_percent_of_clipped_samples_is_named(tmp_path, limit):
    emg = noise()
    for burst in range(10):
        emg[1000 * burst : 1000 * burst + 10, 2] = limit
    found, _ = look(tmp_path, emg)
    assert [text for text in found if "clipped" in text] == [
        f"EMG_3 clipped: 1.00% of the samples rest at {emg[:, 2].min():g} or {limit}"
    ]


def test_single_samples_are_clipped_only_at_the_limits_of_the_converter():
    emg = noise(channels=4)
    emg[::1000, 0] = 300  # 10 of 10000 samples, as many as it takes, but no run of three
    emg[::1000, 1] = 2047
    emg[::1000, 2] = -2048
    emg[1::1000, 3] = 2047
    emg[1, 3] = 0  # and 9 are too few
    found = quality.find_clipped(emg, *quality.extremes(emg, 104), 104)  # whose last samples are in no piece
    assert [(f.channel, f.kind) for f in found] == [(1, "clipped"), (2, "clipped")]


def test_ten_times_the_noise_at_rest_is_named_with_its_factor(tmp_path):
    emg = noise()
    emg[:, 2] *= 10
    emg[:, 6] *= 3  # may be tension
    [text], figure = look(tmp_path, emg)
    factor = re.fullmatch(r"EMG_3 noisy: (\S+) times the median channel's RMS at rest", text)[1]
    assert float(factor) == pytest.approx(10, rel=0.1)
    marked = [t.get_text() for t in axes_with(figure, "time (s)").get_yticklabels() if to_hex(t.get_color()) == ORANGE]
    assert marked == ["EMG_3 noisy"]
    curves = axes_with(figure, "power (counts²/Hz)").get_lines()
    assert [to_hex(curve.get_color()) for curve in curves].count(ORANGE) == 1
    assert [t.get_text() for t in axes_with(figure, "EMG channel").get_xticklabels() if t.get_color() == ORANGE] == [
        "3"
    ]


def test_strength_in_a_gesture_is_no_noise(tmp_path):
    emg = noise()
    emg[5000:] /= 2  # the fist is quieter than rest, but in one channel
    emg[5000:, 2] *= 50
    assert look(tmp_path, emg, "--filter=none")[0] == []  # a filter would carry some of it into the rest


def test_noise_is_sought_in_the_quietest_label_where_there_is_no_rest(tmp_path):
    emg = noise()
    emg[5000:] *= 8
    emg[:5000, 2] *= 10
    [text], _ = look(tmp_path, emg, "--filter=none", labels=np.where(rest_then_fist(), 1, 2))
    assert re.fullmatch(r"EMG_3 noisy: \S+ times the median channel's RMS during label 2, the quietest", text)


def test_a_channel_that_differs_as_others_do_is_not_noisy():
    rms = np.array([[1, 2, 4, 8, 16, 32, 64]])  # 64 is 8 times the median, and two octaves are the usual distance
    assert quality.find_noisy(rms, [0]) == []
    assert quality.find_noisy(np.array([[8, 8, 8, 8, 8, 8, 64]]), [0]) == [
        (6, "noisy", "8.0 times the median channel's RMS at rest")
    ]


@pytest.mark.parametrize(("hertz", "found"), [(49.99, 0), (50.6, 1), (100.0, 0)])
def test_a_line_is_named_that_the_filter_leaves_in_the_signal(tmp_path, hertz, found):
    emg = noise(channels=2)
    emg[:, 1] += np.rint(100 * np.sin(2 * np.pi * hertz * np.arange(len(emg)) / 1000))
    texts = [text for text in look(tmp_path, emg)[0] if "line" in text]
    # 100²/2 counts² of the line, and of the noise 20² · 480/500 in the band and 20² · 25/500 near the five lines
    said = "EMG_2 noisy: 93% of the power after the filter lies near line frequencies, most near 49.99 Hz"
    assert texts == [said][:found]


def check_findings(path) -> None:
    """Whether channels that the simulator has let stand still are found, and nothing else."""
    report, _ = inspecting.inspect_recording(path, Settings(), 8)
    plt.close("all")
    table = pd.read_hdf(path)
    loose = [name for name in table if name.startswith("EMG_") and table[name].eq(0).rolling(250).sum().max() == 250]
    assert [(f"EMG_{f.channel + 1}", f.kind) for f in report.findings] == [(name, "flat") for name in loose]


def test_a_simulated_recording_gives_no_false_alarm(raw_folder):
    check_findings(min(raw_folder.glob("*.hdf5"), key=lambda path: path.stat().st_size))


@pytest.mark.nightly
def test_simulated_recordings_give_no_false_alarm(raw_folder):
    for path in sorted(raw_folder.glob("*.hdf5")):
        check_findings(path)


# ---- the picture of a recording -------------------------------------------------------------------------------


def test_rms_is_that_of_the_sinusoids(tmp_path):
    time, fist = np.arange(10_000) / 1000, rest_then_fist()
    tone = np.sin(2 * np.pi * 100 * time)
    emg = np.stack([40 * tone, np.where(fist, 200, 10) * tone + 1000], axis=1)  # the offset is no signal
    _, figure = look(tmp_path, emg, "--filter=none")
    assert maps(figure)[0] == pytest.approx(np.array([[40, 10], [40, 200]]) / np.sqrt(2), rel=1e-3)


def test_the_spectrum_is_in_counts_squared_per_hertz(tmp_path):
    _, figure = look(tmp_path, noise(samples=60_000))
    curves = {line.get_label(): line for line in axes_with(figure, "power (counts²/Hz)").get_lines()}
    before, after = (curves[f"{word} the filter"].get_ydata() for word in ("before", "after"))  # from 1 Hz on
    assert np.mean(before) == pytest.approx(2 * 20**2 / 1000, rel=0.05)  # 20² counts² over 500 Hz
    assert np.mean(after[99:400]) == pytest.approx(2 * 20**2 / 1000, rel=0.05)
    assert after[4] < 1e-6 * before[4]  # 5 Hz


def test_no_spike_is_lost_or_cut(tmp_path):
    emg = noise(channels=3, samples=100_000)
    emg[77_777, 1] = -1500
    _, figure = look(tmp_path, emg)
    axes = axes_with(figure, "time (s)")
    line, lane = axes.get_lines()[1], float(re.search(r"lines (\S+) counts apart", axes.get_ylabel())[1])
    assert line.get_ydata().min() == pytest.approx(-1 - (1500 + np.median(emg[:, 1])) / lane)  # it lies at −1
    assert line.get_xdata()[line.get_ydata().argmin()] == pytest.approx(5 + 77.777, abs=100 / 1500)
    said = {text.get_text() for text in figure.findobj(plt.Text)}
    assert {f"−1500 … {emg[:, 1].max():g}", "min … max (counts)"} <= said


def test_an_envelope_holds_the_lowest_and_the_highest_of_every_piece():
    x = np.array([3, 1, 2, -5, 9, 0, 4])
    assert envelope(x, np.array([0, 3, 5])).tolist() == [1, 3, -5, 9, 0, 4]


def test_labels_are_drawn_where_they_are_and_named(tmp_path):
    labels = np.repeat([-1, 0, 2, 0], [1000, 3000, 4000, 2000])
    _, figure = look(tmp_path, noise(), labels=labels)
    axes = axes_with(figure, "label")
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert rows == ["unlabelled 1.0 s", "idle 5.0 s", "flexion 4.0 s"]
    boxes = [path.get_extents() for bars in axes.collections for path in bars.get_paths()]
    spans = [(round((box.y0 + box.y1) / 2), *np.round([box.x0, box.x1], 2).tolist()) for box in boxes]
    assert spans == [(0, 5, 6), (1, 6, 9), (2, 9, 13), (1, 13, 15)]  # row, from, to


def test_many_labels_have_a_row_each_and_no_colours_to_tell_apart(tmp_path):
    _, figure = look(tmp_path, noise(samples=22_000), labels=np.repeat(np.arange(22), 1000))
    axes = axes_with(figure, "label")
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"gesture {label} 1.0 s" for label in range(22)]
    assert len({to_hex(bars.get_facecolor()[0]) for bars in axes.collections}) == 1
    assert figure.get_figheight() < 11.7  # inches: a page


@pytest.mark.parametrize(("flags", "words"), [([], "above 20 Hz"), (["--band-hz=20,400"], "20 to 400 Hz")])
def test_the_band_is_that_of_the_recording(tmp_path, flags, words):
    write_raw(raw_table(noise(channels=2), rest_then_fist()), tmp_path / f"{STEM}.hdf5")
    path = next(tmp_path.iterdir())
    report, _ = inspecting.inspect_recording(path, read_settings(Settings, flags), 8)
    assert f"filter putemg, {words}" in report.facts[0]


def test_gestures_go_by_number_where_one_has_no_name(tmp_path):
    labels = np.repeat([0, 1, 5], [4000, 3000, 3000])
    recording = read_recording(write_raw(raw_table(noise(), labels), tmp_path / f"{STEM}.csv"))
    names = inspecting.label_names(recording, Settings())
    assert names == {0: "gesture 0", 1: "gesture 1", 5: "gesture 5"}
    renamed = read_settings(Settings, ["--class-names=0=rest,1=left,5=right"])
    assert list(inspecting.label_names(recording, renamed).values()) == ["rest", "left", "right"]


def test_rings_may_be_incomplete(tmp_path):
    _, figure = look(tmp_path, noise(), ring=3)
    rings = {t.get_text(): t.get_position()[0] for t in figure.findobj(plt.Text) if t.get_text().startswith("ring")}
    assert rings == {"ring 1": 1, "ring 2": 4, "ring 3": 6.5}


def test_samples_that_are_no_counts_have_another_unit(tmp_path):
    _, figure = look(tmp_path, noise() / 1000)
    assert axes_with(figure, "power (a.u.²/Hz)")
    assert axes_with(figure, "raw signal\n(lines 0.2 a.u. apart)")


# ---- the picture of a windows file ----------------------------------------------------------------------------


def test_a_windows_file_shows_every_day_and_gesture(tmp_path):
    labels = np.repeat([0, 2], [4000, 2000])  # 31 and 15 windows of 250 ms every 125 ms
    tone = np.sin(2 * np.pi * 100 * np.arange(6000) / 1000)[:, None]
    first = np.rint(np.where(labels[:, None] == 0, [[100, 400]], [[800, 800]]) * tone)  # counts
    second = np.rint(np.array([[300, 200]]) * tone)
    path = windows_of(tmp_path, {STEM: first, OTHER_DAY: second}, "--filter", "none", labels=labels)
    report, figure = inspecting.inspect_windows(path, Settings(), 8)
    counts, per_day, per_gesture = maps(figure)
    assert counts.tolist() == [[31, 15], [31, 15]]
    mixed = [np.sqrt((31 * square + 15 * 800**2) / 46) for square in (100**2, 400**2)]
    assert per_day == pytest.approx(np.array([mixed, [300, 200]]) / np.sqrt(2), rel=2e-3)
    rest = [np.sqrt((100**2 + 300**2) / 2), np.sqrt((400**2 + 200**2) / 2)]
    flexion = [np.sqrt((800**2 + 300**2) / 2), np.sqrt((800**2 + 200**2) / 2)]
    assert per_gesture == pytest.approx(np.array([rest, flexion]) / np.sqrt(2), rel=2e-3)
    assert report.facts == ["92 windows of 2 recordings, 2 channels, 250 samples every 125 at 1000.00 Hz; no filter"]
    assert list(report.amounts.values()) == ["idle 62", "flexion 30"]
    assert axes_with(figure, "RMS per day (counts)")


def test_a_bad_electrode_is_named_with_its_day(tmp_path):
    emg, labels = noise(samples=6000), np.repeat([0, 2], [4000, 2000])
    loud, still = emg.copy(), emg.copy()
    loud[:, 2] *= 10
    still[:500, 4] = 0  # 3 of the 31 + 15 windows lie wholly inside
    path = windows_of(tmp_path, {STEM: still, OTHER_DAY: loud}, "--filter", "none", labels=labels)
    noisy, flat = inspecting.inspect_windows(path, Settings(), 8)[0].finding_lines()
    assert re.fullmatch(r"EMG_3 noisy: \S+ times the median channel's RMS at rest on 03 2018-06-14", noisy)
    assert flat == "EMG_5 flat: in 6.5% of the windows of 03 2018-05-11"


def test_simulated_windows_are_counted_and_have_no_noisy_channel(windows_file):
    report, figure = inspecting.inspect_windows(windows_file, Settings(), 8)
    table = pd.read_parquet(windows_file, columns=["subject", "session", "TRAJ_GT"])
    expected = table.groupby(["subject", "session", "TRAJ_GT"]).size().unstack()
    assert maps(figure)[0].tolist() == expected.to_numpy().tolist()
    assert not [finding for finding in report.findings if finding.kind == "noisy"]
    curve = axes_with(figure, "power (counts²/Hz)").get_lines()[0]
    peak = curve.get_xdata()[curve.get_ydata().argmax()]
    assert 40 < peak < 120  # the simulated muscles peak at 60 to 90 Hz


def test_a_large_file_is_drawn_from_a_sample_and_says_so(tmp_path, monkeypatch):
    labels = np.repeat([0, 2], [4000, 2000])
    emg = np.rint(np.where(labels == 0, 100, 800) * np.sin(2 * np.pi * 100 * np.arange(6000) / 1000))[:, None]
    path = windows_of(tmp_path, {STEM: emg, OTHER_DAY: emg}, "--filter", "none", labels=labels)
    monkeypatch.setattr(inspecting, "SAMPLE_WINDOWS", 40)
    report, figure = inspecting.inspect_windows(path, Settings(), 8)
    said = "RMS, spectrum and findings are of 40 windows, drawn at random"
    assert report.facts[1] == said
    assert said in {text.get_text() for text in figure.findobj(plt.Text)}
    counts, _, per_gesture = maps(figure)
    assert counts.tolist() == [[31, 15], [31, 15]]  # of all windows
    assert per_gesture == pytest.approx(np.array([[100], [800]]) / np.sqrt(2), rel=2e-3)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        (None, "no windows of sEMG are in this parquet"),
        ({b"emg": b'{"version": 99}'}, "the file has format version 99"),
        (b"PAR1 and then nothing", "the file cannot be read"),
    ],
)
def test_a_parquet_that_is_no_windows_file_is_refused_in_a_sentence(tmp_path, metadata, reason):
    path = tmp_path / "other.parquet"
    if isinstance(metadata, bytes):
        path.write_bytes(metadata)
    else:
        pq.write_table(pa.table({"emg": [1.0]}).replace_schema_metadata(metadata), path)
    with pytest.raises(EMGError, match=f"^{re.escape(str(path))}: {reason}"):
        inspecting.inspect_windows(path, Settings(), 8)


# ---- the command line -----------------------------------------------------------------------------------------


def inspect_main(capsys, *argv) -> tuple[int, list[str], list[str]]:
    """Exit status, and lines of output and of errors."""
    status = inspect.main([str(word) for word in argv])
    said = capsys.readouterr()
    return status, said.out.splitlines(), said.err.splitlines()


def test_a_refused_recording_is_the_finding_and_the_others_are_drawn(tmp_path, capsys, tiny_raw):
    emg = noise()
    emg[5, 2] = np.nan
    write_raw(raw_table(emg, rest_then_fist()), tmp_path / f"{OTHER_DAY}.hdf5")
    good = tiny_raw / f"{STEM}.zip"
    status, said, errors = inspect_main(capsys, tmp_path, good, "--out", tmp_path / "out")
    assert (status, errors) == (3, [])
    [refused] = [line for line in said if "not drawn" in line]
    assert "1 samples are NaN or infinite, the first in EMG_3 at row 5" in refused
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{STEM}.png"]

    status, said, errors = inspect_main(capsys, tmp_path, "--out", tmp_path / "none")
    assert status == 1
    assert said == [OTHER_DAY, refused]
    assert errors == ["inspect: nothing could be drawn; the reason stands below the name of each file"]


def test_a_dead_electrode_is_drawn_and_named(tmp_path):
    """Preprocessing.py refuses it; here it is looked at. `noise` lasts 10 s."""
    emg = noise()
    emg[:, 2] = 0
    assert look(tmp_path, emg)[0] == [f"EMG_3 flat: {len(emg) / 1000:.2f} s without a change from 5.00 s"]


def test_no_picture_is_replaced_by_another_file_of_the_same_name(capsys, tmp_path, tiny_raw):
    status, said, _ = inspect_main(capsys, tiny_raw, "--out", tmp_path)  # STEM.hdf5 and STEM.zip
    assert status == 3
    assert said.count(f"  {tmp_path / STEM}.png") == 1
    [refused] = [line for line in said if "not drawn" in line]
    assert refused.startswith(f"  not drawn: {tiny_raw / STEM}.zip: {tmp_path / STEM}.png shows another file")


def test_recordings_and_windows_files_may_be_mixed(capsys, tmp_path, tiny_raw, small_file):
    flags = ["--out", tmp_path, "--filter", "causal", "--band-hz", "30,200", "--ring", "3"]
    status, said, errors = inspect_main(capsys, small_file, tiny_raw / f"{STEM}.hdf5", *flags)
    assert (status, errors) == (0, [])
    assert "3 channels in whole counts; filter causal, 30 to 200 Hz" in said[1]
    assert "8 channels, 250 samples every 125 at 1000.00 Hz; filter putemg, above 20 Hz" in " ".join(said)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{STEM}.png", "small.png"]


def test_why_gestures_have_no_names_is_said_once_for_all_recordings(capsys, tmp_path):
    for stem in (STEM, OTHER_DAY):
        write_raw(raw_table(noise(2, 1000), 5 * rest_then_fist(1000)), tmp_path / f"{stem}.csv")
    _, said, _ = inspect_main(capsys, tmp_path, "--out", tmp_path / "out")
    assert [line for line in said if "gestures go by number" in line] == said[-1:]


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        ([], "nothing was given for FILE"),
        (["nowhere"], "nowhere: there is no such file"),
        (["README.md", "--ring", "0"], "argument --ring: 0 is not a number from 1 to 256"),
        (["README.md", "--filter", "best"], "FILTER = best"),
        (["README.md", "--band-hz", "90,20"], "BAND_HZ = 90.0,20.0"),
        (["README.md", "--out", "README.md"], "README.md: the folder cannot be written"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(capsys, monkeypatch, argv, reason):
    monkeypatch.chdir(ROOT)
    status, said, errors = inspect_main(capsys, *argv)
    assert (status, said) == (1, [])
    [error] = errors
    assert error.startswith(f"inspect: {reason}")


@pytest.mark.parametrize("samples", [2, 249])
def test_a_recording_of_a_moment_is_refused(tmp_path, samples):
    with pytest.raises(EMGError, match=f"{samples} samples at 1000 Hz are too few"):
        look(tmp_path, noise(samples=samples))
    look(tmp_path, noise(samples=250), labels=np.zeros(250))


def test_ctrl_c_ends_with_130(capsys, monkeypatch, tmp_path, tiny_raw):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(inspecting, "read_recording", interrupted)
    status, _, [error] = inspect_main(capsys, tiny_raw, "--out", tmp_path)
    assert status == 130
    assert "the pictures named so far are complete" in error


@pytest.mark.nightly
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGPIPE")
def test_a_pipe_that_is_closed_early_leaves_no_traceback(tmp_path, tiny_raw):
    words = [sys.executable, "-m", "emg_gpt2", "inspect", str(tiny_raw), "--out", str(tmp_path)]
    done = subprocess.run(f"{shlex.join(words)} | head -n 1", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{STEM}\n", "")


@pytest.mark.nightly
def test_nothing_of_it_needs_torch():
    assert run("-c", "import sys, emg_gpt2.study.inspecting; sys.exit('torch' in sys.modules)").returncode == 0


# ---- faults of a few seconds ----------------------------------------------------------------------------------


def activity(seed: int = 1, channels: int = 8, rate: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """30 s of (N, C) counts and labels: 2 s of rest (RMS 5) and 1 s of fist in turn, by channel RMS 20 to 60."""
    rng = np.random.default_rng(seed)
    labels = np.tile(np.repeat([0, 1], [2 * rate, rate]), 10)
    strength = np.where(labels[:, None] == 0, 5, rng.uniform(20, 60, channels))
    return np.rint(rng.normal(0, strength)), labels


def planted(fault: str, seconds: float, rate: int = 1000) -> tuple[np.ndarray, np.ndarray]:
    """The same with a fault in EMG_4 from 13.1 s on, in the middle of a gesture or before it."""
    emg, labels = activity()
    first, last = round(13.1 * rate), round((13.1 + seconds) * rate)
    time = np.arange(last - first) / rate
    noise = np.random.default_rng(2).normal(0, 1, last - first)
    emg[first:last, 3] += np.rint(
        {
            "jump": 3000 + 0 * time,
            "burst": 2000 * noise,
            "noise": 60 * noise,
            "mains": 150 * np.sin(2 * np.pi * 50 * time),
            "dead": -emg[first:last, 3],
        }[fault]
    )
    return emg, labels


@pytest.mark.parametrize("seconds", [1, 2, 3])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("jump", "unsteady"), ("burst", "noisy"), ("noise", "noisy"), ("mains", "noisy"), ("dead", "flat")],
)
def test_a_fault_of_a_second_is_found_in_its_channel_alone(fault, kind, seconds, tmp_path):
    emg, labels = planted(fault, seconds)
    found = findings_of(emg, labels, tmp_path)
    assert {finding.channel for finding in found} == {3}
    [words] = [finding.words for finding in found if finding.kind == kind]
    begin = 5 + 13.1  # the clock begins at 5 s; the filter fits the mains over 10 s, which spreads them
    times = [float(text) for text in re.findall(r"([\d.]+) s\b", words)]
    assert any(begin - 1.2 < time < begin + seconds + 0.2 for time in times), words
    assert ("near the line's 49.99 Hz" in words) == (fault == "mains")


def findings_of(emg: np.ndarray, labels: np.ndarray, folder) -> list:
    recording = read_recording(write_raw(raw_table(emg, labels), folder / f"{STEM}.hdf5"))
    raw = quality.look_at_raw(recording)
    return quality.find_all(raw, recording, *filter_and_resample(recording, Settings()))


def test_a_recording_of_any_length_can_be_looked_at():
    """From too short for pieces to long enough for jumps; at 100 Hz it may have enough pieces and too few levels."""
    drawn = np.random.default_rng(0).normal(0, 99, (400, 5)).astype(np.float32)
    for samples in range(300, 400):
        time, labels = np.arange(samples) / 208.1, np.zeros(samples, np.int8)
        recording = Recording(STEM, "03", "2018-05-11", "sequential", tuple("abcde"), time, drawn[:samples], labels)
        quality.find_all(quality.look_at_raw(recording), recording, drawn[: round(samples / 2.08)], 100.0)


@pytest.mark.parametrize("change", [lambda emg: emg, lambda emg: emg + np.linspace(0, 3000, len(emg))[:, None]])
def test_gestures_and_drift_are_no_faults(change, tmp_path):
    emg, labels = activity()
    assert findings_of(np.rint(change(emg)), labels, tmp_path) == []


@needs_shared
def test_the_jump_of_flexemg_is_named_by_inspect_and_preprocessing(tmp_path, capsys):
    path = SHARED / "real" / "flexemg" / "emg_gestures-01-sequential-2018-01-01-09-00-00-000.hdf5"
    found = "EMG_18 unsteady: its level jumps by up to 3628, at 17.4 s, 20.4 s"
    assert inspect.main([str(path), "--out", str(tmp_path)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert found in lines
    assert lines[-1].startswith("WARNING: gestures go by number")
    _, said = cut(path, "--data-location", tmp_path / "windows.parquet", "--verbose")
    assert f"{path.stem}: {found}" in said.splitlines()
    _, said = cut(path, "--data-location", tmp_path / "windows.parquet")
    assert said.splitlines()[1].split()[-2:] == ["EMG_18", "(1)"]


@pytest.mark.nightly
@needs_shared
def test_good_channels_of_real_recordings_are_not_named(tmp_path):
    """By channel, in 80 recordings of armband and 70 of flexemg; those that are left out have visible faults."""
    bad = {"armband": {"02": {3}}, "flexemg": {"01": {6, 12, 18, 19, 20, 22, 24}, "02": {15, 17, 22}}}
    for folder, people in bad.items():
        for path in sorted((SHARED / "real" / folder).glob("*.hdf5")):
            recording = read_recording(path)
            raw = quality.look_at_raw(recording)
            found = quality.find_all(raw, recording, *filter_and_resample(recording, Settings()))
            assert {finding.channel + 1 for finding in found} <= people.get(recording.subject, set()), path
