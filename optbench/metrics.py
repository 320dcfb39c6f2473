"""Every metric that a run records: its name, unit, meaning, and which direction is better.

This is the one home of the names. Modules import a name from here (`metrics.SHARPNESS`); README's
table and `--help` are made from these entries (`python -m optbench.metrics` prints them). A probe
of a plug-in may record others: nothing is refused for not being listed.

Notation: L is the training loss, w the weights, H = ∇²L(w) its Hessian, λ₁ ≥ λ₂ ≥ … its
eigenvalues, g = ∇L(w), η the learning rate, d the last update.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from optbench.boundary.command_line import Command

Better = Literal["lower", "higher", ""]


@dataclass(frozen=True)
class Metric:
    """What a recorded number is.

    Attributes:
        name: `group/quantity`; a part in capitals, such as NAME or K, stands for any text.
        unit: Unit, "1" for a pure number.
        meaning: Definition in a line.
        better: Direction that a good optimizer moves it in; "" where there is none.
        clock: Whether the clock says it, so that it is not the same in every run.
    """

    name: str
    unit: str
    meaning: str
    better: Better = ""
    clock: bool = False


METRICS: dict[str, Metric] = {}
"""All metrics by name, in the order of README's table."""


def _metric(name: str, unit: str, meaning: str, better: Better = "", *, clock: bool = False) -> str:
    METRICS[name] = Metric(name, unit, meaning, better, clock)
    return name


CURVATURE = "loss/parameter²"

TRAIN_LOSS = _metric("train/loss", "loss", "mean over the training split, in eval mode", "lower")
TRAIN_ERROR = _metric("train/error", "share", "misclassified, training split", "lower")
VAL_LOSS = _metric("val/loss", "loss", "mean over the validation split, in eval mode", "lower")
VAL_ERROR = _metric("val/error", "share", "misclassified, validation split", "lower")
TEST_LOSS = _metric("test/loss", "loss", "mean over the test split, in eval mode", "lower")
TEST_ERROR = _metric("test/error", "share", "misclassified, test split", "lower")
GAP_LOSS = _metric("gap/loss", "loss", "generalization gap: test/loss − train/loss", "lower")
GAP_ERROR = _metric("gap/error", "share", "generalization gap: test/error − train/error", "lower")
BATCH_LOSS = _metric(
    "batch/loss", "loss", "mean loss of the batches trained on since the last record", "lower"
)

SHARPNESS = _metric(
    "sharpness/lambda_max",
    CURVATURE,
    "λ₁(H), every module in the mode that it trains in, no augmentation",
)
SHARPNESS_BOUND = _metric(
    "sharpness/lambda_max_bound",
    CURVATURE,
    "λ₁ exceeds lambda_max by at most this, unless a larger one was lost (cold audits look for it)",
)
SHARPNESS_HELD_OUT = _metric(
    "sharpness/held_out",
    CURVATURE,
    "uᵀH'u of as many other examples; between it and lambda_max is λ₁ of all, on average",
)
SHARPNESS_HELD_OUT_ERROR = _metric(
    "sharpness/held_out_error", CURVATURE, "standard error of it over the choice of examples"
)
SHARPNESS_K = _metric("sharpness/lambda_K", CURVATURE, "λ_K(H), for K = 2, 3, …")
SHARPNESS_HVPS = _metric("sharpness/hvps", "products", "Hessian-vector products that it took")
SHARPNESS_SOLVED = _metric(
    "sharpness/solved", "0 or 1", "0 where the last vectors were held, at a product or two"
)
SHARPNESS_CONVERGED = _metric(
    "sharpness/converged", "0", "recorded where a search ended at its limit of products"
)
SHARPNESS_SECONDS = _metric("sharpness/seconds", "s", "time that it took", clock=True)

EDGE_THRESHOLD = _metric(
    "edge/threshold",
    CURVATURE,
    "where the optimizer loses stability: 2/η for SGD, 38/η on P⁻¹H for Adam",
)
EDGE_DISTANCE = _metric(
    "edge/distance", "1", "measured / threshold, 1 at the edge; absent until P has settled"
)
EDGE_HELD_OUT = _metric(
    "edge/held_out",
    "1",
    "edge/distance along the same direction on as many other training examples",
)
EDGE_HELD_OUT_ERROR = _metric(
    "edge/held_out_error", "1", "standard error of it over the choice of examples"
)
EDGE_LR = _metric("edge/lr", "lr", "learning rate that the threshold is for")
PRECONDITIONED_SHARPNESS = _metric(
    "edge/preconditioned_sharpness", CURVATURE + " / unit of P", "λ₁(P^-½ H P^-½)"
)
PRECONDITIONED_BOUND = _metric(
    "edge/preconditioned_bound", CURVATURE + " / unit of P", "error bound of it, as of lambda_max"
)
PRECONDITIONED_K = _metric(
    "edge/preconditioned_lambda_K", CURVATURE + " / unit of P", "λ_K(P^-½ H P^-½), K = 2, 3, …"
)
NORM_SHARPNESS = _metric(
    "edge/norm_sharpness", "loss", "max dᵀHd over a ball in max or spectral norm, from below"
)
EDGE_SOLVED = _metric("edge/solved", "0 or 1", "as sharpness/solved, of P^-½ H P^-½")
EDGE_CONVERGED = _metric("edge/converged", "0", "as sharpness/converged, of P^-½ H P^-½")
EDGE_HVPS = _metric("edge/hvps", "products", "Hessian-vector products that it took")
EDGE_SECONDS = _metric("edge/seconds", "s", "time that it took", clock=True)

