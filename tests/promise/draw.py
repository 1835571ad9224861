"""What a drawn run is: a config, a task's fields, and the starts that it goes through; all of it plain JSON."""

from __future__ import annotations

from typing import Any

from drawn_parts import PARTS
from drawn_task import COLUMNS, MIXINS, NEEDS_COLLATE, OWN_ORDER, WRAPS, class_name, parts_to_train
from hypothesis import strategies as st

Run = dict[str, Any]

# A task whose forward is not pure, or whose rows cannot be stacked, may be refused: by these words, and at every size.
REFUSED_BY = {
    "part:counter": "seen", "part:averaging": "mean", "part:hidden_averaging": "mean", "part:remembering": "calls",
    "part:late": "shift",
}  # fmt: skip
IMPURE = {"counter", "averaging", "hidden_averaging", "remembering", "late"}

# What a start on several processes with `shard: true` is refused for, always: by these words, whatever else the task does.
UNSHARDABLE = {
    "mixin:after_step": "has an after_step", "mixin:own": "Lion may need whole", "mixin:noise": "Lion may need whole",
    "part:odd": "no dimension to cut",
    "part:complex": "turn is complex", "part:channels_last": "does not lie in rows", "part:double": "has parameters of",
    "part:bf16": "has parameters of",
}  # fmt: skip
# And for these it may be, some once a micro-batch shows it: one that goes another way than the others', or past the model.
ASTRAY = {
    "part:skipping": ("gathered together",), "part:routed": ("gathered together",),
    "twist:part": ("reaches past", "gathered together"), "twist:no_model": ("reaches past", "gathered together"),
    "twist:twice": ("runs twice",), "dtype:bfloat16": ("parameters of 16 bits",),
}  # fmt: skip

# What inductor compiles quickly and without a word of its own; each shape that a run meets takes it some seconds.
COMPILED = {"linear", "wide", "layer_norm", "rms_norm", "gelu", "silu", "dropout", "conv1d", "batch_norm", "tied", "frozen"}
COMPILED_TWISTS = ("", "penalty", "mode")

OPTIMIZING = ("groups", "head_only", "own", "noise")  # each brings an optimizer of its own

OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "adamw", "lr": 0.01},
    {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "betas": [0.8, 0.95], "amsgrad": True},
    {"name": "adam", "lr": 0.02},
    {"name": "adam", "lr": 0.01, "fused": False, "foreach": False},
    {"name": "sgd", "lr": 0.02},
    {"name": "sgd", "lr": 0.02, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    {"name": "sgd", "lr": 0.02, "momentum": 0.9, "dampening": 0.5},
    {"name": "rmsprop", "lr": 0.005, "momentum": 0.5, "centered": True},
    {"name": "adagrad", "lr": 0.05, "lr_decay": 0.1},
    {"name": "nadam", "lr": 0.01},
    {"name": "radam", "lr": 0.01},
    {"name": "adamax", "lr": 0.01},
    {"name": "adadelta", "lr": 1.0},
    {"name": "asgd", "lr": 0.01},
    {"name": "rprop", "lr": 0.01},
]


SHARDS = {"shard=true", "shard=node"}
NODES = {2: ["aa"], 3: ["aaa"], 4: ["aabb", "abab"]}  # of each rank, where a model is cut over each
ANY_NODES = {2: ["aa", "ab"], 3: ["aaa", "aab", "abc"], 4: ["aaaa", "aabb", "abbb", "abca"]}

PLACES = ["data", "model", "transform", "metrics", "after_step"]


def _maybe(strategy: st.SearchStrategy[Any], absent: int = 1) -> st.SearchStrategy[Any]:
    """A value, or, `absent` times as often, None."""
    return st.one_of(*[st.none()] * absent, strategy)


