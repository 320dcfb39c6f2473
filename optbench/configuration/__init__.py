"""Configurations: composed from YAMLs, checked against declared shapes, made into objects."""
