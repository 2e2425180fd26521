"""Settings: flag before variable before ENV.py before default, and one sentence for everything that is wrong."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT, run

from emg_gpt2.base.constants import read_constants
from emg_gpt2.base.errors import EMGError
from emg_gpt2.base.registry import HEADS
from emg_gpt2.settings import PreprocessingSettings, Role, Settings, flag, read_settings, role_of

SCRIPTS = ("main.py", "Preprocessing.py")

# A legal value of every setting that is not its default: as it is written, and as it is read.
OTHER_VALUES = {
    "DATA_LOCATION": "other.parquet",
    "SAMPLING_RATIO": "0.5",
    "BALANCE": "none",
    "MEMORY_GB": "2.5",
    "FILTER": "causal",
    "BAND_HZ": ("30,400", (30.0, 400.0)),
    "SAMPLE_RATE": "2000",
    "WINDOW_MS": "300",
    "STRIDE_MS": "50",
    "TRIM_START_MS": "0",
    "TRIM_END_MS": "100",
    "LEGAL_VALUES": ("0, 1,9", [0, 1, 9]),
    "CLASS_NAMES": ("0=rest, 1=hand closed", {0: "rest", 1: "hand closed"}),
    "DATA_NOTE": "one, two; {three}",
    "WORKERS": "3",
    "CLUSTER": "tcp://10.0.0.1:8786",
    "DOWNLOAD_URL": "https://example.org/putemg/",
    "SPLIT": "session",
    "TEST_SHARE": "0.5",
    "VALIDATION_SHARE": "0.5",
    "FOLD": "2",
    "TRAIN_ON": ("01/*,02/2018-01-01/*", ["01/*", "02/2018-01-01/*"]),
    "TEST_ON": ("03/[a-c]*", ["03/[a-c]*"]),
    "MODEL_NAME": "distilgpt2",
    "PRETRAINED": "never",
    "BLOCKS": "3",
    "NUM_LAYERS": "-3",
    "ADAPT": "lora",
    "CONTEXT": "16",
    "SCALE": "session",
    "LINEAR_PATH": ("false", False),
    "TOKENS": ("raw,power", ["raw", "power"]),
    "PATCH_MS": "10",
    "FILTERS": "8",
    "FILTER_MS": "10",
    "HEAD": "largest",
    "DROPOUT": "0",
    "NUM_EPOCHS": "3",
    "PATIENCE": "1",
    "BATCH_SIZE": "7",
    "LR": "0.01",
    "WEIGHT_DECAY": "0",
    "WARMUP": "0",
    "REFIT": ("false", False),
    "NOISE": "0",
    "RING": "4",
    "ROTATION": "2",
    "CLIP": "2",
    "PRECISION": "fp32",
    "FREEZE": ("true", True),
    "COMPILE": ("true", True),
    "DETERMINISTIC": ("true", True),
    "SEED": "9",
    "SWEEP": ("true", True),
    "SWEEP_SPACE": "wide",
    "SWEEP_TRIALS": "7",
    "SWEEP_STUDY": "/shared/study.journal",
    "SWEEP_NUM_LAYERS": ("-2,0", [-2, 0]),
    "SWEEP_LR": ("0.1,1e-5", [0.1, 1e-5]),
    "NUM_EPOCHS_FOR_VALIDATION": "1",
    "RUN_DIR": "results",
    "RESUME": "runs/yesterday",
    "MODEL_SAVING_DIR": "models/best",
    "TRACKER": "none",
    "FIGURE_FORMAT": "svg",
}

WRONG = {  # flags → the setting and its value, the legal range
    "--num-epochs 0": ("NUM_EPOCHS = 0", "x ≥ 1"),
    "--num-epochs 1.5": ("NUM_EPOCHS = 1.5: should be a whole number", "x ≥ 1"),
    "--lr 5": ("LR = 5", "0 < x ≤ 1"),
    "--lr nan": ("LR = nan", "0 < x ≤ 1"),
    "--window-ms 0": ("WINDOW_MS = 0", "0 < x ≤ 10000"),
    "--window-ms ten": ("WINDOW_MS = ten: should be a number", "0 < x ≤ 10000"),
    "--trim-end-ms 1e308": ("TRIM_END_MS = 1e308", "0 ≤ x ≤ 1e6"),
    "--test-share 1": ("TEST_SHARE = 1", "0 < x < 1"),
    "--filters 257": ("FILTERS = 257", "1 … 256"),
    "--num-layers 1": ("NUM_LAYERS = 1", "x ≤ 0"),
    "--adapt some": ("ADAPT = some", "'full', 'norms', 'lora' or 'frozen'"),
    "--tokens power,fourier": ("TOKENS = fourier: there is no tokeniser", "covariance, power, bands, raw"),
    "--tokens power,power": ("TOKENS = power,power", "none twice"),
    "--rotation=-1": ("ROTATION = -1", "x ≥ 0"),
    "--balance maybe": ("BALANCE = maybe", "'weights', 'undersample' or 'none'"),
    "--band-hz 700,20": ("BAND_HZ = 700.0,20.0", "0 < low < high"),
    "--band-hz 0,450": ("BAND_HZ = 0.0,450.0", "0 < low < high"),
    "--band-hz 20": ("BAND_HZ = 20", "low,high"),
    "--band-hz 20,100,450": ("BAND_HZ = ", "low,high"),
    "--band-hz low,450": ("BAND_HZ = low", "low,high"),
    "--class-names idle": ("CLASS_NAMES = idle", "0=idle,1=fist"),
    "--class-names 0=idle,1": ("CLASS_NAMES = 0=idle,1", "0=idle,1=fist"),
    "--class-names zero=idle": ("CLASS_NAMES = zero", "label=name"),
    "--legal-values 128": ("LEGAL_VALUES = 128", "0 … 127"),
    "--legal-values=-1": ("LEGAL_VALUES = -1", "0 … 127"),
    "--sweep-lr 0": ("SWEEP_LR = 0", "each 0 < x ≤ 1"),
    "--sweep-num-layers 1": ("SWEEP_NUM_LAYERS = 1", "each ≤ 0"),
}


def written_and_read(name: str) -> tuple[str, object]:
    other = OTHER_VALUES[name]
    return other if isinstance(other, tuple) else (other, type(getattr(Settings(), name) or "")(other))


def one_sentence(text: str) -> str:
    assert "Traceback" not in text
    assert text.count("\n") == 1, text
    return text


# ---- the schema and ENV.py ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings_class", [Settings, PreprocessingSettings])
def test_every_setting_says_what_it_is(settings_class):
    for name, field in settings_class.model_fields.items():
        assert field.description, name


def test_every_setting_has_a_role():
    assert [name for name in Settings.model_fields if role_of(Settings, name) is None] == []
    assert sum(len(Settings.with_role(role)) for role in Role) == len(Settings.model_fields)
    assert role_of(PreprocessingSettings, "RAW") is None


def test_env_py_has_the_defaults_of_the_schema_by_role_and_a_comment_on_each():
    constants, defaults = read_constants(ROOT / "ENV.py"), Settings.model_construct()
    for name, value in constants.items():
        default = getattr(defaults, name)
        assert value == (str(default) if name == "DATA_LOCATION" else default), name
    roles = list(Role)
    in_order = sorted(Settings.model_fields, key=lambda name: roles.index(role_of(Settings, name)))
    assert list(constants) == in_order
    lines = (ROOT / "ENV.py").read_text(encoding="utf-8").splitlines()
    titles = [line.removeprefix("# ---- ") for line in lines if line.startswith("# ---- ")]
    assert titles == [role.value for role in Role]
    begun = [line for line in lines if re.match(r"[A-Z_]+ = ", line)]
    assert [line.partition(" ")[0] for line in begun if "  # " not in line] == []


def test_env_py_needs_no_import():
    statements = ast.parse((ROOT / "ENV.py").read_text(encoding="utf-8")).body[1:]
    assert {type(statement) for statement in statements} == {ast.Assign}


@pytest.fixture
def env_file(tmp_path, monkeypatch):
    """Write ENV.py into the current folder, far from any script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [str(tmp_path / "bin" / "script.py")])
    return lambda text: (tmp_path / "ENV.py").write_text(text, encoding="utf-8")