MULTIPLIER = _metric(
    "edge/multiplier",
    "1",
    "Re μ of the training map's oscillating eigenvalue: −1 at any optimizer's edge",
)
MULTIPLIER_MODULUS = _metric(
    "edge/multiplier_modulus", "1", "|μ|: growth of a small oscillation per step, 1 at the edge"
)
MULTIPLIER_ANGLE = _metric("edge/multiplier_angle", "1", "|arg μ|/π: 1 for period two")
MULTIPLIER_RESIDUAL = _metric(
    "edge/multiplier_residual", "1", "‖Jy − μy‖ for its unit vector y in scaled coordinates"
)
MULTIPLIER_ORBIT = _metric(
    "edge/multiplier_orbit", "1", "|μ| per step of the same mode over a period of the orbit"
)
MULTIPLIER_GROWTH = _metric(
    "edge/multiplier_growth", "1", "‖J_k y‖^(1/k): growth per step of its vector along k steps"
)
MULTIPLIER_DISTANCE = _metric(
    "edge/multiplier_distance",
    "1",
    "1/c, where at c times the learning rate |μ| is 1; 1 at the edge",
)
ALTERNATION = _metric(
    "edge/alternation", "parameter", "‖z‖ of the weights: ±z is what alternates from step to step"
)
ALTERNATION_PREDICTED = _metric(
    "edge/alternation_predicted", "parameter", "‖z‖ at which gain times curvature is one"
)
MULTIPLIER_PRODUCTS = _metric(
    "edge/multiplier_products", "products", "Jacobian products that it took, two updates each"
)
MULTIPLIER_SECONDS = _metric("edge/multiplier_seconds", "s", "time that it took", clock=True)

WEIGHT_NORM = _metric("layers/NAME/weight_norm", "parameter", "‖w‖ of a layer")
GRADIENT_NORM = _metric("layers/NAME/gradient_norm", "loss/parameter", "‖g‖ of a layer")
UPDATE_NORM = _metric("layers/NAME/update_norm", "parameter", "‖d‖ of a layer")
ANGLE = _metric("layers/NAME/angle", "radian", "angle between a layer's w before and after d")

UPDATE_SHARPNESS = _metric("update/sharpness", CURVATURE, "dᵀHd/‖d‖²")
GRADIENT_SHARPNESS = _metric("update/gradient_sharpness", CURVATURE, "gᵀHg/‖g‖²")
UPDATE_SLOPE = _metric("update/slope", "loss", "g·d")
LOSS_CHANGE = _metric("update/loss_change", "loss", "L(w + d) − L(w)")
PREDICTED_CHANGE = _metric("update/predicted_change", "loss", "g·d + ½dᵀHd")
CRITICAL_STEP = _metric("update/critical_step", "1", "least κ with L(w + κd) > L(w)")
CRITICAL_SHARPNESS = _metric("update/critical_sharpness", CURVATURE, "2/(κη)")
CRITICAL_FORWARDS = _metric("update/critical_forwards", "passes", "forward passes that it took")

SHARPENING_RATE = _metric("sharpening/rate", "λ₁ per unit of flow time", "−g·∇λ₁")
STABILIZATION = _metric("sharpening/stabilization", "λ₁²/parameter²", "‖∇λ₁‖²")

BATCH_SHARPNESS = _metric("batch/sharpness", CURVATURE, "E_B[g_BᵀH_Bg_B/‖g_B‖²]")
INTERACTION = _metric("batch/interaction", CURVATURE, "E_B[g_BᵀHg_B]/‖g‖²")
INTERACTION_AWARE = _metric(
    "batch/interaction_aware_sharpness", CURVATURE, "E_B[g_BᵀHg_B]/E_B‖g_B‖²"
)
BATCH_COUNT = _metric("batch/count", "batches", "batches that these means are over")
BATCH_SECONDS = _metric("batch/seconds", "s", "time that they took", clock=True)
NOISE_SCALE = _metric("noise/scale", "examples", "tr Σ/‖g‖²: batch size at which noise equals g")

TRACE = _metric("spectrum/trace", CURVATURE, "tr H")
LAMBDA_MIN = _metric("spectrum/lambda_min", CURVATURE, "upper bound of the smallest eigenvalue")
NODES = _metric("spectrum/nodes", CURVATURE, "nodes of the spectral density's quadrature")
WEIGHTS = _metric("spectrum/weights", "1", "weights of its nodes, sum 1")
HETEROGENEITY = _metric(
    "spectrum/heterogeneity", "0 to 1", "mean Jensen–Shannon distance between layers' spectra"
)
SPECTRUM_HVPS = _metric("spectrum/hvps", "products", "Hessian-vector products that it took")
SPECTRUM_SECONDS = _metric("spectrum/seconds", "s", "time that it took", clock=True)

