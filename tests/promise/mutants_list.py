"""Small ways to break the product, each with the quickest tests that should see it; `mutants.py` tries them."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """A patch of one file of src/samestep: `find` stands there once, and `put` takes its place."""

    name: str
    file: str
    find: str
    put: str
    tests: tuple[str, ...]  # words for pytest


CASES = "tests/promise/test_cases.py"
HIDDEN = "tests/promise/test_hidden.py"
SAME = f"{CASES}::test_the_same_at_every_world_size"
STATE = f"{CASES}::test_an_optimizers_whole_state_comes_back_as_it_was"
AFTER = f"{CASES}::test_what_after_step_changes_is_saved_and_comes_back"
FAULT = f"{CASES}::test_a_save_after_a_fault_holds_the_finished_step_alone"
REFUSED = f"{CASES}::test_what_cannot_be_kept_is_one_line_at_every_world_size"
LATE = f"{CASES}::test_once_a_late_mistake_is_mended_the_run_goes_on_as_if_it_had_never_been"
ONE_RANK = f"{CASES}::test_what_only_one_rank_does_is_refused_on_all"
SHARDED = f"{CASES}::test_a_sharded_run_has_an_unsharded_ones_bits"
IN_NODES = "tests/distributed/test_exact.py::test_a_model_in_each_node_has_the_single_process_tree_at_a_rings_bytes"
RESHARDED = f"{CASES}::test_a_killed_sharded_run_goes_on_at_another_size_as_if_nothing_had_been"
PAST = f"{CASES}::test_what_reaches_past_a_sharded_model_is_refused_in_a_line"
HOOK = "tests/distributed/test_exact.py::test_the_hook_can_be_forced_on_one_process"
OPTIM = "tests/unit/optimizer/test_step.py"
GRADIENTS = "tests/unit/exact/test_gradients.py"
BATCHES = "tests/unit/batches/test_batches.py"
TREE = "tests/unit/exact/test_tree.py"
ORDER = "tests/unit/randomness/test_order.py"
SAVING = "tests/unit/checkpoint/test_checkpoint.py"
REPORT = "tests/unit/report/test_report.py"
CONTROL = "tests/unit/control/test_control.py"
TRACKING = "tests/unit/tracking/test_tracking.py"
IDENTITY = "tests/unit/sources/test_identity.py"

_RATES = [
    Mutant(
        "gathered-blocks-turned-round",
        "exact/transfer.py",
        "values += rows[: len(held)]",
        "values += rows[: len(held)].flip(0)",
        ("tests/distributed/test_exact.py::test_any_world_size_shape_bucket_and_gap_gives_the_single_process_tree",),
    ),
    Mutant(
        "a-mark-before-its-message",
        "runtime/shared_memory.py",
        "        rows, end = self._rows[half], 0\n",
        "        rows, end = self._rows[half], 0\n"
        "        self._marks[(half * len(rows) + self._rank) * (_LINE // 8)] = count\n",
        ("tests/unit/runtime/test_shared_memory.py::test_messages_arrive_whole_and_in_order_however_the_ranks_dawdle",),
    ),
    Mutant(
        "summed-in-everyones-memory",
        "exact/transfer.py",
        "values, in_place=False)",
        "values)",
        ("tests/distributed/test_exact.py::test_any_world_size_shape_bucket_and_gap_gives_the_single_process_tree",),
    ),
    Mutant(
        "one-place-for-all-messages",
        "runtime/shared_memory.py",
        "count, half = self._count, self._count % 2",
        "count, half = self._count, 0",
        ("tests/unit/runtime/test_shared_memory.py::test_messages_arrive_whole_and_in_order_however_the_ranks_dawdle",),
    ),
    Mutant(
        "the-living-are-taken-for-dead",
        "runtime/shared_memory.py",
        "        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)\n",
        "",
        ("tests/unit/runtime/test_shared_memory.py::test_messages_arrive_whole_and_in_order_however_the_ranks_dawdle",),
    ),
    Mutant(
        "the-dead-are-waited-for",
        "runtime/shared_memory.py",
        "if self._is_dead(other) and",
        "if other < 0 and",
        ("tests/unit/runtime/test_shared_memory.py::test_a_rank_that_ends_keeps_nobody_waiting",),
    ),
    Mutant(
        "any-file-is-the-offered-one",
        "runtime/shared_memory.py",
        " and os.readlink(path).split()[0] == name",
        "",
        ("tests/unit/runtime/test_shared_memory.py::test_no_other_file_is_taken_for_the_offered_one",),
    ),
    Mutant(
        "sets-in-any-order-where-a-run-is-measured",
        "runtime/hash_order.py",
        '"replay", "evaluate", ',
        '"replay", ',
        ("tests/distributed/test_hash_order.py::test_a_set_has_one_order_under_every_launcher",),
    ),
    Mutant(
        "base-rate",
        "optimizer/step.py",
        "        factor = self.rate(step)  #",
        "        if not self._counted:\n"
        '            self._base = [float(group["lr"]) for group in self.inner.param_groups]\n'
        "        factor = self.rate(step)  #",
        (f"{CASES}::test_a_resumed_run_has_the_unbroken_runs_rate_at_every_step",),
    ),
    Mutant(
        "one-rate-for-all-groups",
        "optimizer/step.py",
        'group["lr"] = base * factor',
        'group["lr"] = self._base[0] * factor',
        (f"{OPTIM}::test_each_group_keeps_a_rate_of_its_own",),
    ),
    Mutant(
        "plateau-kept",
        "session/saving.py",
        "list(run.evaluation.plateau.counted) if run.evaluation.plateau else []",
        "[]",
        (f"{CASES}::test_a_rate_on_a_plateau_goes_on_where_a_stop_broke_off_its_evaluation",),
    ),
    Mutant(
        "plateau-at-the-end",
        "evaluation.py",
        "self.every and step % self.every == 0:",
        "self.every:",
        (f"{CASES}::test_a_rate_on_a_plateau_goes_on_where_a_stop_broke_off_its_evaluation",),
    ),
    Mutant(
        "warm-up",
        "optimizer/schedules.py",
        "return (step + 1) / warmup",
        "return step / warmup",
        (f"{OPTIM}::test_warm_up_then_cosine_to_the_floor",),
    ),
    Mutant(
        "floor",
        "optimizer/schedules.py",
        "schedule.floor + (1 - schedule.floor) * shape",
        "max(schedule.floor, shape)",
        (f"{OPTIM}::test_warm_up_then_cosine_to_the_floor",),
    ),
    Mutant(
        "nan-steps",
        "optimizer/step.py",
        "        elif counts:  #",
        "        else:  #",
        (f"{OPTIM}::test_a_step_that_is_not_finite_changes_nothing",),
    ),
    Mutant(
        "divided-by-a-float",
        "optimizer/step.py",
        "return torch.tensor(divisor, dtype=torch.float64)",
        "return torch.tensor(divisor, dtype=torch.float32)",
        (f"{GRADIENTS}::test_a_scalars_gradient_is_divided_the_same_on_every_device",),
    ),
    Mutant(
        "adams-count-of-steps",
        "optimizer/fused.py",
        "        torch._foreach_add_(self._counted, 1)\n",
        "",
        (f"{OPTIM}::test_adam_sorted_once_is_torchs_own_to_the_bit",),
    ),
    Mutant(
        "adam-steps-without-gradients",
        "optimizer/fused.py",
        "if have_grads != self._have_grads:",
        "if not any(self._have_grads):",
        (f"{OPTIM}::test_adam_sorted_once_is_torchs_own_to_the_bit",),
    ),
    Mutant(
        "adam-counts-what-did-not-count",
        "optimizer/fused.py",
        "        if found_inf is not None:",
        "        if False:",
        (f"{OPTIM}::test_adam_sorted_once_is_torchs_own_to_the_bit",),
    ),
    Mutant(
        "a-step-sees-where-a-tensor-was-cut",
        "optimizer/fused.py",
        "self._is_whole = parameter.is_cuda or (is_dense and self._size == parameter.numel())",
        "self._is_whole = True",
        ("tests/unit/optimizer/test_fused.py::test_no_cut_and_no_number_of_threads_changes_a_fused_step",),
    ),
    Mutant(
        "norms-squares-added-with-rounding",
        "exact/norm.py",
        "_UPPER_HALF = -(1 << 27)",
        "_UPPER_HALF = -1",
        ("tests/unit/exact/test_norm.py::test_any_cut_into_rows_and_any_order_gives_the_same_norm",),
    ),
    Mutant(
        "clip-before-division",
        "optimizer/step.py",
        "norm = ratio(total_norm(grads, reduce), weight)",
        "norm = total_norm(grads, reduce)",
        (f"{GRADIENTS}::test_clipping_scales_by_the_norm_of_the_divided_gradient",),
    ),
]

_SUM = [
    Mutant(
        "ranks-of-a-node-turned-round",
        "exact/two_levels.py",
        "return sorted(held, key=lambda pair: pair[0])",
        "return held",
        ("tests/unit/exact/test_nodes.py::test_every_rank_of_any_nodes_has_the_trees_sum",),
    ),
    Mutant(
        "every-rank-sends-its-nodes-sum",
        "exact/route.py",
        "        return Plan(nodes, self.plan) if 1 < len(nodes) < self.world_size else None",
        "        return None",
        ("tests/distributed/test_exact.py::test_what_leaves_a_node_is_what_a_ring_over_nodes_sends",),
    ),
    Mutant(
        "numbers-in-float32",
        "exact/step_totals.py",
        "values = torch.tensor(self._rows, dtype=torch.float64) if",
        "values = torch.tensor(self._rows).double() if",
        (f"{GRADIENTS}::test_a_steps_losses_and_weights_are_summed_in_float64",),
    ),
    Mutant(
        "a-micro-batch-for-the-step",
        "exact/step_totals.py",
        "if self._on_host and len(self._rows) == 1 and not self._names:",
        "if self._on_host and not self._names:",
        (f"{GRADIENTS}::test_a_steps_losses_and_weights_are_summed_in_float64",),
    ),
    Mutant(
        "tree-by-halves",
        "exact/tree.py",
        "leaves[0:even:2] + leaves[1:even:2]",
        "leaves[: even // 2] + leaves[even // 2 : even]",
        (f"{TREE}::test_any_split_gives_the_single_process_sum",),
    ),
    Mutant(
        "tree-left-first",
        "exact/tree.py",
        "total = self.blocks[-1][1]\n        for _, left in reversed(self.blocks[:-1]):",
        "total = self.blocks[0][1]\n        for _, left in self.blocks[1:]:",
        (f"{TREE}::test_any_split_gives_the_single_process_sum",),
    ),
    Mutant(
        "kept-blocks-turned-round",
        "exact/gradients.py",
        "for _, kept in beside.blocks[:-1]",
        "for _, kept in beside.blocks[-2::-1]",
        (HOOK,),
    ),
    Mutant("minus-zero", "exact/gradients.py", "torch._foreach_add_(alone, 0.0)", "pass", (HOOK,)),
    Mutant("missing-gradient", "exact/buckets.py", "            self.flat.zero_()\n", "            pass\n", (HOOK,)),
    Mutant(
        "used-on-rank-0",
        "exact/step_totals.py",
        "anywhere = np.bitwise_or.reduce(flags[:, 1:], axis=0)",
        "anywhere = flags[0, 1:]",
        (SAME, "-k", "Hooked"),
    ),
    Mutant(
        "padding-counted",
        "exact/totals.py",
        "rows[: stop - start] for rows",
        "rows for rows",
        (f"{TREE}::test_padding_for_the_message_is_no_row",),
    ),
    Mutant(
        "weight-in-float32",
        "exact/step_totals.py",
        "value.detach().to(self._device, torch.float64, non_blocking=True)",
        "value.detach().float().to(self._device, torch.float64, non_blocking=True)",
        (f"{GRADIENTS}::test_a_steps_losses_and_weights_are_summed_in_float64",),
    ),
    Mutant(
        "numbers-beside-the-message",
        "exact/step_totals.py",
        "message = gather(self.message(used, asked())) if everyones is None else everyones",
        "message = gather(self.message(used, asked()))",
        ("tests/structure/test_step_cost.py::test_a_step_of_two_processes_sends_one_message",),
    ),
    Mutant(
        "the-first-ranks-numbers",
        "exact/transfer.py",
        "companion.take(everyones[:, size:])",
        "companion.take(everyones[:1, size:].expand(len(everyones), -1))",
        ("tests/promise/test_promise.py::test_what_failed_once_holds",),
    ),
    Mutant(
        "all-in-the-norm",
        "exact/gradients.py",
        "(p.requires_grad if wanted is None else p in wanted)]\n"
        "        self._others = [p for p in model.parameters() if wanted is not None and p not in wanted]",
        "p.requires_grad]\n        self._others = list[torch.nn.Parameter]()",
        (f"{GRADIENTS}::test_only_what_the_optimizer_has_is_summed_and_no_other_gradient_stays",),
    ),
    Mutant(
        "nobodys-gradients-stay",
        "exact/gradients.py",
        "        for parameter in self._others:  # nobody",
        "        for parameter in []:  # nobody",
        (f"{GRADIENTS}::test_only_what_the_optimizer_has_is_summed_and_no_other_gradient_stays",),
    ),
    Mutant(
        "buckets-as-they-arrive",
        "exact/buckets.py",
        "        while self._num_sent < len(self._active) - 1",
        "        if not bucket.missing and bucket in self._active[self._num_sent + 1 :]:\n"
        "            self._active.remove(bucket)\n"
        "            self._active.insert(self._num_sent, bucket)\n"
        "        while self._num_sent < len(self._active) - 1",
        (f"{GRADIENTS}::test_buckets_go_out_in_one_order_whichever_is_full_first",),
    ),
]

_SEEDS = [
    Mutant(
        "seed-of-model",
        "session/model.py",
        "    seed_all(config.seed)\n",
        "    pass\n",
        ("tests/unit/session/test_model.py::test_the_same_seed_gives_the_same_model_and_another_seed_another",),
    ),
    Mutant(
        "seed-of-micro-batch",
        "loop.py",
        "        seed_all(self.config.seed, step, micro.index, device=self.optimizer.device)\n",
        "        if micro.index == self.sums.gradients.share[0]:\n"
        "            seed_all(self.config.seed, step, micro.index, device=self.optimizer.device)\n",
        (SAME, "-k", "Random"),
    ),
    Mutant(
        "seed-of-loading",
        "batches/loading.py",
        "        seed_all(self._seed, step, index, LOADING)",
        "        ()",
        (SAME, "-k", "Random"),
    ),
    Mutant(
        "seed-of-transform",
        "sources/rows.py",
        "mix(self._seed, epoch, number)",
        "mix(self._seed, numbers[0], number)",
        (f"{BATCHES}::test_transform_draws_from_seed_epoch_and_row_alone",),
    ),
    Mutant(
        "seed-of-after-step",
        "session/model.py",
        "        seed_all(config.seed, step, 0, _AFTER_STEP, device=device)\n",
        "",
        (AFTER,),
    ),
    Mutant(
        "nobody-draws-in-loading",
        "batches/loading.py",
        "        if self._rows.may_draw:",
        "        if False:",
        (SAME, "-k", "Random"),
    ),
    Mutant(
        "seed-of-optimizer",
        "optimizer/step.py",
        "            seed_all(self._seed, step, 0, _STEPPING, device=self.device)\n",
        "            pass\n",
        (STATE, "-k", "noise"),
    ),
    Mutant(
        "seed-of-data",
        "session/data.py",
        "    seed_all(seed, 0, 0, _READING)\n",
        "",
        (SAME, "-k", "Split"),
    ),
    Mutant(
        "seed-of-each-split",
        "session/data.py",
        "    seed_all(seed, 0, 0, _READING)\n",
        "    seed_all(seed, [*_SPLITS, split].index(split), 0, _READING)\n",
        ("tests/unit/session/test_data.py::test_the_parts_of_a_random_split_without_a_seed_have_no_row_in_common",),
    ),
    Mutant(
        "seed-of-evaluation",
        "evaluation.py",
        "        seed_all(self._seed, index, _EVALUATING, device=device)\n",
        "",
        (SAME, "-k", "Random"),
    ),
    Mutant(
        "epoch-in-the-order",
        "randomness/order.py",
        "mix(seed, epoch, number) for",
        "mix(seed, number) for",
        (f"{ORDER}::test_epochs_and_seeds_differ",),
    ),
]

_ROWS = [
    Mutant(
        "short-batch",
        "batches/loading.py",
        "return max(0, min(self.micro_batch_size, left))",
        "return self.micro_batch_size if left > 0 else 0",
        (f"{BATCHES}::test_an_epoch_gives_every_row_once_and_its_last_step_is_short",),
    ),
    Mutant(
        "drop-last",
        "batches/loading.py",
        "full if self.drop_last or not rest else full + 1",
        "full + bool(rest)",
        (f"{BATCHES}::test_an_epoch_gives_every_row_once_and_its_last_step_is_short",),
    ),
    Mutant(
        "counted",
        "batches/loading.py",
        "return -(-self.counted_rows(step) // self.micro_batch_size)",
        "return self.global_batch_size // self.micro_batch_size",
        (f"{BATCHES}::test_an_epoch_gives_every_row_once_and_its_last_step_is_short",),
    ),
    Mutant(
        "rows-from-the-beginning",
        "session/build.py",
        "device, config.seed, steps.start, steps.stop",
        "device, config.seed, 0, steps.stop",
        (STATE, "-k", "list"),
    ),
    Mutant(
        "transform-passed-over",
        "sources/rows.py",
        '        if not self._task.overrides("transform"):\n',
        "        if True:\n",
        (f"{BATCHES}::test_transform_draws_from_seed_epoch_and_row_alone",),
    ),
    Mutant(
        "view-passed-over",
        "sources/columns.py",
        "            columns = {}\n",
        "            pass\n",
        ("tests/unit/sources/test_formats.py::test_a_batch_holds_what_the_rows_of_the_data_set_are",),
    ),
    Mutant(
        "selection-passed-over",
        "sources/columns.py",
        "        wanted = rows if self._indices is None else self._indices[rows]\n        batch = Columns()",
        "        wanted = rows\n        batch = Columns()",
        (f"{BATCHES}::test_a_selection_reads_the_rows_it_selected",),
    ),
    Mutant(
        "checksum-of-rows",
        "sources/differences.py",
        'before["checksum"] != now["checksum"]',
        "False",
        (f"{IDENTITY}::test_one_changed_value_is_another_data_set",),
    ),
    Mutant(
        "checksum-without-order",
        "sources/identity.py",
        "values if rows is None else _taken(values, rows)",
        "values",
        (f"{IDENTITY}::test_a_shuffle_is_the_same_data_when_written_out",),
    ),
]

_BUFFERS = [
    Mutant(
        "averaged-over-all",
        "exact/statistics.py",
        ".div_(counted)",
        ".div_(sum(2**b.level for p in self._plan for b in p))",
        (f"{CONTROL}::test_running_statistics_are_averaged_over_the_micro_batches_that_hold_rows",),
    ),
    Mutant(
        "empty-ones-averaged",
        "exact/statistics.py",
        "            row.zero_()\n",
        "            pass\n",
        (f"{CONTROL}::test_running_statistics_are_averaged_over_the_micro_batches_that_hold_rows",),
    ),
    Mutant(
        "unchanged-averaged",
        "exact/statistics.py",
        "arrived & self._anywhere",
        "arrived",
        (f"{CONTROL}::test_statistics_that_no_forward_changes_keep_their_bits",),
    ),
    Mutant(
        "counters-of-rank-0",
        "exact/statistics.py",
        "self._largest = largest.amax(dim=0)",
        "self._largest = largest[0]",
        (SAME, "-k", "SometimesNormed"),
    ),
    Mutant(
        "smallest-counter",
        "exact/statistics.py",
        "self._largest = largest.amax(dim=0)",
        "self._largest = smallest.amin(dim=0)",
        (f"{CONTROL}::test_running_statistics_are_averaged_over_the_micro_batches_that_hold_rows",),
    ),
    Mutant(
        "what-does-not-count-is-not-looked-at",
        "exact/statistics.py",
        "            largest[: len(self._counters)] = _INT64.min\n            smallest[: len(self._counters)] = _INT64.max\n",
        "            largest[:] = _INT64.min\n            smallest[:] = _INT64.max\n",
        (REFUSED, "-k", "AveragingFew"),
    ),
    Mutant(
        "each-rank-judges-its-evaluation-alone",
        "loop.py",
        "self.checks.evaluation(agreed)",
        "self.checks.evaluation()",
        (f"{CASES}::test_what_one_ranks_evaluation_left_changed_is_told_before_another_goes_on",),
    ),
    Mutant(
        "each-from-the-one-before",
        "exact/statistics.py",
        "            self._reset()\n\n    def end_micro_batch",
        "            pass\n\n    def end_micro_batch",
        (SAME, "-k", "SometimesNormed"),
    ),
    Mutant("no-roll-back", "session/failure.py", "            run.sums.statistics.roll_back()\n", "", (FAULT,)),
    Mutant(
        "lost-step-in-buffers",
        "exact/statistics.py",
        "arrived & self._anywhere",
        "self._anywhere",
        (f"{CONTROL}::test_a_step_that_did_not_arrive_leaves_the_running_statistics_as_they_were",),
    ),
]

_STATE = [
    Mutant(
        "optimizer-state-cast",
        "checkpoint/state.py",
        "    own = type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict\n",
        "    own = True\n",
        (STATE, "-k", "master"),
    ),
    Mutant(
        "modes-not-restored", "session/model.py", "            restore_modes(saved, model)\n", "            pass\n", (AFTER,)
    ),
    Mutant(
        "tuples-become-lists",
        "checkpoint/tree.py",
        "    return _SEQUENCES[kind](from_tree(entry, tensor) for entry in entries)",
        "    return [from_tree(entry, tensor) for entry in entries]",
        (STATE, "-k", "tuple"),
    ),
    Mutant(
        "ties-lost",
        "checkpoint/state.py",
        "        if (shard or tensor.numel()) and spot in owners:\n",
        "        if False:\n",
        (f"{SAVING}::test_what_was_saved_goes_on_to_the_same_bits",),
    ),
    Mutant(
        "no-sync-of-files",
        "checkpoint/files.py",
        "        os.fsync(file.fileno())\n",
        "",
        (f"{SAVING}::test_every_file_is_durable_before_the_checkpoint_has_its_name",),
    ),
    Mutant(
        "no-sync-of-names",
        "checkpoint/files.py",
        "            make_durable(self._folder)\n",
        "",
        (f"{SAVING}::test_every_file_is_durable_before_the_checkpoint_has_its_name",),
    ),
    Mutant(
        "no-sync-of-state",
        "run/disk.py",
        "            os.fsync(file.fileno())\n        temporary.rename(path)",
        "        temporary.rename(path)",
        (f"{SAVING}::test_state_json_is_durable_before_it_has_its_name",),
    ),
    Mutant(
        "renamed-first",
        "checkpoint/files.py",
        "            self._write(saved, temporary)\n"
        "            self._run.refuse_if_succeeded()\n            temporary.rename(final)\n",
        "            temporary.rename(final)\n            self._write(saved, final)\n",
        (f"{SAVING}::test_a_disk_that_fills_in_the_middle_of_a_save_costs_nothing",),
    ),
    Mutant(
        "older-one-goes-first",
        "checkpoint/files.py",
        "        temporary.mkdir()\n        try:\n",
        "        temporary.mkdir()\n"
        "        for old in self.all()[self._keep - 1 :]:\n            shutil.rmtree(old)\n        try:\n",
        (f"{SAVING}::test_an_only_checkpoint_stays_until_the_next_is_read_back_whole",),
    ),
    Mutant(
        "not-verified",
        "checkpoint/files.py",
        "        self._read_back(final)\n",
        "",
        (f"{SAVING}::test_an_only_checkpoint_stays_until_the_next_is_read_back_whole",),
    ),
    Mutant(
        "no-walk-back",
        "checkpoint/files.py",
        '                passed_over.append(f"passed over {error}")\n',
        '                return None, 0, [f"passed over {error}"]\n',
        (f"{SAVING}::test_a_flipped_bit_anywhere_is_noticed_and_the_one_before_is_used",),
    ),
    Mutant(
        "overtaken",
        "run/folder.py",
        'if (self.starts / f"{self._start + 1:04d}.json").exists():',
        "if False:",
        (f"{SAVING}::test_a_start_that_was_overtaken_saves_nothing",),
    ),
    Mutant(
        "another-machine-is-seen-late",
        "run/disk.py",
        "        name.touch()\n        name.unlink()\n",
        "        pass\n",
        ("tests/unit/run/test_late_files.py::test_a_start_that_was_cut_off_sees_at_once_that_another_has_taken_over",),
    ),
    Mutant(
        "overtaken-before-the-rename",
        "checkpoint/files.py",
        "            self._run.refuse_if_succeeded()\n            temporary.rename(final)\n",
        "            temporary.rename(final)\n",
        (f"{SAVING}::test_a_start_that_was_overtaken_saves_nothing",),
    ),
    Mutant(
        "rows-beyond-the-checkpoint",
        "tracking/metrics_file.py",
        'return bool(row["step"] < step or (row["step"] == step and ("loss" in row or not evaluates_again)))',
        "return True",
        (f"{TRACKING}::test_rows_after_the_checkpoint_are_cut",),
    ),
]

_EVALUATION = [
    Mutant(
        "nan-is-best",
        "evaluation.py",
        "if math.isnan(value) or (self.value is not None and value >= self.value):",
        "if self.value is not None and value >= self.value:",
        (f"{CASES}::test_nan_is_never_best",),
    ),
    Mutant(
        "nan-is-better",
        "evaluation.py",
        "if not math.isnan(value) and (self.best is None or value < self.best - self._settings.min_delta):",
        "if self.best is None or not value >= self.best - self._settings.min_delta:",
        (f"{CASES}::test_nan_is_never_better",),
    ),
    Mutant(
        "best-is-not-kept",
        "checkpoint/files.py",
        "    return [step for step in old[keep - 1 :] if step != best]\n",
        "    return old[keep - 1 :]\n",
        (f"{CASES}::test_nan_is_never_best",),
    ),
    Mutant(
        "metrics-by-position",
        "evaluation.py",
        "[torch.stack([found.get(name, nothing) for name in names]) for found in measured]",
        "[torch.stack([*found.values(), *[nothing] * (len(names) - len(found))]) for found in measured]",
        (f"{CASES}::test_nan_is_never_best",),
    ),
    Mutant(
        "patience",
        "evaluation.py",
        "self.waited >= self._settings.patience",
        "self.waited > self._settings.patience",
        (f"{CASES}::test_nan_is_never_better",),
    ),
    Mutant(
        "patience-starts-again",
        "session/build.py",
        'values.get("waited", 0)',
        "0",
        (f"{CASES}::test_a_resumed_run_goes_on_waiting_for_something_better",),
    ),
    Mutant(
        "owed-evaluation",
        "session/build.py",
        'is_owed=values.get("owes_evaluation", False)',
        "is_owed=False",
        (f"{CASES}::test_an_evaluation_that_a_stop_broke_off_is_made_by_the_next_start",),
    ),
    Mutant(
        "modes-after-evaluation",
        "evaluation.py",
        "            module.training = training\n",
        "            module.training = True\n",
        (SAME, "-k", "FrozenNorm"),
    ),
]

_WATCH = [
    Mutant(
        "attributes-unwatched",
        "checks/purity.py",
        "            self._states.refuse(step, micro.index)\n",
        "            pass\n",
        (REFUSED, "-k", "calls or past"),
    ),
    Mutant(
        "bits-unwatched",
        "checks/purity.py",
        "            if changed:\n                self._registered.is_spoilt = True\n",
        "            if False:\n                self._registered.is_spoilt = True\n",
        (REFUSED, "-k", "weight"),
    ),
    Mutant(
        "touches-unwatched",
        "checks/purity.py",
        "            self._refuse_touched()\n",
        "            pass\n",
        (f"{CASES}::test_what_shows_only_later_is_named_and_costs_no_finished_step",),
    ),
    Mutant(
        "gradients-unwatched",
        "checks/recompute.py",
        "wanted, allow_unused=True) if loss.requires_grad and wanted else ()",
        "wanted, allow_unused=True) if False else ()",
        (REFUSED, "-k", "Averaging and calls"),
    ),
    Mutant(
        "layout-of-state",
        "checkpoint/tree.py",
        'if "strides" not in tree:',
        "if True:",
        (f"{CASES}::test_state_comes_back_in_the_layout_that_its_parameter_has",),
    ),
    Mutant(
        "momentum-from-nothing",
        "optimizer/build.py",
        'optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)',
        "pass",
        (SAME, "-k", "LaterPart"),
    ),
    Mutant(
        "all-buffers-rolled-back",
        "exact/statistics.py",
        "        for buffer in self._touched:\n            buffer.reset()\n\n    @property",
        "        for buffer in self._fixed:\n            buffer.reset()\n\n    @property",
        (f"{CASES}::test_a_quiet_write_of_after_steps_is_saved_after_a_fault",),
    ),
    Mutant(
        "new-buffers-unwatched",
        "checks/registered.py",
        "        if (size := self._count()) == self._size:\n",
        "        if (size := self._count()):\n",
        (LATE, "-k", "buffer or empty"),
    ),
    Mutant(
        "new-buffers-saved",
        "checks/registered.py",
        "                names[key] = None\n",
        "                pass\n",
        (LATE, "-k", "buffer or empty"),
    ),
    Mutant(
        "evaluation-not-undone",
        "checks/registered.py",
        "                    tensor.copy_(copies[name])\n",
        "                    pass\n",
        (LATE, "-k", "evaluation and mean"),
    ),
    Mutant(
        "spoilt-weights-saved",
        "checks/purity.py",
        "return not self._registered.is_spoilt",
        "return True",
        (LATE, "-k", "weight"),
    ),
    Mutant(
        "evaluation-untried",
        "session/run.py",
        "            agreed(lambda: _try_evaluation(run))\n",
        "",
        (REFUSED, "-k", "evaluation and made"),
    ),
    Mutant(
        "requires-grad-unwatched",
        "checks/purity.py",
        "return [(parameter._version, parameter.requires_grad) for",
        "return [(parameter._version, True) for",
        (f"{CASES}::test_what_shows_only_later_is_named_and_costs_no_finished_step",),
    ),
    Mutant(
        "after-step-unwatched",
        "checks/purity.py",
        '            raise UsageError(\n                f"task: after_step changed',
        '            UsageError(\n                f"task: after_step changed',
        (REFUSED, "-k", "ChangingTheTask"),
    ),
    Mutant(
        "refused-on-one-rank",
        "control/agreement.py",
        "for lines in everyones(refusal) if",
        "for lines in [refusal] if",
        (ONE_RANK,),
    ),
    Mutant(
        "models-not-compared",
        "session/model.py",
        "            if first.get(name) != other.get(name):\n",
        "            if False:\n",
        (ONE_RANK, "-k", "weights"),
    ),
    Mutant(
        "repeated-keys",
        "config/reading.py",
        "repeated = _repeated_keys(node, set())",
        "repeated = list[tuple[str, str]]()",
        ("tests/unit/config/test_config.py::test_a_key_that_stands_twice_is_refused_with_both_lines",),
    ),
    Mutant(
        "sighup",
        "control/agreement.py",
        "signal.SIGUSR1, signal.SIGHUP)",
        "signal.SIGUSR1)",
        (f"{CONTROL}::test_a_signal_that_nohup_ignores_stays_ignored",),
    ),
    Mutant(
        "sighup-under-nohup",
        "control/agreement.py",
        "if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:",
        "if False:",
        (f"{CONTROL}::test_a_signal_that_nohup_ignores_stays_ignored",),
    ),
    Mutant(
        "signal-on-another-rank",
        "exact/step_totals.py",
        "int(flags[:, 0].max())",
        "int(flags[0, 0])",
        (f"{CASES}::test_a_signal_to_one_rank_stops_all",),
    ),
    Mutant(
        "wandb-disabled",
        "tracking/wandb_run.py",
        'or said == "disabled" or forbidden:',
        'or said == "disabled":',
        (f"{TRACKING}::test_the_stricter_of_config_and_environment_holds",),
    ),
    Mutant(
        "wandb-lacks-what-earlier-starts-recorded",
        "tracking/wandb_run.py",
        "        for row in run.rows():\n            self.row(row)\n",
        "",
        ("tests/unit/tracking/test_trackers.py::test_a_server_gets_what_it_lacks_and_nothing_twice",),
    ),
    Mutant(
        "evaluation-counts-as-steps",
        "tracking/reports.py",
        "        self.pace.pause()\n",
        "",
        ("tests/unit/tracking/test_pace.py::test_a_row_counts_its_steps_and_leaves_evaluation_out",),
    ),
]

_SEEN = [
    Mutant(
        "gaps-between-starts-in-the-pace",
        "report/timeline.py",
        "(np.diff(of_start) == 0) & ",
        "",
        (f"{REPORT}::test_throughput_counts_neither_gaps_between_starts_nor_evaluation",),
    ),
    Mutant(
        "tags-in-a-reports-data",
        "report/markup.py",
        'text.replace("<", "\\\\u003c")',
        "text",
        (f"{REPORT}::test_what_users_write_is_text_and_never_markup",),
    ),
]

_CALLS: list[Mutant] = [
    Mutant(
        "a-notebook-that-ends-kills-its-run",
        "commands/spawn.py",
        "partial(end_with_parent, signal.SIGTERM)",
        "partial(end_with_parent, signal.SIGKILL)",
        ("tests/distributed/test_call.py::test_the_run_stops_and_saves_at",),
    ),
    Mutant(
        "a-parameter-taken-for-a-cells-name",
        "commands/notebook_source.py",
        "else symbol.is_global())",
        "else symbol.is_referenced())",
        ("tests/unit/commands/test_notebook_source.py::test_the_file_has_all_that_the_class_uses_and_nothing_else",),
    ),
]

_PARTS: list[Mutant] = [
    Mutant(
        "parts-as-they-are-typed",
        "config/schema.py",
        "in sorted(self.optimizer.items())",
        "in self.optimizer.items()",
        (f"{OPTIM}::test_parts_in_another_order_are_the_same_optimizer",),
    ),
    Mutant(
        "rows-that-draw-unseeded-for-the-identity",
        "sources/reading.py",
        "        seed_all(number, 0, 0, LOADING)\n",
        "",
        (
            "tests/unit/sources/test_sources.py::test_before_loader_processes_begin_no_row_is_read_here_and_workers_may_change_on_a_resume",
        ),
    ),
    Mutant(
        "survivors-save-beyond-a-lost-best",
        "session/failure.py",
        "saver.would_meet_again(best)",
        "False",
        ("tests/unit/session/test_failure.py::test_a_survivor_saves_nothing_beyond_a_best_that_never_reached_the_disk",),
    ),
    Mutant(
        "draws-of-another-epoch",
        "randomness/order.py",
        "first, second = _round_keys(self.seed, epoch)[:2]",
        "first, second = _round_keys(self.seed, 0)[:2]",
        (
            "tests/unit/randomness/test_order.py::test_weighted_rows_come_as_often_as_their_weights_say_and_without_weight_never",
        ),
    ),
]

_BLOCKS, _PARQUET, _MIX = (
    "tests/unit/randomness/test_block_order.py",
    "tests/unit/sources/test_parquet.py",
    "tests/unit/sources/test_mix.py",
)
_STREAMS = [
    Mutant(
        "rows-of-a-window-in-their-own-order",
        "randomness/block_order.py",
        "places = super()._at(positions, epoch)",
        "places = positions",
        (f"{_BLOCKS}::test_epochs_and_seeds_differ_in_blocks_and_within_windows",),
    ),
    Mutant(
        "blocks-dealt-once-for-all-epochs",
        "randomness/block_order.py",
        "mix(self.seed, _DEALING, epoch)",
        "mix(self.seed, _DEALING, 0)",
        (f"{_BLOCKS}::test_epochs_and_seeds_differ_in_blocks_and_within_windows",),
    ),
    Mutant(
        "read-ahead-of-the-window-after-the-next",
        "randomness/block_order.py",
        "following = (epoch, window + 1) if window + 1 <",
        "following = (epoch, window + 2) if window + 2 <",
        (f"{_BLOCKS}::test_a_window_is_read_through_before_the_next_and_what_comes_next_is_known",),
    ),
    Mutant(
        "a-read-cut-short-is-taken",
        "sources/parquet/store.py",
        "if len(part) != after - first:",
        "if not part:",
        (f"{_PARQUET}::test_a_store_in_trouble_is_asked_again_and_named_once",),
    ),
    Mutant(
        "a-store-is-asked-again-at-once",
        "sources/parquet/store.py",
        "min(asked_wait_s(error), _LONGEST_ASKED_S))",
        "0.0)",
        (f"{_PARQUET}::test_a_store_is_asked_again_as_late_as_it_wishes",),
    ),
    Mutant(
        "a-store-is-named-each-time",
        "control/store_wait.py",
        "not self._until[1], 1.0",
        "not self._until[1], 0.0",
        (f"{_PARQUET}::test_a_store_in_trouble_is_asked_again_and_named_once",),
    ),
    Mutant(
        "a-file-that-changed-is-read-on",
        "sources/parquet/source.py",
        "                self._store.refuse_change(file)\n",
        "                pass\n",
        (f"{_PARQUET}::test_a_file_that_changes_or_vanishes_after_the_start_is_refused_by_name",),
    ),
    Mutant(
        "the-disk-fills",
        "sources/parquet/row_groups.py",
        "if used + needed <= self._limit:",
        "if used + needed <= 10 * self._limit:",
        (f"{_PARQUET}::test_the_disk_holds_no_more_than_was_allowed_and_the_next_window_before_it_is_asked_for",),
    ),
    Mutant(
        "each-process-decodes-for-itself",
        "sources/parquet/source.py",
        "self._folder = here / digest(*marks",
        "self._folder = here / digest(id(self), *marks",
        (f"{_PARQUET}::test_footers_are_read_once_and_row_groups_once_for_all_processes_of_a_machine",),
    ),
    Mutant(
        "a-column-that-one-group-has-in-another-shape",
        "sources/parquet/row_groups.py",
        "if len(known) < len(columns) or",
        "if not known or",
        (f"{_PARQUET}::test_values_of_any_type_are_a_rows_own_whatever_is_read_beside_it",),
    ),
    Mutant(
        "the-watchdog-fires-at-a-store-in-trouble",
        "control/watchdog.py",
        "store_wait.is_on and self._phase in",
        "False and self._phase in",
        (f"{_PARQUET}::test_the_watchdog_waits_for_whoever_asks_a_store_again",),
    ),
    Mutant(
        "a-mixture-begins-its-sources-anew",
        "sources/mix.py",
        "positions = np.arange(epoch * self.num_rows + start, epoch * self.num_rows + stop)",
        "positions = np.arange(start, stop)",
        (f"{_MIX}::test_each_source_has_its_share_and_gives_all_its_rows_before_any_again",),
    ),
    Mutant(
        "one-order-for-all-epochs-of-a-source",
        "sources/mix.py",
        "order.rows(epoch, start, stop))",
        "order.rows(0, start, stop))",
        (f"{_MIX}::test_epochs_of_a_source_have_orders_of_their_own_and_entering_anywhere_gives_the_same",),
    ),
    Mutant(
        "shares-nearly-exact",
        "sources/mix.py",
        "np.argsort((2 * turns + 1) /",
        "np.argsort((2 * turns + 2) /",
        ("tests/unit/sources/test_mix.py::test_what_a_mixture_gives_is_what_counting_gives",),
    ),
]

_SHARDED = [
    Mutant(
        "sharded-leaves-dealt-like-blocks",
        "exact/tree.py",
        "range(start + place, start + rounds * each, each)",
        "range(start + place * rounds, start + (place + 1) * rounds)",
        (SHARDED,),
    ),
    Mutant(
        "sharded-rounds-first-leaf-off-by-one",
        "exact/sharded/exchange.py",
        "    first = rounds.round * len(gradients)\n",
        "    first = rounds.round * len(gradients) + 1\n",
        (SHARDED,),
    ),
    Mutant(
        "sharded-gradients-of-no-rows-kept",
        "exact/sharded/sum.py",
        "            parameter.grad = parameter.grad.zero_() if self._syncs and parameter.grad is not None else None\n",
        "            pass\n",
        (SHARDED,),
    ),
    Mutant(
        "recompute-within-compiled-blocks",
        "session/model.py",
        "    if config.compile:\n        compile_blocks(model)\n    if config.recompute:\n        recompute_blocks(model)\n",
        "    if config.recompute:\n        recompute_blocks(model)\n    if config.compile:\n        compile_blocks(model)\n",
        ("tests/unit/session/test_model.py::test_recompute_keeps_the_bits_of_compiled_blocks",),
    ),
    Mutant(
        "a-copy-computes-with-the-compiled-models-weights",
        "session/blocks.py",
        'if "forward" in vars(block):',
        "if True:",
        ("tests/unit/session/test_model.py::test_a_copy_of_a_compiled_model_computes_with_weights_of_its_own",),
    ),
    Mutant(
        "an-evaluations-way-is-not-compared",
        "evaluation.py",
        "                    watch.meeting()\n                    self._sharded.refuse_another_way()\n",
        "                    watch.meeting()\n",
        ("tests/distributed/test_sharding.py::test_what_cannot_be_sharded_is_refused_in_a_line",),
    ),
    Mutant(
        "who-raises-while-looked-at-tells-nobody",
        "exact/sharded/model.py",
        "                self.refuse_other_mark(_RAISED)\n",
        "                pass\n",
        (
            "tests/distributed/test_sharding.py::test_what_one_rank_alone_raises_while_it_is_looked_at_again_is_nobodys_business",
        ),
    ),
    Mutant(
        "where-all-hang-nothing-is-saved",
        "control/watchdog.py",
        " or len(culprits) == self._world_size > 1:",
        ":",
        ("tests/chaos/test_hangs.py::test_where_all_hang_in_their_own_code_what_is_finished_is_saved",),
    ),
    Mutant(
        "what-comes-after-an-abort-counts",
        "exact/step_totals.py",
        "        gate.refuse()\n",
        "",
        ("tests/unit/control/test_living.py::test_rubbish_that_came_in_by_an_abort_is_no_steps_total",),
    ),
    Mutant(
        "a-death-is-heard-at-the-next-meeting",
        "control/watchdog.py",
        "self._living.dead() if self._limit_s else {}",
        "{}",
        ("tests/chaos/test_devices.py::test_a_death_while_the_other_waits_for_its_device_loses_no_finished_step",),
    ),
    Mutant(
        "a-main-thread-that-waits-in-c-is-left-to-the-launcher",
        "control/watchdog.py",
        "            if self._phase != SAVING:\n                self._end(self.rescue)\n",
        "            pass\n",
        ("tests/chaos/test_devices.py::test_a_death_while_the_other_waits_for_its_device_loses_no_finished_step",),
    ),
    Mutant(
        "a-device-stands-where-its-host-does",
        "control/watchdog.py",
        "            behind = self.progress.behind()\n",
        "            pass\n",
        ("tests/unit/control/test_living.py::test_a_device_that_hangs_is_named_where_all_hosts_wait",),
    ),
    Mutant(
        "a-loaders-signals-are-the-ranks",
        "control/agreement.py",
        "signal.set_wakeup_fd(-1)",
        "None",
        ("tests/unit/control/test_living.py::test_a_loaders_signals_are_not_this_ranks",),
    ),
    Mutant(
        "each-rank-blames-itself",
        "control/culprits.py",
        "        if world_size == 1:\n",
        "        if not self.culprits:\n",
        ("tests/chaos/test_hangs.py::test_where_all_wait_for_each_other_nobody_is_blamed_and_nothing_is_lost",),
    ),
    Mutant(
        "a-rank-that-is-a-step-behind-is-not-named",
        "control/culprits.py",
        "            late = list(self.rows)\n",
        "            pass\n",
        ("tests/chaos/test_hangs.py::test_a_rank_that_hangs_is_named_within_the_watchdogs_time",),
    ),
    Mutant(
        "after-step-counts-as-waiting",
        "session/model.py",
        '            watch.at("running after_step")\n',
        "",
        ("tests/chaos/test_hangs.py::test_a_rank_that_hangs_is_named_within_the_watchdogs_time",),
    ),
    Mutant(
        "an-audit-counts-as-waiting-for-rows",
        "control/watchdog.py",
        "        self.at(_BEGINNING)\n",
        "        self.at(_READING)\n",
        ("tests/unit/tracking/test_pace.py::test_an_audits_computing_is_no_waiting_for_data",),
    ),
    Mutant(
        "an-audit-compares-with-a-forward-looked-at-again",
        "exact/sharded/sum.py",
        "self._prints, self._stash = False, True, prints, {}",
        "self._stash = False, True, {}",
        ("tests/distributed/test_sharding.py::test_leaves_that_end_short_and_a_forward_computed_again_change_nothing",),
    ),
    Mutant(
        "a-shards-first-row",
        "exact/sharded/model.py",
        "row_cuts(shape[0], self.world_size)[self.rank]",
        "min(self.rank * (shape[0] // self.world_size), shape[0])",
        (RESHARDED,),
    ),
    Mutant(
        "rows-of-nodes-taken-for-those-of-places",
        "exact/sharded/scatter.py",
        "gradients.view(self._num_nodes, self._each, -1).transpose(0, 1).contiguous()",
        "gradients.view(self._each, self._num_nodes, -1).contiguous()",
        (IN_NODES,),
    ),
    Mutant(
        "small-messages-in-the-order-of-arrival",
        "exact/totals.py",
        "self._swap(own)[self._places]",
        "self._swap(own)",
        ("tests/distributed/test_exact.py::test_a_small_message_leaves_a_node_once_whenever_nodes_double",),
    ),
    Mutant(
        "nodes-earlier-blocks-left-behind",
        "exact/sharded/exchange.py",
        "[writer(values) for _, values in others]",
        "[writer(last) for _ in others]",
        (IN_NODES,),
    ),
    Mutant(
        "a-nodes-last-leaves-taken-for-the-next-ones",
        "exact/tree.py",
        "leaf if leaf < stop else num_leaves + leaf - stop",
        "leaf",
        ("tests/unit/exact/test_tree.py::test_nodes_deal_each_leaf_once_and_all_ranks_have_as_many",),
    ),
    Mutant(
        "the-store-of-a-node-broken-with-its-collectives",
        "session/saving.py",
        "    run.watch.stores.add(node.port)\n",
        "",
        ("tests/distributed/test_sharding.py::test_a_run_goes_on_sharded_or_not_as_if_nothing_had_been",),
    ),
    Mutant(
        "sharded-norm-of-a-ranks-own-rows",
        "exact/sharded/sum.py",
        "        dist.all_reduce(parts, group=self._sharded.group)\n",
        "",
        (SHARDED,),
    ),
    Mutant(
        "statistics-summed-in-the-ranks-order",
        "exact/statistics.py",
        "sorted(everyones, key=lambda pair: pair[0].start)",
        "everyones",
        (SHARDED,),
    ),
    Mutant(
        "sharded-rows-at-a-wrong-offset",
        "checkpoint/sharded.py",
        "file.seek(offset + first *",
        "file.seek(offset + self._rank *",
        ("tests/unit/checkpoint/test_sharded.py::test_the_files_are_those_of_one_process",),
    ),
    Mutant(
        "digests-of-a-ranks-rows-not-compared",
        "checkpoint/sharded.py",
        "!= words[name]:",
        "is None:",
        ("tests/unit/checkpoint/test_sharded.py::test_rows_that_the_disk_holds_otherwise_are_no_checkpoint",),
    ),
    Mutant(
        "recomputed-with-later-numbers-and-buffers",
        "session/blocks.py",
        "            names[key] = value  # a copy, so that what the forward left stays as it is\n",
        "            pass\n",
        (SHARDED,),
    ),
    Mutant(
        "rows-alone-taken-for-the-parameter",
        "exact/sharded/model.py",
        "            if func.__name__ not in _HARMLESS:\n",
        "            if False:\n",
        (PAST,),
    ),
    Mutant(
        "a-block-that-runs-twice",
        "exact/sharded/exchange.py",
        "            if self.round == rounds.round:\n",
        "            if False:\n",
        (PAST,),
    ),
]
MUTANTS = [
    *_SHARDED,
    *_STREAMS,
    *_PARTS,
    *_SEEN,
    *_CALLS,
    *_RATES,
    *_SUM,
    *_SEEDS,
    *_ROWS,
    *_BUFFERS,
    *_STATE,
    *_EVALUATION,
    *_WATCH,
    Mutant(
        "nothing-is-computed-again",
        "checks/audit.py",
        "            if first != again:\n",
        "            if False:\n",
        (f"{CASES}::test_what_remembers_is_refused_wherever_it_does", "-k", "iterator and 1"),
    ),
    Mutant(
        "rows-are-not-compared",
        "checks/audit.py",
        "other_rows=not is_same",
        "other_rows=False",
        (f"{CASES}::test_what_remembers_is_refused_wherever_it_does", "-k", "rows"),
    ),
    Mutant(
        "no-neighbour-is-compared",
        "checks/audit.py",
        "            if not recomputed[-1] and recomputed != (first := everyone[checked][0]):\n",
        "            if not recomputed[-1] and (first := everyone[checked][0]) and False:\n",
        (f"{CASES}::test_a_cache_that_stays_as_its_process_filled_it_shows_between_processes",),
    ),
    Mutant(
        "after-step-once-on-one-process",
        "checks/after_step.py",
        "            self._do_twice(step, change)\n",
        "            change()\n",
        (f"{CASES}::test_what_remembers_is_refused_wherever_it_does", "-k", "after_step and 1"),
    ),
    Mutant(
        "after-step-not-compared-between-ranks",
        "checks/after_step.py",
        "            self._refuse_unequal(gather(self._prints()))\n",
        "            gather(self._prints())\n",
        (f"{CASES}::test_what_remembers_is_refused_wherever_it_does", "-k", "after_step and 2"),
    ),
    Mutant(
        "no-proof-is-compared",
        "checks/proof.py",
        "        if found == recorded or len(",
        "        if True or len(",
        (f"{HIDDEN}::test_a_start_is_told_what_the_one_before_remembered", "-k", "loss and 1"),
    ),
    Mutant(
        "no-second-start-is-asked",
        "session/second.py",
        "            for line in lines:\n",
        "            for line in lines[:0]:\n",
        (f"{HIDDEN}::test_a_run_whose_task_has_come_to_remember_is_told_so_at_its_end", "-k", "14"),
    ),
    Mutant(
        "a-loss-may-talk",
        "checks/alone.py",
        "        if heard:\n",
        "        if False:\n",
        (f"{CASES}::test_a_loss_that_is_not_computed_alone_is_refused_before_the_first_step", "-k", "torch and 1"),
    ),
    Mutant(
        "a-loss-may-ask-how-many-there-are",
        "checks/alone.py",
        "    if found[:2] == found[2:]:",
        "    if False:",
        (f"{CASES}::test_a_loss_that_is_not_computed_alone_is_refused_before_the_first_step", "-k", "number and 1"),
    ),
    Mutant(
        "rows-are-given-and-not-lent",
        "sources/rows.py",
        "            return [_lent(row) for row in found]\n",
        "            return found\n",
        (SAME, "-k", "Hidden"),
    ),
    Mutant(
        "evaluations-are-not-computed-again",
        "evaluation.py",
        "            if self._is_audited and (is_last or self._number & (self._number - 1) == 0):\n",
        "            if False:\n",
        (f"{HIDDEN}::test_an_evaluation_that_remembers_is_refused_when_it_is_made",),
    ),
    Mutant(
        "no-neighbour-evaluates",
        "evaluation.py",
        '*([ranks[number - 1]["beside"]] if len(ranks) > 1 else [])',
        "*[]",
        (f"{HIDDEN}::test_an_evaluation_that_keeps_what_its_rank_saw_first_shows_between_ranks",),
    ),
    Mutant(
        "beside-the-steps-old-buffers-stand",
        "exact/statistics.py",
        "        if self._is_begun:\n            self._reset()\n        try:",
        "        self._reset()\n        try:",
        (f"{CASES}::test_what_after_step_changes_is_saved_and_comes_back",),
    ),
    Mutant(
        "an-evaluation-owed-is-forgotten-before-it-is-judged",
        "evaluation.py",
        "            return None\n        return {",
        "            return None\n        self.is_owed = False\n        return {",
        (LATE, "-k", "evaluation and mean"),
    ),
    Mutant(
        "a-program-takes-the-tensor-beside-its-own",
        "exact/norm_kernels.py",
        "is_behind = tl.load(tensors + 4 * middle) <= program",
        "is_behind = tl.load(tensors + 4 * middle) < program",
        ("tests/unit/exact/test_norm_kernels.py::test_its_arithmetic_by_the_interpreter",),
    ),
    Mutant(
        "a-step-writes-what-a-save-still-reads",
        "optimizer/step.py",
        "            torch.cuda.current_stream().wait_event(self.copied)\n",
        "",
        ("tests/unit/checkpoint/test_slab.py::test_the_next_step_waits_for_the_copy_and_the_one_after_does_not",),
    ),
    Mutant(
        "a-forward-writes-what-a-save-still-reads",
        "checkpoint/slab.py",
        "        self._stream.wait_stream(torch.cuda.current_stream())\n",
        "",
        (
            "tests/unit/checkpoint/test_slab.py::test_beside_a_gpu_what_a_forward_writes_is_copied_before_it_and_the_rest_beside_it",
        ),
    ),
    Mutant(
        "sgd-of-16-bits-is-fused",
        "optimizer/build.py",
        "return is_short and device.type",
        "return False and device.type",
        (f"{OPTIM}::test_sgd_of_16_bits_moves_weights_on_a_cpu",),
    ),
    Mutant(
        "divided-before-the-step-and-within",
        "optimizer/fused.py",
        "            divisor = None\n",
        "",
        ("tests/unit/optimizer/test_fused.py::test_dividing_within_the_step_gives_the_bits_of_dividing_before_it",),
    ),
    Mutant(
        "a-second-start-evaluates-last",
        "session/second.py",
        "False, backwards)",
        "False, False)",
        (f"{HIDDEN}::test_what_a_row_of_training_brings_to_an_evaluations_mind",),
    ),
    Mutant(
        "compiles-limit-knows-of-no-blocks",
        "session/blocks.py",
        "MOST_SHAPES * _MODES * len(blocks)",
        "MOST_SHAPES",
        ("tests/unit/session/test_model.py::test_blocks_that_differ_in_a_plain_attribute_are_compiled_in_both_modes",),
    ),
    Mutant(
        "cudnns-attention-stays",
        "session/attention.py",
        "    switches.enable_cudnn_sdp(False)\n",
        "",
        ("tests/unit/session/test_attention.py::test_auto_takes_the_fastest_that_is_installed_and_never_cudnns",),
    ),
    Mutant(
        "norms-in-two-ways-under-fast",
        "session/run.py",
        'if line.startswith("norm was ")]',
        "if False]",
        ("tests/distributed/test_faults.py::test_a_job_of_mixed_kinds_is_refused",),
    ),
    Mutant(
        "what-lies-in-pieces-is-read-by-address",
        "exact/norm.py",
        "else real.flatten(1)).contiguous()",
        "else real.flatten(1))",
        ("tests/unit/exact/test_norm_kernels.py::test_its_arithmetic_by_the_interpreter",),
    ),
]
