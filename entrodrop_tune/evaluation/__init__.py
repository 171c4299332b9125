"""Evaluate models through lm-eval, before and after, and say what changed.

``models`` (what MODEL is) → ``harness`` (calls lm-eval) → ``runner`` (a suite, cached) → ``results``
(eval.json, items.jsonl) → ``comparison``, ``retention``, ``statistics`` → ``render``, ``tables``. The task files call
``task_data``, ``scores`` and ``code_execution``; the latter runs programs through ``program_check`` and ``sandbox``.
"""
