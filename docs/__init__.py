"""Pages, and what builds those that are made from code."""
