"""Callbacks for other trainers, one file each; each needs an extra, `optbench[lightning]`.

Lightning and Transformers import torchvision, which fails beside some builds of torch, a CPU-only
one most often. Importing this package first mends that; see `optbench.data.torchvision`.
"""

from contextlib import suppress

from optbench.data.torchvision import import_datasets

with suppress(ImportError):  # where there is none, there is nothing to mend
    import_datasets()
