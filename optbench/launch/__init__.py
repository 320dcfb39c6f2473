"""Many runs of the main job at once: one contract, one file an engine."""
