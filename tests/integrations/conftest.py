"""What a script of a user does: optbench's integrations before the trainer's package."""

import optbench.integrations  # noqa: F401  torchvision needs its help beside some builds of torch
