"""`python -m optbench.landscape`: slices of the loss around the weights of a finished run."""

from optbench.lab.landscape_command import main

if __name__ == "__main__":
    main()
