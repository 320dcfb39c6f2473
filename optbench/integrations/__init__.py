"""Thin callbacks for trainers of others, one file each; each needs its own extra, such as `optbench[lightning]`."""
