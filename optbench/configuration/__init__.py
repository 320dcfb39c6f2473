"""A configuration: composed from YAMLs and overrides, held against declared shapes, made into objects."""
