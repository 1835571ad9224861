# ruff: noqa: E501  (a line is a run)
"""Runs that failed once, each a line that its failure printed; they run before any that is drawn."""

LINES: list[str] = [
    # A step in which nothing that the optimizer holds got a gradient, with fingerprints.
    """{"config": {"checkpoint": {"keep": 1}, "clip": 0.05, "drop_last": false, "epochs": 3, "global_batch_size": 12, "leaves": 3, "micro_batch_size": 4, "optimizer": {"lr": 0.01, "name": "adamax"}, "precision": "no", "schedule": {"floor": 1.0, "name": "linear", "warmup": 0}, "seed": 9223372036854775807, "task": "drawn_task.py:Drawn_collate_head_only", "threads": 1, "track": {"every": 1, "fingerprint": true, "wandb": "off"}, "watchdog": 0.0, "with": {"column": "uneven", "dtype": "float32", "eval_rows": 0, "made": 6, "metric": "nan", "parts": ["linear", "pruned", "double", "wide", "double"], "rows": 40, "target": "masked", "twist": "part", "wrap": "plain"}, "workers": 0}, "starts": [[3, "SIGTERM", 1, "loss", 6], [3, "", 0, "", 0]]}""",
    # Rank 0 dies after the best evaluation was saved: the survivor's save must not push that out.
    """{"config": {"checkpoint": {"best": "loss:max", "keep": 1}, "clip": 100.0, "drop_last": false, "evaluate": {"batches": 4, "every": 5}, "global_batch_size": 40, "leaves": 2, "micro_batch_size": 5, "optimizer": {"lr": 0.01, "name": "adamw"}, "precision": "no", "seed": 1, "steps": 11, "task": "drawn_task.py:Drawn_transform_own", "threads": 1, "track": {"every": 1, "fingerprint": true, "wandb": "off"}, "watchdog": 60.0, "with": {"column": "ints", "dtype": "float32", "eval_rows": 20, "made": 9, "metric": "", "parts": [], "rows": 38, "target": "classes", "twist": "part", "wrap": "concatenated"}, "workers": 0}, "starts": [[2, "SIGKILL", 0, "loss", 42], [2, "", 0, "", 0]]}""",
]  # fmt: skip
