"""Map glaciers from a handful of labelled Landsat tiles; each name below is loaded when it is first used."""

import os
import warnings

import lazy_loader

# threads of PyTorch that wait leave their cores to others, see parallel/04_threads.ipynb
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# bars of other packages show themselves as text without ipywidgets, as those of this one do
warnings.filterwarnings("ignore", "IProgress not found")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checks.diagnosis": ["diagnose"],
        "config.training": ["TrainConfig"],
        "demo.tiles": ["make_demo"],
        "experiments.autopilot": ["autopilot"],
        "experiments.cross_validate": ["CrossValidation", "cross_validate"],
        "experiments.proposals": ["next_run"],
        "experiments.run": ["Run", "load_run"],
        "experiments.sweep": ["sweep"],
        "experiments.train": ["train"],
        "runs.compare": ["compare_runs"],
        "runs.folder": ["runs_table"],
        "runs.predict": ["predict"],
        "texture.glcm": ["glcm"],
        "tiles.read": ["describe", "read_tiles"],
    },
)
