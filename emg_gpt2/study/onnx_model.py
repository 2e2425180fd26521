"""The model as an ONNX file: float32, with its description inside, and with the backbone's matrices in eight bits."""

import contextlib
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.onnx_model import ONNXModel
from torch import nn

from emg_gpt2.base.errors import EMGError
from emg_gpt2.model.backbone import BLOCK_WEIGHTS, run_lower, run_upper
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import SHRINKAGE, SPREAD_FLOOR, Reference, normalise
from EMG_utils import versions

ROOTS = 2  # square roots taken before the series: with 16 of its terms the fewest products for 1 to 64 channels
TERMS = 16
CLOSE = 1e-9  # relative error of a root's eigenvalues, at the most; the next product would square it
LARGEST = 2**31 - 1  # bytes of an ONNX file

INPUTS = {
    "emg": "(batch, window, channels) float32: windows in `unit`, filtered and resampled as `preprocessing` says",
    "scale": "(1 or batch, channels): standard deviation of each channel in the session; default: training part's",
    "centre": "(1 or batch, pairs): mean of log_covariance over the session's windows; default: training part's",
    "spread": f"(1 or batch, pairs): its standard deviation, at least {SPREAD_FLOOR}; default: training part's",
}
OUTPUTS = {
    "logits": "(batch, classes), in the order of class_codes",
    "probabilities": "(batch, classes)",
    "log_covariance": "(batch, pairs): of windows over `scale`; over a session they give centre and spread",
}


# ---- the model of operators that ONNX has -----------------------------------------------------------------------


class Exported(nn.Module):
    """Windows and what they are measured against → logits, probabilities and log covariances of the scaled windows."""

    def __init__(self, model: EMGForSequenceClassification):
        super().__init__()
        self.model = model

    def forward(self, emg: torch.Tensor, scale: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor) -> tuple:
        """emg (B, T, C); the others one row, or one per window."""
        model, reference = self.model, Reference(scale, centre, spread)
        signal, covariance = normalise(emg, reference, logarithm_by_products)
        hidden = run_lower(model.backbone, model.tokenise(signal, covariance), blocks=0)  # (B, P, D)
        hidden = run_upper(model.backbone, hidden, first=0)
        logits = model.classify_hidden(hidden, model.linear_logits(covariance))
        return logits, logits.softmax(1), covariance * spread + centre


def logarithm_by_products(matrices: torch.Tensor) -> torch.Tensor:
    """The logarithm of `normalise.matrix_logarithm` (B, C, C) without eigenvectors, for which ONNX has no operator.

    Inverse scaling and squaring (Higham, Functions of Matrices, SIAM 2008, section 11.5): over their trace, the
    matrices have eigenvalues of 1/condition to 1, because shrinkage leaves none below SHRINKAGE of the mean variance.
    Their fourth roots B, times condition^(1/8), lie around the identity: log B = arsinh((B − B⁻¹)/2), by a polynomial.
    """
    channels = matrices.shape[1]
    condition = channels * (1 + SHRINKAGE) / SHRINKAGE
    identity = torch.eye(channels, dtype=matrices.dtype)
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    root, smallest = matrices / trace, 1 / condition
    for _ in range(ROOTS):
        root, inverse = square_roots(root, identity, smallest)
        smallest = math.sqrt(smallest)
    middle = math.log(condition) / 2 ** (ROOTS + 1)  # of the logarithms of the root's eigenvalues, which are negative
    sine = (math.exp(middle) * root - math.exp(-middle) * inverse) / 2
    logarithm = sine @ arsinh_over(sine @ sine, identity, math.sinh(middle)) - middle * identity
    return 2**ROOTS * logarithm + trace.log() * identity


