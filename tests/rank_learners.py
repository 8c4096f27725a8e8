"""Workers of training/test_two_ranks: a launched process imports them."""

from itertools import islice

import torch
from tiny_network import tiny_network

from glacier_nb.data.storage import run_tiles
from glacier_nb.runs.score import score_run
from glacier_nb.training import callbacks
from glacier_nb.training.callbacks import make_learner
from glacier_nb.training.recipe import prepare_data


def losses(cfg, folder, steps: int) -> list[dict]:
    "The first optimizer steps of a run with a tiny network, in float64."
    callbacks.run_network = tiny_network  # in this process alone
    learner = make_learner(cfg, prepare_data(cfg, run_tiles(cfg)), folder, progress=False)
    learner.model.double()
    augment = learner.augment

    def in_double(*args):
        batch = augment(*args)
        return batch | {"image": batch["image"].double()}

    learner.augment, found = in_double, []
    learner.prepare_network()
    learner.model.train()
    for epoch in range(cfg.epochs):
        batches = learner.batches(epoch)
        while len(found) < steps and (group := list(islice(batches, cfg.accumulate))):
            found.append(learner.train_step(group))
    return found


def fitted(cfg, folder) -> dict:
    "A whole run: its history, and the state of this rank at its end."
    learner = make_learner(cfg, prepare_data(cfg, run_tiles(cfg)), folder, progress=False)
    learner.fit()
    evaluated = {k: v.double().sum().item() for k, v in learner.eval_model.state_dict().items()}
    return {
        "history": [{k: v for k, v in r.items() if k != "seconds"} for r in learner.history],
        "weights": {k: v.double().sum().item() for k, v in learner.model.named_parameters()},
        "evaluated": evaluated,
        "frozen": [k for k, p in learner.model.named_parameters() if not p.requires_grad],
        "crops": sum(len(b["label"]) for b in learner.batches(0)),
        "inner": list(learner.data.inner.ids) if learner.data.inner else [],
        "score": score_run(learner, folder, with_baselines=False, progress=False),
    }


def stopped_after(cfg, folder, step: int) -> None:
    "A run with a stop request on rank 1 in the middle of an epoch."
    from glacier_nb.training.learner import Callback

    class Stop(Callback):
        def after_step(self, learner):
            if learner.step == step and learner.ranks.rank == 1:
                learner.request.number = 15

    learner = make_learner(cfg, prepare_data(cfg, run_tiles(cfg)), folder, progress=False)
    learner.callbacks.append(Stop())
    learner.fit()
    return learner.stopped_by, learner.step, torch.get_num_threads()
