"""The edge of an optimizer that has no rule, found by watching copies of it."""