@st.composite
def tasks(draw: st.DrawFn) -> Run:
    """The class and the fields of a task."""
    mixins = draw(st.lists(st.sampled_from(list(MIXINS)), max_size=2, unique=True))
    column = draw(st.sampled_from(sorted(COLUMNS)))
    if column in NEEDS_COLLATE and "collate" not in mixins:
        mixins.append("collate")
    wrap = draw(st.sampled_from(WRAPS))
    mixins = [name for name in mixins if name != "weights" or wrap not in OWN_ORDER]
    mixins = [name for name in mixins if name not in OPTIMIZING] + [name for name in mixins if name in OPTIMIZING][:1]
    pure = sorted(PARTS.keys() - IMPURE)
    fields: Run = {
        "parts": draw(st.lists(st.sampled_from(pure), min_size=draw(st.sampled_from([0, 1, 2, 3])), max_size=5)),
        "column": column,
        "wrap": wrap,
        "rows": draw(st.integers(1, 60)),
        "eval_rows": draw(st.sampled_from([0, 1, 5, 13, 20])),
        "dtype": draw(st.sampled_from(["float32"] * 6 + ["float64", "bfloat16"])),
        "target": draw(st.sampled_from(["squares", "classes", "weighted", "counted", "masked"])),
        "twist": draw(st.sampled_from(["", "", "", "part", "no_model", "penalty", "twice", "teacher", "mode", "out_dtype"])),
        "metric": draw(st.sampled_from(["", "accuracy", "nan", "drawn", "missing"])),
        "numbers": draw(st.sampled_from(["", "", "", "one", "two"])),
        "made": draw(st.integers(1, 9)),
    }
    if draw(st.integers(0, 9)) == 9:
        fields["parts"].append(draw(st.sampled_from(sorted(IMPURE))))
    if "after_step" in mixins:
        fields["every_step"] = draw(st.sampled_from(["teacher", "freeze", "thaw", "clamp"]))
    return {"task": f"drawn_task.py:{class_name(mixins)}", "with": fields}


