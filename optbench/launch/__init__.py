"""Many runs of the main job: one contract (`launcher`), one file an engine, and the runs of a command (`runs`)."""