def square_roots(matrices: torch.Tensor, identity: torch.Tensor, smallest: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Square roots of (B, C, C), and their inverses, where the eigenvalues lie between `smallest` and 1.

    The coupled Newton–Schulz iteration (Higham 2008, equation 6.35), each step scaled so that the eigenvalues still
    farthest from their place gain most (Chen and Chow, A stable scaling of Newton–Schulz, 2014): `low` is the smallest
    ratio of an eigenvalue to that of the true root, and tells how many steps it takes: nine for 24 channels, then six.
    """
    root, inverse, product, low = matrices, None, matrices, math.sqrt(smallest)  # the inverse starts as the identity
    while 1 - low > CLOSE:
        scale = 3 / (1 + low + low**2)
        step = math.sqrt(scale) / 2 * (3 * identity - scale * product)
        root, inverse = root @ step, step if inverse is None else step @ inverse
        product = inverse @ root
        low *= math.sqrt(scale) / 2 * (3 - scale * low**2)
    return root, inverse


def arsinh_over(squares: torch.Tensor, identity: torch.Tensor, largest: float) -> torch.Tensor:
    """arsinh(S) S⁻¹ from S² (B, C, C), where S has eigenvalues from −largest to largest: a Chebyshev interpolation."""

    def function(share: np.ndarray) -> np.ndarray:
        sine = largest * np.sqrt(share)
        return np.arcsinh(sine) / sine

    series = np.polynomial.Chebyshev.interpolate(function, TERMS, domain=[0, 1])
    *others, last = series.convert(kind=np.polynomial.Polynomial).coef.tolist()
    shares, found = squares / largest**2, last * identity
    for coefficient in reversed(others):
        found = found @ shares + coefficient * identity
    return found


# ---- float32 ----------------------------------------------------------------------------------------------------


def write_onnx(model: EMGForSequenceClassification, path: Path) -> None:
    """Write the model in float32; raises EMGError where it is too large for a file."""
    size = 4 * model.num_parameters()
    if size > LARGEST:
        raise EMGError(f"the model has {size / 1e9:.1f} GB, and an ONNX file holds 2 GB; train one with fewer BLOCKS")
    config = model.config
    program = to_onnx(model)
    for given in program.graph.input:
        given.type.tensor_type.shape.dim[0].dim_param = "batch" if given.name == "emg" else "references"
    for name, tensor in model.reference._asdict().items():  # an initialiser of an input's name is its default
        program.graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
    del program.graph.value_info[:]  # they say that there are as many references as windows
    program.doc_string = f"Gestures from surface EMG: {config.data_note}".strip(": ")
    onnx.helper.set_model_props(program, describe(model))
    onnx.checker.check_model(program)
    onnx.save(program, path)


def to_onnx(model: EMGForSequenceClassification) -> onnx.ModelProto:
    """Any number of windows, measured against as many references, which ONNX lets be a single one too."""
    config, count = model.config, 3
    windows = torch.zeros(count, config.window, len(config.channels))
    given = (windows, *(tensor.repeat(count, 1) for tensor in model.reference))
    batch = torch.export.Dim("batch", min=1, max=2**20)
    model.set_attn_implementation("eager")
    with quiet():
        program = torch.onnx.export(
            Exported(model).eval(),
            given,
            input_names=list(INPUTS),
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: batch},) * len(given),
            dynamo=True,
            verbose=False,
        )
    return program.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporters tell what they do, and which operators of other people's models they leave out."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def describe(model: EMGForSequenceClassification) -> dict[str, str]:
    """What a user of the file needs to know, by name; lists and tables as JSON."""
    config = model.config
    described = {name: getattr(config, name) for name in ("class_codes", "class_names", "channels", "sampling_rate")}
    described |= {name: getattr(config, name) for name in ("window", "unit", "preprocessing", "data_note", "weights")}
    described |= {name: getattr(config, name) for name in ("tokens", "patch", "linear_path", "backbone")}
    described |= {"inputs": INPUTS, "outputs": OUTPUTS}
    described["versions"] = versions() | {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in described.items()}


# ---- int8 -------------------------------------------------------------------------------------------------------


def write_int8(source: Path, path: Path) -> int:
    """Write the file `source` with the matrices of the backbone's blocks in eight bits; returns their number.

    Activations are quantised as they come. Tokenisers, head, linear path and log covariance stay as they are: they are
    a small part of the time, and powers span 60 dB. Weights have seven bits' range, because sums of full products
    overflow on processors without VNNI.
    """
    wrapped = ONNXModel(onnx.load(source))
    wrapped.replace_gemm_with_matmul()
    wrapped.clean_initializers()
    matrices = backbone_matrices(wrapped.model)
    if matrices:
        with quiet():
            quantize_dynamic(
                wrapped.model,
                path,
                nodes_to_quantize=matrices,
                op_types_to_quantize=["MatMul"],
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
            )
    return len(matrices)


def backbone_matrices(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that multiply by a weight of a block."""
    weights = {one.name for one in model.graph.initializer if BLOCK_WEIGHTS in one.name}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and weights & set(node.input)]


# ---- running ----------------------------------------------------------------------------------------------------


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """On the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, emg: torch.Tensor, reference: Reference) -> np.ndarray:
    """Logits (B, K) of windows (B, T, C)."""
    given = {"emg": emg.numpy()} | {name: tensor.numpy() for name, tensor in reference._asdict().items()}
    return session.run(["logits"], given)[0]
