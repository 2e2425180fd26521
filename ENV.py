"""The settings that people edit: plain constants, read by Preprocessing.py, main.py and `python -m emg_gpt2`.

Every constant is also a flag and an environment variable for one run: NUM_EPOCHS, --num-epochs, EMG_NUM_EPOCHS.
`python main.py --help` explains them at length.
"""

# ---- files and folders
DATA_LOCATION = "EMG_03_data.parquet"  # windows file: Preprocessing.py writes it, main.py reads it
RUN_DIR = None  # folder of the results, new or empty; None: runs/DATE-TIME
RESUME = None  # folder of an interrupted run to go on with
MODEL_SAVING_DIR = None  # folder that gets the finished model too; None: it stays in the run's best_model/
DOWNLOAD_URL = "https://chmura.put.poznan.pl/s/45NY5snj0U4tgQz/download?path=%2F"  # where putEMG lies

# ---- the machine (no effect on results)
MEMORY_GB = 8.0  # GB of windows that are held in memory, more go into a mapped file; at least 0
WORKERS = 1  # processes that preprocess side by side, 1.5 GB each; at least 1
CLUSTER = ""  # address of a Dask scheduler that preprocesses instead (tcp://host:port)
TRACKER = "tensorboard"  # log of the curves: "tensorboard", "wandb", "mlflow" or "none"
FIGURE_FORMAT = "png"  # of every picture: "png", "pdf" or "svg"

# ---- windows (read by Preprocessing.py alone; a model remembers them)
FILTER = "putemg"  # "putemg": the data set's own, zero-phase; "causal": for real time; "none"
BAND_HZ = (20.0, 700.0)  # Hz, pass band; above a recording's Nyquist frequency only the low edge is used
SAMPLE_RATE = 1000.0  # Hz to resample to; a slower recording keeps its rate; 100 to 1e6
WINDOW_MS = 250.0  # ms, length of a window; up to 10000
STRIDE_MS = 125.0  # ms from one window to the next; up to 10000
TRIM_START_MS = 250.0  # ms dropped from the start of every repetition, where label and muscle disagree; 0 to 1e6
TRIM_END_MS = 250.0  # ms dropped from the end of every repetition; 0 to 1e6
LEGAL_VALUES = []  # labels to keep, each 0 to 127; empty: all (−1 is never a class)

# ---- labels (read by Preprocessing.py alone)
CLASS_NAMES = {}  # {0: "rest", 1: "fist"}, every label's; empty: putEMG's for its recordings, numbers for others
DATA_NOTE = ""  # a sentence on the origin of the data, shown with every result

# ---- data
SAMPLING_RATIO = 1.0  # share of the training windows to use; above 0, up to 1
BALANCE = "weights"  # against many idle windows: "weights" in the loss, "undersample" or "none"

# ---- split
SPLIT = "trajectory"  # held out: "trajectory" (recordings), "repetition", "session" (later days), "subject", "random"
TEST_SHARE = 0.3  # share of the groups that are held out; between 0 and 1
VALIDATION_SHARE = 0.2  # share of the training part's groups that choose the best epoch; between 0 and 1
FOLD = 0  # which fold is held out, from 0
TRAIN_ON = []  # patterns over subject/session/recording that name the training part, such as "01/2018-01-01/*"
TEST_ON = []  # patterns that name the test part

# ---- model
MODEL_NAME = "gpt2"  # backbone: a language model on the hub (gpt2, Qwen/Qwen2.5-0.5B, …), "smollm2" or a local folder
PRETRAINED = "auto"  # its weights: "auto" where they can be had, "require", "never" (random), "shuffled" (a control)
BLOCKS = 2  # blocks of the backbone to keep, from the first; at least 0
NUM_LAYERS = -9  # −n adapts the last n blocks, of the others the norms alone train; at most 0
ADAPT = "full"  # what trains of them: "full" (all), "norms", "lora" (low-rank updates and norms), "frozen" (nothing)
FREEZE = False  # also freeze tokenisers and norms below the trained blocks, and compute them once
CONTEXT = 0  # windows of the session that the model reads before the one it judges, and the gestures it is told
SCALE = "training"  # windows are measured against the "training" part or (transductive) all of their own "session"
LINEAR_PATH = True  # add the logits of a linear classifier on log covariances
TOKENS = ["covariance", "power"]  # kinds of tokens, of "covariance", "power", "bands", "raw", or your own
PATCH_MS = 50.0  # ms, length of a patch; a window holds at least two
FILTERS = 16  # filters of the "power" tokens; 1 to 256
FILTER_MS = 25.0  # ms, length of those filters; above 0
HEAD = "linear"  # from hidden states to logits: "linear", or your own
DROPOUT = 0.1  # from 0 to below 1

# ---- training
NUM_EPOCHS = 8  # passes over the training part, at least 1
PATIENCE = 4  # stop after so many epochs without a lower loss on the validation part; at least 1
REFIT = True  # then train anew on training and validation part together
BATCH_SIZE = 64  # windows per step, at least 1
LR = 3e-4  # peak learning rate; above 0, up to 1
WEIGHT_DECAY = 0.05  # of the matrices; at least 0
WARMUP = 0.1  # share of the steps over which the learning rate rises; from 0 to below 1
NOISE = 0.5  # on the log covariances in training, in standard deviations; at least 0
RING = 8  # electrodes in a ring, consecutive channels; at least 1
ROTATION = 0  # turn the rings by up to ± so many electrodes in training; at least 0
CLIP = 1.0  # largest norm of the gradient; above 0
PRECISION = "auto"  # "auto", "fp32" or "bf16"; auto takes bfloat16 where it is faster
COMPILE = False  # compile the backbone: a minute at the start, worth it for long training on a GPU
DETERMINISTIC = False  # the same result run after run on a GPU too, from slower algorithms
SEED = 0  # of weights, data order and splits; 0 to 2³¹ − 1

# ---- validation loop
SWEEP = False  # first try settings on the validation part, then train with the best
SWEEP_SPACE = "grid"  # "grid": every SWEEP_NUM_LAYERS × SWEEP_LR; "wide": SWEEP_TRIALS trials over ten settings
SWEEP_TRIALS = 40  # trials of the wide search, at least 1
SWEEP_STUDY = None  # file of the trials, which machines may share; None: sweep.journal in the run's folder
SWEEP_NUM_LAYERS = [0, -1, -9]  # values of NUM_LAYERS to try, each at most 0
SWEEP_LR = [1e-4, 3e-4, 1e-3]  # values of LR to try, each above 0, up to 1
NUM_EPOCHS_FOR_VALIDATION = 3  # epochs of each trial, at least 1
