"""Learning-rate schedules that `torch.optim.lr_scheduler` offers only in parts."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from optbench.boundary.kinds import BelowOne


def warmup_cosine(optimizer: Optimizer, steps: int, warmup: BelowOne) -> LRScheduler:
    """Rise linearly over the first `warmup`·`steps` updates, then fall along half a cosine to 0.

    Args:
        optimizer: Optimizer whose learning rates are set.
        steps: Number of updates of the run.
        warmup: Share of them in which the rate rises, in [0, 1).
    """
    rising = round(warmup * steps)
    falling = CosineAnnealingLR(optimizer, T_max=max(1, steps - rising))
    if rising == 0:
        return falling
    rise = LinearLR(optimizer, start_factor=1 / (rising + 1), total_iters=rising)
    return SequentialLR(optimizer, [rise, falling], milestones=[rising])