def test_constants_of_env_py_are_taken_and_variables_and_flags_go_first(env_file, monkeypatch):
    env_file('NUM_EPOCHS = 5\nSEED = 7\nLR = 3e-4\nTOKENS = ["raw"]\nCLASS_NAMES = {0: "rest"}\nRUN_DIR = "here"\n')
    settings = read_settings(argv=[])
    assert (settings.NUM_EPOCHS, settings.TOKENS, settings.CLASS_NAMES) == (5, ["raw"], {0: "rest"})
    assert settings.model_fields_set == {"NUM_EPOCHS", "SEED", "TOKENS", "CLASS_NAMES", "RUN_DIR"}  # LR is the default
    assert settings.given == frozenset()
    monkeypatch.setenv("EMG_NUM_EPOCHS", "6")
    assert read_settings(argv=[]).NUM_EPOCHS == 6
    settings = read_settings(argv=["--num-epochs", "4", "--no-refit"])
    assert (settings.NUM_EPOCHS, settings.SEED) == (4, 7)
    assert settings.given == {"NUM_EPOCHS", "REFIT"}


def test_settings_that_are_made_in_code_read_nothing_from_outside(env_file, monkeypatch):
    env_file("SEED = 7\n")
    monkeypatch.setenv("EMG_NUM_EPOCHS", "6")
    assert (Settings().SEED, Settings().NUM_EPOCHS) == (0, 8)


