"""`python -m optbench.measure`: measures of finished runs."""

from optbench.lab.measure_command import main

if __name__ == "__main__":
    main()
