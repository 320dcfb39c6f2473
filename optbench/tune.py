"""`python -m optbench.tune`: put optimizers through a suite's protocol."""

from optbench.protocol.tuner import main

if __name__ == "__main__":
    main()
