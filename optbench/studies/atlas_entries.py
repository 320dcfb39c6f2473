"""Entries of the edge atlas: an optimizer, its settings, and the threshold it is compared with.

The learning rates are those that the rule of `choice` takes of the ones listed, on seed 0
(`choose=true`). It takes none for the control and for SGD in small batches, which come to no edge,
and for Shampoo, which starts at its own: these were chosen by hand.

The tolerances are those of small oscillations about a valley. Where runs are known not to keep to
theirs, the entry says so in `expected`, and why, as far as that is known; the `-m slow` test fails
when one changes sides.
"""

from dataclasses import dataclass
from importlib.util import find_spec

from optbench import metrics

STEPS, SHORT_STEPS = 3000, 2000
COMMON = (
    "task=digits",
    "model.widths=[32,32]",
    # odd: an oscillation of period two is then seen on both of its sides
    "probes.sharpness.every=21",
    "probes.generalization.every=200",
    "probes.layers=null",
    "wandb.mode=disabled",
)
CHOICE_SEED = 0
SEEDS = (1, 2, 3)
WITHIN, OUTSIDE, NOT_REACHED, OPEN = "within", "outside", "edge not reached", "open"


@dataclass(frozen=True)
class Entry:
    """One row of the atlas.

    Attributes:
        name: For the reader.
        overrides: Of the main job, beside the atlas's common ones.
        lrs: Learning rates that `choose=true` tries on `CHOICE_SEED`, ascending.
        lr: That of them which is reported.
        tolerance: Largest |measured/threshold − 1| of an established edge; None where none is
            established.
        expected: The verdict that is known, one of `WITHIN`, `OUTSIDE`, `NOT_REACHED` and `OPEN`.
        why: Why that is not `WITHIN`, or why the tolerance is not 5 %.
        key: The override that the learning rate goes to.
        mean: Whether the threshold holds on time average only: compare means, not the median of
            ratios.
        metric: What is compared with `factor`/lr instead of what the edge probe compares, if
            anything.
        factor: Threshold · lr of `metric`.
        needs: Package that the optimizer is from, if not a dependency.
    """

    name: str
    overrides: tuple[str, ...]
    lrs: tuple[float, ...]
    lr: float
    tolerance: float | None = 0.05
    expected: str = WITHIN
    why: str = ""
    key: str = "optimizer.lr"
    mean: bool = False
    metric: str | None = None
    factor: float = 2.0
    needs: str | None = None

    def command(self, lr: float, seed: int, short: bool = False) -> list[str]:
        """The overrides of one run."""
        steps = SHORT_STEPS if short else STEPS
        own = {o.split("=")[0] for o in self.overrides}
        given = [o for o in COMMON if o.split("=")[0] not in own]
        return [
            *self.overrides[:1],
            *given,
            f"{self.key}={lr:g}",
            f"steps={steps}",
            *self.overrides[1:],
            f"seed={seed}",
        ]

    @property
    def available(self) -> bool:
        """Whether the package that it needs is installed."""
        return self.needs is None or find_spec(self.needs) is not None


