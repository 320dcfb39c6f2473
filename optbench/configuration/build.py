"""From a configuration to an experiment, in four steps: check, construct, inherit, verify."""

from omegaconf import DictConfig

from optbench.configuration.construct import construct
from optbench.configuration.keys import check
from optbench.configuration.verify_parts import verify
from optbench.probes.generalization import evaluate, evaluating
from optbench.ranks import ALONE, Ranks
from optbench.run.fork import inherit
from optbench.run.loop import Experiment, Parts

FINGERPRINT_EXAMPLES = 1000


def build(config: DictConfig, ranks: Ranks = ALONE) -> Experiment:
    """Build the experiment that a configuration describes.

    1. Check every key against its declared type and range.
    2. Construct what the keys name: task, model, optimizer, schedule, probes.
    3. Inherit the state of another run, if it is a fork.
    4. Verify that these fit together, on the first examples.

    Args:
        config: The configuration.
        ranks: Processes that are to train it; each builds the same.

    Raises:
        UserError: If something in the configuration cannot be; the message shows the value and the
            way out.
    """
    check(config)
    parts = construct(config, ranks)
    inherited = inherit(parts, config)
    verify(parts)
    return Experiment(
        **vars(parts),
        initial_loss=_initial_loss(parts),
        inherited=None if inherited is None else vars(inherited),
    )


def _initial_loss(parts: Parts) -> float:
    """Loss of the first training examples before the first update."""
    task, model = parts.task, parts.update.model
    with evaluating(model, parts.update.optimizer, task):
        return evaluate(task, model, task.train.first(FINGERPRINT_EXAMPLES))["loss"]
