"""`python -m optbench.study`: make the runs of a study, and say what they show."""

from optbench.studies.command import main

if __name__ == "__main__":
    main()
