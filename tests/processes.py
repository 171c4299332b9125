"""Processes that start at once: forks of a server that has imported torch, the engine and lm-eval.

They are processes of their own all the same, which may be killed without mercy; a fresh start takes 10 s each time.
"""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["entrodrop_tune.training.launch", "entrodrop_tune.evaluation.runner"])
