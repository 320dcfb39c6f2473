"""`python -m optbench.report`: one page on chosen run folders."""

from optbench.leaderboard.run_report import main

if __name__ == "__main__":
    main()
