"""`python -m lightning_uncertainty`."""

from lightning_uncertainty.cli import main

if __name__ == "__main__":
    main()