def test_env_py_lies_beside_the_script_or_in_the_current_folder(env_file, tmp_path):
    env_file("SEED = 1\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ENV.py").write_text("SEED = 2\n")
    assert read_settings(argv=[]).SEED == 2
    (tmp_path / "bin" / "ENV.py").unlink()
    assert read_settings(argv=[]).SEED == 1
    (tmp_path / "ENV.py").unlink()
    assert read_settings(argv=[]).SEED == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("NUM_EPOCH = 5", "ENV.py: there is no setting NUM_EPOCH (did you mean NUM_EPOCHS?)"),
        ("NUM_EPOCHS = 0", "NUM_EPOCHS = 0: should be greater than or equal to 1 (ENV.py, --num-epochs or EMG_N"),
        ("SEED = 1\nLR = 1e-3 * 2", "ENV.py, line 2: LR should be a plain value"),
    ],
)
def test_a_wrong_constant_of_env_py_is_one_sentence(env_file, text, sentence):
    env_file(text)
    with pytest.raises(EMGError) as found:
        read_settings(argv=[])
    assert str(found.value).startswith(sentence)


# ---- flags and variables --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_a_flag_and_a_variable(name, monkeypatch):
    monkeypatch.setitem(HEADS.registered, "largest", object)
    written, read = written_and_read(name)
    switches = {"true": flag(name), "false": flag(name).replace("--", "--no-", 1)}
    flags = [switches.get(written, f"{flag(name)}={written}")]
    assert getattr(Settings(), name) != read, "the test needs a value that is not the default"
    assert str(getattr(read_settings(Settings, flags), name)) == str(read)
    monkeypatch.setenv(f"EMG_{name}", written)
    assert str(getattr(read_settings(Settings, []), name)) == str(read)


def test_a_flag_beats_a_variable_and_a_variable_the_default(monkeypatch):
    assert read_settings(Settings, []).NUM_EPOCHS == Settings().NUM_EPOCHS
    monkeypatch.setenv("EMG_NUM_EPOCHS", "51")
    assert read_settings(Settings, []).NUM_EPOCHS == 51
    assert read_settings(Settings, ["--num-epochs", "3"]).NUM_EPOCHS == 3


def test_a_list_of_negative_numbers_needs_no_trick():
    """Like the default, 0,−1,−9, but written the way every other list is written."""
    given = read_settings(Settings, ["--sweep-num-layers", "-1,-3"])
    assert given.SWEEP_NUM_LAYERS == [-1, -3]


@pytest.mark.parametrize("flags", WRONG)
def test_a_wrong_value_is_named_with_its_legal_range(flags):
    named, legal = WRONG[flags]
    with pytest.raises(EMGError) as error:
        read_settings(Settings, flags.split())
    message = str(error.value)
    assert message.startswith(named)
    assert legal in message
    assert "\n" not in message


def test_a_wrong_variable_is_named_with_its_value(monkeypatch):
    monkeypatch.setenv("EMG_DROPOUT", "1")
    with pytest.raises(EMGError, match=r"^DROPOUT = 1: .*EMG_DROPOUT.*0 ≤ x < 1"):
        read_settings(Settings, [])


def test_all_wrong_values_are_named_at_once():
    with pytest.raises(EMGError) as error:
        read_settings(Settings, ["--num-epochs", "0", "--lr", "5"])
    assert "NUM_EPOCHS = 0" in str(error.value)
    assert "LR = 5" in str(error.value)


@pytest.mark.parametrize("argument", ["--num-epochs", "--sweep=maybe"])
def test_a_flag_used_the_wrong_way_is_named(argument):
    with pytest.raises(EMGError, match=argument.partition("=")[0]):
        read_settings(Settings, [argument])


