"""tools.stream: the same decisions as tools.predict from every source, and what goes wrong on the way."""

import contextlib
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, STEM, raw_table, write_raw

from emg_gpt2.commands import predict
from emg_gpt2.commands.stream import main, parse
from emg_gpt2.live.packets import Joiner, Reader, Troubles
from emg_gpt2.live.sources import Packet, Trouble, open_source
from emg_gpt2.live.streaming import Decider
from emg_gpt2.model.build import load_model
from emg_gpt2.raw.putemg import read_recording

pytestmark = pytest.mark.usefixtures("one_thread")

RATE = 2000.0  # Hz: resampled to 1000
GESTURES = [f"p_{code}" for code in (0, 1, 2, 3, 6, 7, 8, 9)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Path:
    """Six seconds of 8 channels: every half second another pair of them is strong."""
    rng, rows = np.random.default_rng(5), round(6 * RATE)
    strong = (np.arange(8) // 2 == (np.arange(rows) // 1000 % 4)[:, None]) * 40 + 5
    table = raw_table(np.rint(rng.normal(size=(rows, 8)) * strong), np.zeros(rows), RATE, start=0.0)
    return write_raw(table, tmp_path_factory.mktemp("recorded") / f"{STEM}.hdf5")


@pytest.fixture(scope="module")
def samples(recorded) -> np.ndarray:
    return read_recording(recorded).emg.copy()


@pytest.fixture(scope="module")
def expected(recorded, causal_model, tmp_path_factory) -> pd.DataFrame:
    """What tools.predict decides with the causal filter and a running reference."""
    out = tmp_path_factory.mktemp("predicted")
    given = [str(recorded), "--model", str(causal_model), "--reference", "running", "--out", str(out)]
    assert predict.main(given) == 0
    return pd.read_csv(out / f"{STEM}.csv")


def begin(*argv: str | Path, **options) -> subprocess.Popen:
    """tools.stream as a user would start it."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EMG_")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "emg_gpt2", "stream", *map(str, argv)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes | options)


def same(streamed: pd.DataFrame, expected: pd.DataFrame, windows: int | None = None) -> None:
    """The same decisions, but for those at the end whose samples never came."""
    assert len(streamed) == (windows or len(expected))
    wanted = expected.head(len(streamed))
    assert list(streamed["gesture"]) == list(wanted["gesture"])
    np.testing.assert_allclose(streamed["start"], wanted["start"], atol=1e-3)
    np.testing.assert_allclose(streamed[GESTURES], wanted[GESTURES], atol=1e-5)


# ---- the same decisions from every source -----------------------------------------------------------------------


def test_a_file_gives_the_decisions_of_predict(recorded, causal_model, expected, tmp_path):
    out, summary = tmp_path / "s.csv", tmp_path / "s.json"
    given = [recorded, "--model", causal_model, "--speed", "0", "--out", out, "--summary", summary]
    assert main([str(one) for one in given]) == 0
    streamed = pd.read_csv(out)
    assert len(expected) == (6000 - 10 - 250) // 50 + 1  # the resampler looks ten samples ahead
    assert list(streamed) == ["start", "end", "gesture", "confidence", *GESTURES, "latency_ms"]
    same(streamed, expected)
    found = json.loads(summary.read_text())
    assert (found["decisions"], found["troubles"]) == (len(expected), {})
    assert found["signal_s"] == pytest.approx(6)


@pytest.mark.parametrize("encoding", ["csv", "int16", "float32"])
def test_standard_input_gives_the_decisions_of_predict(encoding, samples, causal_model, expected):
    text = io.StringIO()
    np.savetxt(text, samples, "%d", delimiter=",")
    kinds = {"csv": text.getvalue().encode(), "int16": samples.astype("<i2").tobytes(), "float32": samples.tobytes()}
    process = begin("-", "--rate", "2000", "--encoding", encoding, "--model", causal_model)
    said, errors = process.communicate(kinds[encoding], timeout=60)
    assert process.returncode == 0, errors.decode()
    assert b"troubles: none" in errors
    same(pd.read_csv(io.BytesIO(said)), expected)


class Sender:
    """Sends UDP packets of 20 samples (10 ms) as an amplifier would, twice as fast."""

    def __init__(self, process: subprocess.Popen, samples: np.ndarray):
        line = process.stderr.readline().decode()
        assert line.startswith("listening on 127.0.0.1:")
        self.address = "127.0.0.1", int(line.rsplit(":", 1)[1])
        self.heading = process.stdout.readline()  # the model is loaded
        self.samples, self.socket = samples, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def send(self, first: int, end: int, number: int | None = None, size: int = 20) -> None:
        """Samples first … end in packets of `size`, numbered from `number` (else from `first`) on."""
        number = first if number is None else number
        for start in range(first, end, size):
            part = self.samples[start : min(start + size, end)]
            self.raw(struct.pack("<Q", number + start - first) + part.astype("<f4").tobytes())
            time.sleep(0.005)

    def raw(self, data: bytes) -> None:
        self.socket.sendto(data, self.address)


@contextlib.contextmanager
def udp(samples: np.ndarray, model: Path, *argv: str):
    """A sender to a stream; at the end `found` has what the stream wrote, said and summed up."""
    process = begin("udp://127.0.0.1:0", "--rate", "2000", "--model", model, *argv)
    found = {}
    try:
        sender = Sender(process, samples)
        yield sender, found
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
        found |= {
            "table": pd.read_csv(io.BytesIO(sender.heading + said)),
            "said": errors.decode(),
            "status": process.returncode,
        }
    finally:
        process.kill()


def test_udp_gives_the_decisions_of_predict(samples, causal_model, expected):
    with udp(samples, causal_model) as (sender, found):
        sender.send(0, len(samples))
    assert found["status"] == 130  # it was stopped by Ctrl-C
    assert "troubles: none" in found["said"]
    same(found["table"], expected)
    assert (found["table"]["latency_ms"] > 0).all()


def test_what_goes_wrong_is_counted_and_does_not_end_the_stream(samples, causal_model, expected):
    broken = samples.copy()
    broken[4000:4010, 2] = np.nan
    broken[6000:9000, 5] = 11
    with udp(broken, causal_model) as (sender, found):
        sender.send(0, 2000)
        sender.send(2100, 3000)  # 100 samples are lost
        sender.send(2000, 2020)  # one packet of them comes late
        sender.send(2980, 3000)  # one comes twice
        sender.raw(b"nonsense")
        sender.raw(struct.pack("<Q", 3000) + samples[3000:3010, :7].tobytes())  # seven channels
        sender.send(3000, 4000, size=50)
        sender.send(4000, len(samples))
    said, table = found["said"], found["table"]
    counted = {
        "lost samples 100",
        "late or twice 2",
        "wrong size 2",
        "packet size 2",
        "no number 10",
        "lost channel 1",
    }
    for words in counted:
        assert words in said.splitlines()[-1]
    assert "no number: 10 values in EMG_3" in said
    assert "lost channel: EMG_6 has held 11 for 1 s" in said
    assert "EMG_6 is back" in said
    assert "7 channels" not in said.split("wrong size")[0]
    assert len(table) == len(expected)
    np.testing.assert_allclose(table["end"], expected["end"], atol=1e-3)
    before = table["end"] < 0.99  # nothing had gone wrong yet
    np.testing.assert_allclose(table[before][GESTURES], expected[before][GESTURES], atol=1e-5)


def test_a_stalled_source_is_waited_for(samples, causal_model, expected):
    with udp(samples, causal_model) as (sender, found):
        sender.send(0, 4000)
        time.sleep(1.2)
        sender.send(4000, len(samples))
    assert "stalled: nothing has come for 0.5 s; waiting" in found["said"]
    assert "going on after 1." in found["said"]
    same(found["table"], expected)


def test_the_signal_begins_anew_where_the_numbers_do(samples, causal_model, expected):
    with udp(samples, causal_model) as (sender, found):
        sender.send(0, 4000, number=10**15)
        sender.send(0, 4000, number=0)
    assert "began anew 1" in found["said"]
    assert "seconds" not in found["said"].split("began anew")[0]
    table = found["table"]
    half = (2000 - 10 - 250) // 50 + 1
    assert len(table) == 2 * half
    np.testing.assert_allclose(table["start"].iloc[half:], expected["start"].iloc[:half], atol=1e-3)


def test_the_lab_streaming_layer_gives_the_decisions_of_predict(samples, causal_model, expected):
    pylsl = pytest.importorskip("pylsl", reason="pylsl is not installed", exc_type=ImportError)
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo("arm", "EMG", 8, RATE, "float32", "test"), chunk_size=20)
    process = begin("lsl://arm", "--model", causal_model, "--seconds", "5.9")
    try:
        heading = process.stdout.readline()
        assert outlet.wait_for_consumers(20)
        began = pylsl.local_clock()
        for first in range(0, len(samples), 20):
            outlet.push_chunk(samples[first : first + 20].tolist(), began + (first + 19) / RATE)
            time.sleep(0.005)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors.decode()
    table = pd.read_csv(io.BytesIO(heading + said))
    assert b"troubles: none" in errors
    same(table, expected, len(table))
    assert len(table) >= (5900 - 10 - 250) // 50 + 1


# ---- pieces, by hand --------------------------------------------------------------------------------------------


def joined(*packets: tuple[int, list]) -> tuple[list, Troubles]:
    """Samples of two channels at 10 Hz that come of the packets, and the troubles."""
    troubles = Troubles()
    joiner = Joiner(["EMG_1", "EMG_2"], 10.0, troubles)
    pieces = [joiner(Packet(first, np.array(emg, np.float32), 0.0)) for first, emg in packets]
    return [(emg.tolist(), anew) for emg, anew in pieces], troubles


def test_a_gap_is_filled_with_the_last_sample():
    pieces, troubles = joined((5, [[1, 2]]), (8, [[3, 4]]))
    assert pieces == [([[1, 2]], True), ([[1, 2], [1, 2], [3, 4]], False)]
    assert troubles.counts == {"lost samples": 2}


def test_a_long_gap_is_not_filled():
    pieces, troubles = joined((0, [[1, 2]]), (12, [[3, 4]]), (10**18, [[5, 6]]))
    assert pieces == [([[1, 2]], True), ([[3, 4]], True), ([[5, 6]], True)]
    assert troubles.counts == {"began anew": 2}


def test_values_that_are_no_numbers_take_the_last_one_of_their_channel():
    nan, inf = float("nan"), float("inf")
    pieces, troubles = joined((0, [[nan, 2], [3, -inf]]), (2, [[1e30, 5], [6, 7]]))
    assert [emg for emg, _ in pieces] == [[[0, 2], [3, 2]], [[3, 5], [6, 7]]]
    assert troubles.counts == {"no number": 3}


def test_a_channel_is_lost_when_it_stands_still_for_a_second(caplog):
    _, troubles = joined((0, [[n, 1] for n in range(8)]), (8, [[n, 1] for n in range(8)]), (16, [[0, 2], [1, 3]]))
    assert troubles.counts == {"lost channel": 1}
    assert "EMG_2 is back" in caplog.text


def test_a_decision_knows_when_its_last_sample_came(recorded, causal_model):
    args = parse([str(recorded), "--model", str(causal_model), "--speed", "0", "--smooth", "none"])
    model = load_model(causal_model)
    source = open_source(str(recorded), model.config.channels, None, None, 0)
    decider = Decider(model, source, args)
    packets = [packet._replace(arrived=float(packet.first)) for packet in source.packets(lambda: False)][:60]
    decisions = [decision for packet in packets for decision in decider([packet])]
    # The last sample of the first window is number 249 of 1 kHz, 498 of 2 kHz, in the packet of 480 … 500.
    assert [decision.arrived for decision in decisions] == [480, 580, 680, 780, 880, 980, 1080]


def test_the_reader_hands_on_what_the_source_comes_to(recorded):
    def packets(_):
        yield Trouble("odd", "something")
        raise OSError(5, "Input/output error", "device")

    source = open_source(str(recorded), tuple("abcdefgh"), None, None, 0)._replace(packets=packets)
    with pytest.raises(OSError, match="Input/output error"):
        list(Reader(source))


# ---- what the user sees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (["nowhere.hdf5"], "nowhere.hdf5"),
        (["-"], "-: its sampling rate is not known; say it with --rate"),
        (["udp://127.0.0.1", "--rate", "2000"], "udp://127.0.0.1: cannot listen there"),
        (["-", "--rate", "900"], "900.00 Hz after resampling, and the model was trained at 1000"),
        (["x", "--reference", "session"], "a stream does not know its session beforehand"),
    ],
)
def test_wrong_sources_end_in_one_sentence(source, words, causal_model, capsys):
    assert main([*source, "--model", str(causal_model)]) == 1
    said = capsys.readouterr().err
    assert words in said
    assert len(said.strip().splitlines()) == 1


def test_a_recording_of_other_channels_is_refused(causal_model, tmp_path, capsys):
    path = write_raw(raw_table(np.arange(3000).reshape(1000, 3), np.zeros(1000)), tmp_path / f"{STEM}.hdf5")
    assert main([str(path), "--model", str(causal_model)]) == 1
    assert "3 channels, and the model was trained on 8" in capsys.readouterr().err


def test_a_file_is_replayed_at_its_own_speed(recorded, causal_model, tmp_path):
    summary = tmp_path / "summary.json"
    began = time.perf_counter()
    given = [recorded, "--model", causal_model, "--seconds", "2", "--out", tmp_path / "s.csv", "--summary", summary]
    assert main([str(one) for one in given]) == 0
    assert time.perf_counter() - began > 2
    found = json.loads(summary.read_text())
    assert 2 <= found["signal_s"] < 3
    assert 0 < found["real_time_factor"] < 1
    assert found["latency_ms"]["median"] >= 10  # the resampler looks so far ahead


def test_an_unwilling_reader_ends_it_quietly(recorded, causal_model):
    process = begin(recorded, "--model", causal_model, "--speed", "0")
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.wait(60)
    assert "Traceback" not in errors
