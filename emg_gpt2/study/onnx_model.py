"""The model as ONNX files: in float32 with metadata, and with the backbone's matrices in eight bits."""

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
from emg_gpt2.base.versions import versions
from emg_gpt2.model.backbone import BLOCK_WEIGHTS, run_lower, run_upper
from emg_gpt2.model.model import EMGForSequenceClassification
from emg_gpt2.model.normalise import SHRINKAGE, SPREAD_FLOOR, Reference, normalise

ROOTS = 2  # square roots taken before the series: with 16 of its terms the fewest products for 1 to 64 channels
TERMS = 16
CLOSE = 1e-9  # largest relative error of a root's eigenvalues; one more step would square it
LARGEST = 2**31 - 1  # bytes of an ONNX file

INPUTS = {
    "emg": "(batch, window, channels) float32: windows in `unit`, filtered and resampled as `preprocessing` says",
    "scale": "(1 or batch, channels): standard deviation of each channel in the session; default: training part's",
    "centre": "(1 or batch, pairs): mean of log_covariance over the session's windows; default: training part's",
    "spread": f"(1 or batch, pairs): its standard deviation, at least {SPREAD_FLOOR}; default: training part's",
}
CONFIG_KEPT = (  # in the file's metadata
    *("class_codes", "class_names", "channels", "sampling_rate", "window", "unit", "preprocessing", "data_note"),
    *("weights", "tokens", "patch", "linear_path", "backbone"),
)
OUTPUTS = {
    "logits": "(batch, classes), in the order of class_codes",
    "probabilities": "(batch, classes)",
    "log_covariance": "(batch, pairs): of windows over `scale`; over a session they give centre and spread",
}


# ---- the model of operators that ONNX has -----------------------------------------------------------------------


class Exported(nn.Module):
    """Windows and their references → logits, probabilities and log covariances of the scaled windows."""

    def __init__(self, model: EMGForSequenceClassification):
        super().__init__()
        self.model = model

    def forward(self, emg: torch.Tensor, scale: torch.Tensor, centre: torch.Tensor, spread: torch.Tensor) -> tuple:
        """emg (B, T, C); reference: one row for all windows, or one per window."""
        model, reference = self.model, Reference(scale, centre, spread)
        signal, covariance = normalise(emg, reference, logarithm_by_products)
        hidden = run_lower(model.backbone, model.tokenise(signal, covariance), blocks=0)  # (B, P, D)
        hidden = run_upper(model.backbone, hidden, first=0)
        logits = model.classify_hidden(hidden, model.linear_logits(covariance))
        return logits, logits.softmax(1), covariance * spread + centre


def logarithm_by_products(matrices: torch.Tensor) -> torch.Tensor:
    """The logarithm of `normalise.matrix_logarithm` (B, C, C) without eigenvectors, for which ONNX has no operator.

    Inverse scaling and squaring (Higham, Functions of Matrices, SIAM 2008, section 11.5). Divided by their trace, the
    matrices have eigenvalues from 1/condition to 1, because shrinkage leaves none below SHRINKAGE of the mean variance.
    Their fourth roots B, times condition^(1/8), lie around the identity. There log B = arsinh((B − B⁻¹)/2), which a
    polynomial computes.
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

    The coupled Newton–Schulz iteration (Higham 2008, equation 6.35), with scaled steps (Chen and Chow, A stable scaling
    of Newton–Schulz, 2014). `low` is the smallest ratio of an eigenvalue to that of the true root. It decides the
    number of steps: for 24 channels nine for the first root and six for the second.
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
    """arsinh(S) S⁻¹ from S² (B, C, C) by a Chebyshev series, where S has eigenvalues from −largest to largest."""

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
    for name, tensor in model.reference._asdict().items():  # an initialiser with the name of an input is its default
        program.graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), name))
    del program.graph.value_info[:]  # they say that there are as many references as windows
    program.doc_string = f"Gestures from surface EMG: {config.data_note}".strip(": ")
    onnx.helper.set_model_props(program, metadata_of(model))
    onnx.checker.check_model(program)
    onnx.save(program, path)


def to_onnx(model: EMGForSequenceClassification) -> onnx.ModelProto:
    """Traced for any number of windows, and one reference per window; ONNX also allows one reference for all."""
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
    """Silence the exporters: they report each stage, and operators that this model does not have."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def metadata_of(model: EMGForSequenceClassification) -> dict[str, str]:
    """What a user of the file needs to know, by name; lists and dictionaries as JSON."""
    metadata = {name: getattr(model.config, name) for name in CONFIG_KEPT} | {"inputs": INPUTS, "outputs": OUTPUTS}
    metadata["versions"] = versions() | {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}


# ---- int8 -------------------------------------------------------------------------------------------------------


def write_int8(source: Path, path: Path) -> int:
    """Write the file `source` with the matrices of the backbone's blocks in eight bits; returns their number.

    Activations are quantised when the file runs. Tokenisers, head, linear path and log covariance stay in float32: they
    take a small part of the time, and powers span 60 dB. Weights use a range of seven bits, because the sums of
    eight-bit products overflow on processors without VNNI.
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
    weights = {one.name for one in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and weights & set(node.input)]
    return [node.name for node in products if is_in_block(node)]


def is_in_block(node: onnx.NodeProto) -> bool:
    """Whether its inputs or the scope that it was exported from name a block: a transposed weight has a new name."""
    return any(BLOCK_WEIGHTS.search(text) for text in (*node.input, *(one.value for one in node.metadata_props)))


# ---- running ----------------------------------------------------------------------------------------------------


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Load an ONNX file to run on the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_session(session: onnxruntime.InferenceSession, emg: torch.Tensor, reference: Reference) -> np.ndarray:
    """Logits (B, K) of windows (B, T, C)."""
    given = {"emg": emg.numpy()} | {name: tensor.numpy() for name, tensor in reference._asdict().items()}
    return session.run(["logits"], given)[0]