def test_an_unknown_variable_is_named_with_the_nearest(monkeypatch):
    monkeypatch.setenv("EMG_WINDOW_SM", "200")
    with pytest.raises(EMGError, match=r"EMG_WINDOW_SM: .*did you mean EMG_WINDOW_MS\?"):
        read_settings(argv=[])


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_refuse_a_wrong_value(script):
    done = run(script, "nowhere", "--num-epochs", "0") if script == "Preprocessing.py" else run(script, "--lr", "5")
    assert (done.returncode, done.stdout) == (1, "")
    assert re.match(rf"{script}: (NUM_EPOCHS = 0|LR = 5): .*x (≥|≤) 1", one_sentence(done.stderr))


def test_preprocessing_asks_for_a_recording():
    with pytest.raises(EMGError, match=r"^nothing was given for FOLDER: write .* FOLDER;"):
        read_settings(PreprocessingSettings, [])


# ---- a file of settings ---------------------------------------------------------------------------------------


def read_file(path, text: str, *argv: str):
    path.write_text(text, encoding="utf-8")
    return read_settings(argv=["--settings", str(path), *argv])


def test_a_file_of_settings_goes_before_env_py_and_after_flags_and_variables(env_file, tmp_path, monkeypatch):
    env_file("NUM_EPOCHS = 5\nSEED = 7\nLR = 0.1\nFILTERS = 3\n")
    text = 'NUM_EPOCHS = 6\nSEED = 0\nLR = 0.2\nCLASS_NAMES = { 0 = "rest", 1 = "fist" }\nTRAIN_ON = ["01/*", "02/*"]\n'
    monkeypatch.setenv("EMG_NUM_EPOCHS", "8")
    settings = read_file(tmp_path / "a.toml", text, "--lr", "0.3")
    assert (settings.NUM_EPOCHS, settings.LR, settings.FILTERS) == (8, 0.3, 3)
    assert settings.SEED == 0  # the default, but written down: ENV.py does not count
    assert (settings.CLASS_NAMES, settings.TRAIN_ON) == ({0: "rest", 1: "fist"}, ["01/*", "02/*"])
    assert settings.given == {"NUM_EPOCHS", "SEED", "LR", "CLASS_NAMES", "TRAIN_ON"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("NUM_EPOCHS = 0", "NUM_EPOCHS = 0: should be greater than or equal to 1 (FILE: Passes"),
        ('TOKENS = ["powr"]', "TOKENS = powr: there is no tokeniser powr (did you mean power?)"),
        ("num_epoch = 5", "FILE: there is no setting num_epoch (did you mean NUM_EPOCHS?)"),
        ("[training]\nLR = 0.1", "FILE: there is no setting training"),
        (
            "SEED = 1\nLR = x",
            "FILE: the settings cannot be read (Invalid value (at line 2, column 6)); write NAME",
        ),
    ],
)
def test_a_wrong_file_of_settings_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "a.toml"
    with pytest.raises(EMGError) as found:
        read_file(path, text)
    assert str(found.value).startswith(sentence.replace("FILE", str(path)))
    with pytest.raises(EMGError, match=r"b\.toml: the settings cannot be read \(.*No such file"):
        read_settings(argv=["--settings", str(tmp_path / "b.toml")])


def test_a_flag_replaces_a_wrong_value_of_the_file_and_is_blamed_for_its_own(tmp_path):
    assert read_file(tmp_path / "a.toml", "LR = 7", "--lr", "0.5").LR == 0.5
    with pytest.raises(EMGError, match=r"^LR = 7: .* \(ENV.py, --lr or EMG_LR: "):
        read_file(tmp_path / "a.toml", "LR = 0.5", "--lr", "7")


def test_a_runs_env_json_gives_its_settings_but_not_its_places(env_file, tmp_path):
    env_file("SEED = 7\nRUN_DIR = 'mine'\n")
    own = Settings(NUM_EPOCHS=3, RUN_DIR="runs/a", RESUME="runs/a", MODEL_SAVING_DIR="models/a", CLASS_NAMES={1: "a"})
    settings = read_file(tmp_path / "env.json", own.model_dump_json())
    assert settings.model_dump() == (
        own.model_dump() | {"RUN_DIR": Path("mine"), "RESUME": None, "MODEL_SAVING_DIR": None}
    )
    assert settings.given == {"NUM_EPOCHS", "CLASS_NAMES"}  # evaluate sets SEED itself, and may have this file
    with pytest.raises(EMGError, match=r"env.json: these are no settings; name a run's env.json"):
        read_file(tmp_path / "env.json", "[1]")
