"""stream: the same decisions as predict from every source, and what goes wrong on the way."""

import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, STEM, raw_table, write_raw

from emg_gpt2.commands import predict
from emg_gpt2.commands.stream import main, parse
from emg_gpt2.live.packets import Joiner, Reader, Troubles
from emg_gpt2.live.predicting import decided_recordings
from emg_gpt2.live.setup import Setup
from emg_gpt2.live.sources import Packet, Trouble, open_source
from emg_gpt2.live.streaming import Decider, Writer, decide_all
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
def expected(recorded, causal_model) -> pd.DataFrame:
    """What predict decides with the causal filter and a running reference."""
    args = predict.parse([str(recorded), "--model", str(causal_model), "--reference", "running"])
    [(_, decided)] = decided_recordings([recorded], Setup(args))
    return decided.table


def begin(*argv: str | Path, **options) -> subprocess.Popen:
    """stream as a user would start it."""
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


def encoded(samples: np.ndarray, encoding: str) -> bytes:
    """Samples as standard input has them."""
    text = io.StringIO()
    np.savetxt(text, samples, "%d", delimiter=",")
    kinds = {"csv": text.getvalue().encode(), "int16": samples.astype("<i2").tobytes(), "float32": samples.tobytes()}
    return kinds[encoding]


@pytest.mark.parametrize("encoding", ["csv", "int16", "float32"])
def test_standard_input_gives_the_decisions_of_predict(
    encoding, samples, causal_model, expected, tmp_path, monkeypatch, capsys
):
    path, given = tmp_path / "in", ["-", "--rate", "2000", "--encoding", encoding, "--model", str(causal_model)]
    path.write_bytes(encoded(samples, encoding))
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert main(given) == 0
    said = capsys.readouterr()
    assert re.search(r"troubles: (none|[^,]* stalled|stalled[^,]*)$", said.err, re.M)  # a busy machine may stall
    same(pd.read_csv(io.StringIO(said.out)), expected)


@pytest.mark.nightly
def test_a_pipe_gives_the_decisions_of_predict(samples, causal_model, expected):
    process = begin("-", "--rate", "2000", "--encoding", "int16", "--model", causal_model)
    said, errors = process.communicate(encoded(samples, "int16"), timeout=60)
    assert process.returncode == 0, errors.decode()
    assert b"troubles: none" in errors
    same(pd.read_csv(io.BytesIO(said)), expected)


class Sender:
    """Sends UDP packets of 20 samples (10 ms) as an amplifier would, twice as fast."""

    def __init__(self, samples: np.ndarray, listening: str):
        assert listening.startswith("listening on 127.0.0.1:")
        self.address = "127.0.0.1", int(listening.rsplit(":", 1)[1])
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


