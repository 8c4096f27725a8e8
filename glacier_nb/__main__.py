"""The command `python -m glacier_nb`, see nbs/experiments/08_command.ipynb."""

import sys

from glacier_nb.experiments.command import main

if __name__ == "__main__":  # processes that a run starts import this module
    sys.exit(main())