GRADIENTS = _metric("cost/gradients", "gradients", "batch gradients evaluated so far", "lower")
TRAIN_SECONDS = _metric("time/train_seconds", "s", "time in training so far", "lower", clock=True)
PROBE_SECONDS = _metric("time/probe_seconds", "s", "time in measuring so far", clock=True)

MEASURED_AT_THE_EDGE = {
    PRECONDITIONED_SHARPNESS: "preconditioned sharpness",
    NORM_SHARPNESS: "norm sharpness",
    SHARPNESS: "sharpness",
}
"""What a threshold may be on, the most specific first, and its name for a reader."""

NEXT_EIGENVALUES = {SHARPNESS: SHARPNESS_K, PRECONDITIONED_SHARPNESS: PRECONDITIONED_K}
"""What λ_2, λ_3, … beside a λ_1 are called."""

LOW, HIGH = "_low", "_high"
"""What the ends of a 95 % interval add to the name of their metric."""


def numbered(name: str, k: int) -> str:
    """Name with a number for its K, such as `sharpness/lambda_2`."""
    return name.removesuffix("K") + str(k)


def threshold_is_on(records: Iterable[Mapping[str, Any]]) -> str:
    """Metric that a run's `edge/threshold` is on; both stand in one record.

    A thinned sharpness has no threshold of its own.
    """
    seen = set[str]()
    for record in records:
        if EDGE_THRESHOLD in record:
            seen |= record.keys() & MEASURED_AT_THE_EDGE.keys()
    return next((metric for metric in MEASURED_AT_THE_EDGE if metric in seen), SHARPNESS)


def distance_on_others(record: Mapping[str, Any]) -> tuple[float, float]:
    """`edge/distance` along the same direction on other examples, and its standard error.

    Of an edge on λ₁ itself these are of `sharpness/held_out`. NaN where it was not measured.
    """
    on_lambda = threshold_is_on([record]) == SHARPNESS
    unit = record.get(EDGE_THRESHOLD, math.nan) if on_lambda else 1.0
    names = EDGE_HELD_OUT, EDGE_HELD_OUT_ERROR
    if on_lambda:
        names = SHARPNESS_HELD_OUT, SHARPNESS_HELD_OUT_ERROR
    if not unit > 0:
        return math.nan, math.nan
    value, error = (record.get(name, math.nan) / unit for name in names)
    return value, error


def others_deny(distance: float, others: float, error: float) -> bool:
    """Whether the distance of others is below one of few examples by over two standard errors.

    False where that of others is NaN, not known.
    """
    return others + 2 * error < distance


def of(split: str, quantity: str) -> str:
    """Name of a loss or an error of a split, such as `val/loss`, or of their gap."""
    return f"{split}/{quantity}"


def of_layer(name: str, metric: str) -> str:
    """Name with a layer's for its NAME, such as `layers/head/angle`."""
    return metric.replace("NAME", name, 1)


def described(name: str, metrics: Mapping[str, Metric] = METRICS) -> Metric | None:
    """Entry of a recorded name, whatever stands for its capitals; None for a plug-in's own."""
    if name in metrics:
        return metrics[name]
    for ending in (LOW, HIGH):
        if name.endswith(ending) and (inner := described(name.removesuffix(ending), metrics)):
            return inner
    for metric in metrics.values():
        pattern = re.sub(r"\b_?NAME\b|(?<=_)K$", ".+", re.escape(metric.name).replace(r"\/", "/"))
        if pattern != re.escape(metric.name) and re.fullmatch(pattern, name):
            return metric
    return None


HEADLINES = (
    TRAIN_LOSS,
    TEST_ERROR,
    GAP_ERROR,
    BATCH_LOSS,
    SHARPNESS,
    SHARPNESS_BOUND,
    EDGE_THRESHOLD,
    EDGE_DISTANCE,
    PRECONDITIONED_SHARPNESS,
    NORM_SHARPNESS,
    WEIGHT_NORM,
    GRADIENTS,
)
"""Metrics that README names; docs/metrics.md has all of them."""


def table(names: Iterable[str] = METRICS) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield "| metric | unit | is |"
    yield "|---|---|---|"
    for metric in (METRICS[name] for name in names):
        better = f"; {metric.better} is better" if metric.better else ""
        yield f"| `{metric.name}` | {metric.unit} | {metric.meaning}{better} |"


@dataclass(frozen=True)
class Settings:
    """Print every metric that a run records: its name, unit and meaning."""


COMMAND = Command("optbench.metrics", Settings)


def show(_: Settings) -> int:
    """Print every metric, a line each, and return the exit code."""
    width = max(map(len, METRICS))
    for metric in METRICS.values():
        print(f"{metric.name:{width}}  [{metric.unit}]  {metric.meaning}")
    return 0


def main() -> None:
    """Print every metric."""
    COMMAND.run(show)


if __name__ == "__main__":
    main()
