"""Callbacks for other trainers, one file each; each needs an extra, `optbench[lightning]`."""
