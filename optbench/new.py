"""`python -m optbench.new`: a small working start of a plug-in."""

from optbench.check.scaffold import main

if __name__ == "__main__":
    main()
