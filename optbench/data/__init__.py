"""Labelled data: splits, label noise, imbalance; the only importer of torchvision."""
