"""Boosting of a few small trees: baselines in a tenth of the time, for tests about something else."""

FEW = {"max_iter": 4, "max_bins": 16}


def few_trees(patch) -> None:
    "From now on; their scores are cached apart from those of whole baselines."
    from glacier_nb.metrics import baseline  # seconds, which pytest's main process does not need
    from glacier_nb.runs import score

    fit = baseline._fit_pixels
    patch.setattr(baseline, "_fit_pixels", lambda *pixels, **settings: fit(*pixels, **settings | FEW))
    patch.setattr(score, "version", lambda name: f"{name}, few trees")
