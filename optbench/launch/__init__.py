"""Many runs of the main job.

`launcher` is the contract, `local` an engine, `runs` what a command has made and will make.
"""
