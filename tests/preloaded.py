"""What the processes of `tests.processes` have imported when they begin."""

import gc
from importlib import import_module

for _name in (
    *("search.cli", "search.run.search", "matplotlib.pyplot", "optuna_dashboard"),
    *("ensemble.cli", "ensemble.distill.distill", "ensemble.fuse.fuse"),
    *("ensemble.compare.compare", "ensemble.submission.submit", "ensemble.deploy.predict"),
):
    import_module(_name)
# A search collects garbage after every piece of a trial, and need not look through torch.
gc.freeze()