def test_udp_gives_the_decisions_of_predict_until_ctrl_c(samples, causal_model, expected):
    process = begin("udp://127.0.0.1:0", "--rate", "2000", "--model", causal_model)
    try:
        sender = Sender(samples, process.stderr.readline().decode())
        heading = process.stdout.readline()  # the model is ready
        sender.send(0, 2000)  # of one second no decision is skipped, however slow this machine is
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert re.search(rb"troubles: (none|[^,]* stalled|stalled[^,]*)$", errors, re.M)  # a busy machine may stall
    table = pd.read_csv(io.BytesIO(heading + said))
    same(table, expected, (1000 - 10 - 250) // 50 + 1)
    assert (table["latency_ms"] > 0).all()


def test_the_sender_of_the_documentation_is_understood(samples, causal_model, expected, capsys):
    """The code block of docs/use.md as it stands."""
    block = re.search(r"```python\n(import socket.*?)```", (ROOT / "docs" / "use.md").read_text("utf-8"), re.S)[1]
    names = {}
    exec(block, names)
    send = lambda sender: names["send"](samples[:1000], 10 * RATE, *sender.address, size=20)  # noqa: E731
    table, troubles = listen(causal_model, samples, send, 0.45, capsys)
    same(table, expected, len(table))
    assert len(table) >= 3
    assert troubles.keys() <= {"stalled"}  # a busy machine may stall


def listen(model: Path, samples: np.ndarray, send: Callable[[Sender], None], seconds: float, capsys):
    """What stream decides in this process on `seconds` of signal that another thread sends, and its troubles."""
    setup = Setup(parse(["udp://127.0.0.1:0", "--rate", "2000", "--model", str(model)]))
    source = open_source("udp://127.0.0.1:0", setup.model.config.channels, RATE, None, 1.0)
    sender, lines, decider = Sender(samples, capsys.readouterr().err), io.StringIO(), Decider(setup, source)
    decider.most = None  # skip no decision, however slow this machine is
    thread = threading.Thread(target=send, args=(sender,))
    thread.start()
    decide_all(Reader(source), decider, Writer(setup.model.config.class_codes, lines), seconds - 0.001)
    thread.join()
    lines.seek(0)
    return pd.read_csv(lines), dict(decider.troubles.counts)


def test_what_goes_wrong_is_counted_and_does_not_end_the_stream(samples, causal_model, expected, capsys, caplog):
    broken = samples.copy()
    broken[4000:4010, 2] = np.nan
    broken[6000:9000, 5] = 11

    def send(sender: Sender) -> None:
        sender.send(0, 2000)
        sender.send(2100, 3000)  # 100 samples are lost
        sender.send(2000, 2020)  # one packet of them comes late
        sender.send(2980, 3000)  # one comes twice
        sender.raw(b"nonsense")
        sender.raw(struct.pack("<Q", 3000) + samples[3000:3010, :7].tobytes())  # seven channels
        sender.send(3000, 4000, size=50)
        sender.send(4000, len(samples))

    table, troubles = listen(causal_model, broken, send, 6, capsys)
    troubles.pop("stalled", None)  # on a busy machine
    assert troubles == {
        "lost samples": 100,
        "late or twice": 2,
        "wrong size": 2,
        "packet size": 2,
        "no number": 10,
        "lost channel": 1,
    }
    assert "no number: 10 values in EMG_3" in caplog.text
    assert "lost channel: EMG_6 has held 11 for 1 s" in caplog.text
    assert "EMG_6 is back" in caplog.text
    assert len([line for line in caplog.messages if line.startswith("wrong size")]) == 1  # two in the same second
    assert len(table) == len(expected)
    np.testing.assert_allclose(table["end"], expected["end"], atol=1e-3)
    before = table["end"] < 0.99  # nothing had gone wrong yet
    np.testing.assert_allclose(table[before][GESTURES], expected[before][GESTURES], atol=1e-5)


def test_a_stalled_source_is_waited_for(samples, causal_model, expected, capsys, caplog):
    def send(sender: Sender) -> None:
        sender.send(0, 1000)
        time.sleep(1.2)
        sender.send(1000, 4000)

    table, troubles = listen(causal_model, samples, send, 2, capsys)
    assert troubles == {"stalled": 1}
    assert "stalled: nothing has come for 0.5 s; waiting" in caplog.text
    assert "going on after 1." in caplog.text
    same(table, expected, (2000 - 10 - 250) // 50 + 1)


def test_the_signal_begins_anew_where_the_numbers_do(samples, causal_model, expected, capsys):
    def send(sender: Sender) -> None:
        sender.send(0, 2000, number=10**15)
        sender.send(0, 2000, number=0)

    table, troubles = listen(causal_model, samples, send, 2, capsys)
    assert troubles["began anew"] == 1
    half = (1000 - 10 - 250) // 50 + 1
    assert len(table) == 2 * half
    np.testing.assert_allclose(table["start"].iloc[half:], expected["start"].iloc[:half], atol=1e-3)


def test_the_lab_streaming_layer_gives_the_decisions_of_predict(samples, causal_model, expected):
    pylsl = pytest.importorskip("pylsl", reason="pylsl is not installed", exc_type=ImportError)
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo("arm", "EMG", 8, RATE, "float32", "test"), chunk_size=20)
    setup = Setup(parse(["lsl://arm", "--model", str(causal_model)]))

    def send() -> None:
        assert outlet.wait_for_consumers(20)
        began = pylsl.local_clock()
        for first in range(0, 4000, 20):
            outlet.push_chunk(samples[first : first + 20].tolist(), began + (first + 19) / RATE)
            time.sleep(0.005)

    source, lines = open_source("lsl://arm", setup.model.config.channels, None, None, 1.0), io.StringIO()
    decider = Decider(setup, source)
    decider.most = None  # skip no decision, however slow this machine is
    threading.Thread(target=send).start()
    decide_all(Reader(source), decider, Writer(setup.model.config.class_codes, lines), 1.9)
    lines.seek(0)
    table = pd.read_csv(lines)
    assert set(decider.troubles.counts) <= {"stalled"}  # on a busy machine
    same(table, expected, len(table))
    assert len(table) >= (1900 - 10 - 250) // 50 + 1


@pytest.mark.nightly
def test_the_lab_streaming_layer_can_be_read_by_a_process(samples, causal_model, expected):
    pylsl = pytest.importorskip("pylsl", reason="pylsl is not installed", exc_type=ImportError)
    outlet = pylsl.StreamOutlet(pylsl.StreamInfo("leg", "EMG", 8, RATE, "float32", "test"), chunk_size=20)
    process = begin("lsl://leg", "--model", causal_model, "--seconds", "5.9")
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
    setup = Setup(args)
    source = open_source(str(recorded), setup.model.config.channels, None, None, 0)
    decider = Decider(setup, source)
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


@pytest.mark.nightly
def test_an_unwilling_reader_ends_it_quietly(recorded, causal_model):
    process = begin(recorded, "--model", causal_model, "--speed", "0")
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.wait(60)
    assert "Traceback" not in errors
