"""What a fork server imports once, for all processes that it forks."""

from importlib import import_module

from optbench.startup import imported, importing

importing()
for _name in ("optbench.cli.command_job", "torch._dynamo", "torch.nn.functional"):
    import_module(_name)
imported()
