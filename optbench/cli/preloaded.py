"""What a fork server imports once, for all processes that it forks; garbage is not sought there."""

import gc
from importlib import import_module

gc.disable()
for _name in ("optbench.cli.command_job", "torch._dynamo", "torch.nn.functional"):
    import_module(_name)
gc.freeze()
gc.enable()
