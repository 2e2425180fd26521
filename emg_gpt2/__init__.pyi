# The public names of the package, and the modules that they come from.

from EMG_DATA_LOADER import read_emg as read_emg
from emg_gpt2.base.errors import EMGError as EMGError
from emg_gpt2.base.registry import HEADS as HEADS
from emg_gpt2.base.registry import TOKENISERS as TOKENISERS
from emg_gpt2.live.decisions import REJECTED as REJECTED
from emg_gpt2.live.decisions import Classifier as Classifier
from emg_gpt2.live.decisions import Smoother as Smoother
from emg_gpt2.live.decisions import load_for_decisions as load_for_decisions
from emg_gpt2.live.references import FixedReference as FixedReference
from emg_gpt2.live.references import RunningReference as RunningReference
from emg_gpt2.live.signals import CausalPath as CausalPath
from emg_gpt2.model.build import load_model as load_model
from emg_gpt2.model.config import EMGConfig as EMGConfig
from emg_gpt2.model.model import EMGForSequenceClassification as EMGForSequenceClassification
from emg_gpt2.model.normalise import Reference as Reference
from emg_gpt2.model.normalise import measure_reference as measure_reference
from emg_gpt2.model.tokens import Tokeniser as Tokeniser
from emg_gpt2.raw.putemg import read_recording as read_recording
from emg_gpt2.raw.recording import Recording as Recording
from emg_gpt2.settings import Settings as Settings
from emg_gpt2.settings import read_settings as read_settings
from emg_gpt2.windows.reading import WindowSet as WindowSet
from emg_gpt2.windows.reading import load_windows as load_windows

__version__: str
