"""`python -m optbench.lr_range`: short runs at learning rates from tiny to divergence."""

from optbench.lab.lr_range_command import main

if __name__ == "__main__":
    main()