SAM = ("optimizer=sam", "optimizer.rho=0.05")
CLOSE_SAM = ("optimizer=sam", "optimizer.rho=0.02")
BATCHES = (
    "+probes.batch_sharpness._target_=optbench.probes.batch_sharpness.BatchSharpness",
    "+probes.batch_sharpness.every=105",
    "+probes.batch_sharpness.size=${batch_size}",
    "+probes.batch_sharpness.batches=64",
)
SPECTRAL = ("optimizer=steepest", "optimizer.norm=spectral")
ELSEWHERE = "pytorch_optimizer"
CROWDED = (
    "several eigenvalues are at the edge, in finite oscillations that mix them: λ₁, "
    "the largest, is above 1"
)
OVERSHOT = (
    "the fast start overshoots the edge and leaves the network flat; "
    "at a loss near .001 little sharpens it again"
)
RATCHET = (
    "P never shrinks, so that after a spike it takes long to come back; at a loss "
    "near .001 little sharpens"
)
GEOMETRY = "norm sharpness is a lower bound, and its maximizer jumps from corner to corner"
ABOVE = (
    "λ₁ sits above by more the larger ρ is (.005: 2 %, .02: 3.5 %, .1: 8 %): the "
    "gradient is from ρ away, λ₁ is not"
)
ROUGH = (
    "steps of one size do not let the loss below .07, and one seed of three rises to "
    "1.3 late; not explained"
)
LEAVING = (
    "at the edge up to step 1000, then slowly below it at a loss under .01; twice "
    "the products find no more"
)
CONTROL = "a control: not to be reached"
NOISE = "noise keeps the weights where they are flat, on digits"
ONE_SOURCE = "2(1−β)/η of small batches, one source (2604.14108), not seen on digits"
UNKNOWN = "no threshold is established"
ATLAS = (
    Entry("gradient descent", ("optimizer=sgd",), (0.15, 0.3), 0.15),
    Entry(
        "gradient descent (small step)",
        ("optimizer=sgd",),
        (0.02,),
        0.02,
        None,
        NOT_REACHED,
        CONTROL,
    ),
    Entry("GD with L2", ("optimizer=sgd", "optimizer.weight_decay=0.001"), (0.15, 0.3), 0.15),
    Entry("heavy ball β=.9", ("optimizer=momentum",), (0.15, 0.3), 0.3, 0.05, OUTSIDE, OVERSHOT),
    Entry("heavy ball β=.5", ("optimizer=momentum", "optimizer.momentum=0.5"), (0.2, 0.4), 0.2),
    Entry("Nesterov", ("optimizer=nesterov",), (0.04, 0.08), 0.08),
    Entry("RMSprop", ("optimizer=rmsprop",), (5e-5, 1e-4), 1e-4, 0.12, why=CROWDED),
    Entry("Adam", ("optimizer=adam",), (1e-3, 2e-3), 2e-3),
    Entry("AMSGrad", ("optimizer=amsgrad",), (2e-3, 4e-3), 4e-3, 0.05, OUTSIDE, RATCHET),
    Entry("AdamW", ("optimizer=adamw",), (1e-3, 2e-3), 2e-3),
    Entry("NAdam", ("optimizer=nadam",), (5e-4, 1e-3), 5e-4, 0.12, why=CROWDED),
    Entry("RAdam", ("optimizer=radam",), (2e-3, 4e-3), 4e-3),
    Entry("Adamax", ("optimizer=adamax",), (4e-3, 8e-3), 8e-3),
    Entry("Adagrad", ("optimizer=adagrad",), (5e-3, 1e-2), 5e-3),
    Entry("Adadelta", ("optimizer=adadelta",), (0.25, 0.5, 1.0), 0.25, 0.05, OUTSIDE, CROWDED),
    Entry(
        "Adafactor", ("optimizer=adafactor",), (2.5e-3, 5e-3, 1e-2), 2.5e-3, 0.05, OUTSIDE, CROWDED
    ),
    Entry("SAM over GD", SAM, (0.15, 0.3), 0.15, 0.05, OUTSIDE, ABOVE, "optimizer.base.lr"),
    Entry("SAM over GD ρ=.02", CLOSE_SAM, (0.15, 0.3), 0.15, key="optimizer.base.lr"),
    Entry(
        "max-norm descent", ("optimizer=steepest",), (5e-5, 7e-5, 1e-4), 7e-5, 0.12, why=GEOMETRY
    ),
    Entry("sign descent", ("optimizer=signsgd",), (5e-4, 1e-3), 5e-4, 0.12, OUTSIDE, ROUGH),
    Entry("spectral descent", SPECTRAL, (0.02, 0.04, 0.08), 0.02, 0.05, OUTSIDE, LEAVING),
    Entry("normalised spectral", (*SPECTRAL, "optimizer.normalised=true"), (5e-3, 1e-2), 5e-3),
    Entry(
        "SGD batch 16",
        ("optimizer=sgd", "batch_size=16", *BATCHES),
        (0.05, 0.1, 0.2),
        0.1,
        None,
        NOT_REACHED,
        NOISE,
        metric=metrics.BATCH_SHARPNESS,
    ),
    Entry(
        "SGD β=.9 batch 16",
        ("optimizer=momentum", "batch_size=16", *BATCHES),
        (0.005, 0.01, 0.02),
        0.01,
        None,
        NOT_REACHED,
        ONE_SOURCE,
        metric=metrics.BATCH_SHARPNESS,
        factor=0.2,
    ),
    Entry("Signum", ("optimizer=signum",), (5e-4, 1e-3), 5e-4, None, OPEN, UNKNOWN, mean=True),
    Entry("Lion", ("optimizer=lion",), (5e-4, 1e-3), 5e-4, None, OPEN, UNKNOWN, mean=True),
    Entry(
        "Muon",
        ("optimizer=muon",),
        (5e-3, 1e-2),
        5e-3,
        None,
        OPEN,
        UNKNOWN,
        "optimizer.matrices.lr",
        mean=True,
    ),
    Entry(
        "Shampoo",
        ("optimizer=custom", "optimizer._target_=pytorch_optimizer.Shampoo"),
        (0.01, 0.03, 0.1),
        0.03,
        None,
        OPEN,
        UNKNOWN,
        needs=ELSEWHERE,
    ),
    Entry(
        "SOAP",
        (
            "optimizer=custom",
            "optimizer._target_=pytorch_optimizer.SOAP",
            "+optimizer.weight_decay=0",
        ),
        (1e-3, 2e-3),
        1e-3,
        None,
        OPEN,
        UNKNOWN,
        needs=ELSEWHERE,
    ),
)