@st.composite
def configs(draw: st.DrawFn, task: Run) -> Run:
    normed = any(name.startswith("batch_norm") for name in task["with"]["parts"])
    micro, num_micro = draw(st.integers(1 + normed, 5)), draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 12]))
    fields = task["with"]
    config = {
        **task,
        "seed": draw(st.one_of(st.integers(0, 3), st.just((1 << 63) - 1))),
        "global_batch_size": micro * num_micro,
        "micro_batch_size": micro,
        "optimizer": draw(_optimizers(fields, task["task"])),
        "drop_last": draw(st.booleans()),
        "schedule": draw(_maybe(_schedules())),
        "clip": draw(_maybe(st.sampled_from([0.05, 1.0, 1e-3, 100.0]))),
        "precision": draw(st.sampled_from(["no", "no", "no", "bf16", "tf32"])),  # tf32 is float32 on a CPU
        "leaves": draw(_maybe(st.sampled_from([n for n in range(1, num_micro + 1) if num_micro % n == 0]), absent=2)),
        "threads": draw(st.sampled_from([1] * 9 + [2])),
        "workers": draw(st.sampled_from([0] * 19 + [1])),
        "watchdog": draw(st.sampled_from([0.0] * 9 + [60.0])),
        "audit": draw(_maybe(st.fixed_dictionaries({"every": st.integers(1, 4)}), absent=9)),
        "init": draw(_maybe(st.just("init.safetensors"), absent=9)),
        "track": {"every": 1, "wandb": "off", "fingerprint": draw(st.sampled_from([False, False, True]))},
    }
    if set(fields["parts"]) <= COMPILED and fields["twist"] in COMPILED_TWISTS and draw(st.integers(0, 4)) == 4:
        config["compile"] = True
    if config["drop_last"] and fields["rows"] < micro * num_micro:
        config["drop_last"] = False
    per_epoch = max(1, fields["rows"] // (micro * num_micro) + 1)
    if draw(st.booleans()) and per_epoch <= 12:
        config["epochs"] = draw(st.integers(1, max(1, 12 // per_epoch)))
        if draw(st.integers(0, 2)) == 2:
            config["steps"] = f"{config.pop('epochs')} epochs"
    else:
        config["steps"] = draw(st.integers(1, 12))
    checkpoint = {"every": draw(_maybe(_lengths(6))), "keep": draw(_maybe(st.integers(1, 3)))}
    checkpoint["background"] = draw(_maybe(st.booleans()))
    if fields["eval_rows"]:
        config["evaluate"] = {"every": draw(_maybe(_lengths(6))), "batches": draw(_maybe(st.integers(1, 4), absent=2))}
        metrics = ["loss", *([fields["metric"]] if fields["metric"] else [])]
        if config["evaluate"]["every"] and draw(st.booleans()):
            config["schedule"] = draw(_plateaus(metrics))
        checkpoint["best"] = draw(_maybe(st.sampled_from([m + goal for m in metrics for goal in ("", ":min", ":max")])))
        if draw(st.booleans()):
            goal, delta = draw(st.sampled_from(["min", "max"])), draw(st.sampled_from([0.0, 0.01, 1.0]))
            config["converge"] = {"metric": metrics[-1], "goal": goal, "patience": draw(st.integers(1, 3)), "min_delta": delta}
    config["checkpoint"] = checkpoint
    kept: Run = without_none(config)
    return kept


def _lengths(most: int) -> st.SearchStrategy[int | str]:
    return st.one_of(st.integers(1, most), st.sampled_from(["1 epoch", "2 epochs", "0.5 epochs"]))


_BESIDE = {
    "warmup": st.one_of(st.integers(0, 5), st.sampled_from(["1 epoch", 0.1, 0.4])),
    "floor": st.sampled_from([0.0, 0.1, 1.0]),
}
_FACTORS = st.sampled_from([0.1, 0.5, 0.97])


def _schedules() -> st.SearchStrategy[Run]:
    names = st.sampled_from(["constant", "linear", "cosine", "onecycle", "inverse_sqrt"])
    own = st.sampled_from([{"name": "drawn_task.py:waves"}, {"name": "drawn_task.py:falling"}])
    decay = st.one_of(_lengths(15), st.just(0.3))
    return st.one_of(
        st.fixed_dictionaries({"name": names, **_BESIDE}),
        st.fixed_dictionaries({"name": st.just("wsd"), **_BESIDE}, optional={"decay": decay}),
        st.fixed_dictionaries({"name": st.just("step"), "every": _lengths(4), **_BESIDE}, optional={"factor": _FACTORS}),
        st.fixed_dictionaries({"name": st.just("step"), "at": st.lists(_lengths(9), max_size=3), **_BESIDE}),
        st.fixed_dictionaries({"name": st.just("exponential"), "factor": _FACTORS, **_BESIDE}, optional={"every": _lengths(4)}),
        st.fixed_dictionaries(
            {"name": st.just("restarts"), "every": _lengths(4), **_BESIDE}, optional={"growth": st.integers(1, 3)}
        ),
        own,
    )


def _plateaus(metrics: list[str]) -> st.SearchStrategy[Run]:
    return st.fixed_dictionaries(
        {"name": st.just("plateau"), "metric": st.sampled_from(metrics), "patience": st.integers(0, 2), **_BESIDE},
        optional={
            "factor": _FACTORS,
            "goal": st.sampled_from(["min", "max"]),
            "min_delta": st.sampled_from([0.0, 0.01, 1.0]),
        },
    )


@st.composite
def _optimizers(draw: st.DrawFn, fields: Run, task: str) -> Run:
    """One for the whole model, or one for each part of it that has something to train."""
    if draw(st.integers(0, 5)) or any(f"_{name}" in task for name in OPTIMIZING):
        return draw(st.sampled_from(OPTIMIZERS))
    return {name: draw(st.sampled_from(OPTIMIZERS)) for name in sorted(parts_to_train(fields, "_after_step" in task))}


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """A config and its starts: [processes, signal or "", rank that gets it, method that sends it, in which call, overrides]."""
    config = draw(configs(draw(tasks())))
    num_micro = config["global_batch_size"] // config["micro_batch_size"]
    most = min(2 if "compile" in config else draw(st.sampled_from([2, 3, 4, 4, 7])), config.get("leaves") or num_micro)
    sizes = st.sampled_from([1, *range(1, most + 1), *range(2, most + 1)])
    starts = []
    for _ in range(draw(st.sampled_from([0, 1, 1, 2, 3]))):
        size = draw(sizes)
        name, place = draw(st.sampled_from(["SIGTERM", "SIGKILL"])), draw(st.sampled_from(["loss"] * 6 + PLACES))
        most_calls = {"data": 2, "model": 1, "after_step": 12, "metrics": 12}
        calls = draw(st.integers(1, most_calls.get(place, 14 * num_micro // size)))
        starts.append([size, name, draw(st.integers(0, size - 1)), place, calls, draw(_overrides())])
    starts.append([draw(sizes), "", 0, "", 0, draw(_overrides())])
    return {"config": config, "starts": starts}


def _overrides() -> st.SearchStrategy[list[str]]:
    """What may be another from start to start, and is none of the run's numbers."""
    some = st.lists(st.sampled_from(["shard=true", "shard=node", "recompute=true"]), max_size=2, unique=True)
    return some.filter(lambda words: len([word for word in words if word in SHARDS]) < 2)


def is_sharded(start: list[Any]) -> bool:
    """On one process there is nothing to cut, yet what cannot be is refused."""
    return start[0] > 1 and not SHARDS.isdisjoint(start[5])


def unshardable(run: Run) -> list[str]:
    """The words that a sharded start is refused in, if it is."""
    found = features(run)
    if run["config"]["with"]["dtype"] != "float32":  # to which the whole model is cast, complex numbers too
        found -= {"part:double", "part:bf16", "part:complex"}
    must = [words for name, words in UNSHARDABLE.items() if name in found]
    of_16_bits = "part:bf16" in found or run["config"]["with"]["dtype"] == "bfloat16"  # which its optimizer may refuse before
    return [*must, "16 bits"] if must and of_16_bits else must


def without_none(value: Any) -> Any:
    return {key: without_none(inner) for key, inner in value.items() if inner is not None} if isinstance(value, dict) else value


def features(run: Run) -> set[str]:
    """What a run has in it, as names to count and to leave out by."""
    config, fields = run["config"], run["config"]["with"]
    found = {f"part:{name}" for name in fields["parts"]}
    found |= {
        f"{key}:{fields[key]}"
        for key in ("column", "wrap", "dtype", "target", "twist", "metric", "numbers", "every_step")
        if fields.get(key)
    }
    found |= {f"mixin:{name}" for name in MIXINS if f"_{name}" in config["task"]}
    if not {f"mixin:{name}" for name in OPTIMIZING} & found:
        several = "name" not in config["optimizer"]
        found |= {f"optimizer:{one['name']}" for one in (config["optimizer"].values() if several else [config["optimizer"]])}
        found |= {"an optimizer for each part"} if several else set()
    for key in ("clip", "leaves", "converge", "epochs", "init", "compile", "audit"):
        if key in config:
            found.add(key)
    found |= {f"{key}:{config[key]}" for key in ("precision", "drop_last", "workers", "threads", "watchdog") if config.get(key)}
    found |= {f"checkpoint.{key}" for key in config["checkpoint"]}
    found |= {f"evaluate.{key}" for key in config.get("evaluate", {})}
    if "schedule" in config:
        found.add(f"schedule:{config['schedule']['name']}")
        found |= {"warmup"} if config["schedule"].get("warmup") else set()
    judged = [config.get("converge", {}).get("metric"), config["checkpoint"].get("best", "").partition(":")[0]]
    judged.append(config.get("schedule", {}).get("metric"))
    if "missing" in judged:
        found.add("judged by a metric that some micro-batches lack")
    if IMPURE & set(fields["parts"]):
        found.add("impure")
    size = config["global_batch_size"]
    if fields["rows"] % size and not config["drop_last"]:
        found.add("short last batch")
    if fields["rows"] < size:
        found.add("fewer rows than a global batch")
    if len(run["starts"]) > 1 and "schedule" in config:
        found.add("schedule after a stop")
    found |= {f"start:{name or 'to the end'}" for _, name, *_ in run["starts"]}
    found |= {f"W={size}" for size, *_ in run["starts"]}
    found |= {f"{word} on {'one' if start[0] == 1 else 'several'}" for start in run["starts"] for word in start[5]}
    return found
