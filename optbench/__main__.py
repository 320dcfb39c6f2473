"""`python -m optbench`, and `optbench` the script."""

from optbench import startup


def main() -> None:
    """Begin before the imports, which take seconds."""
    startup.begin()
    from optbench.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
