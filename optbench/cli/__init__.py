"""The main job: command line → configuration → one run or a sweep; and the start of a plug-in."""
