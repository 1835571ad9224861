"""`samestep prove`: stretches of a run trained again here, and what that says of the whole of it."""

from __future__ import annotations

import datetime
import os
import platform
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from samestep.commands.pinned import listed
from samestep.commands.prove.record import Check, Draw, Proof, broken_at, read_proof, write_proof
from samestep.commands.prove.recorded import Recorded
from samestep.commands.prove.stretches import Stretch, draw, in_the_draw, named, odds
from samestep.commands.version import versions
from samestep.config import Config
from samestep.errors import TrainingError, UsageError
from samestep.run.folder import RunFolder

if TYPE_CHECKING:
    from samestep.commands.prove.training import Result

_SEEDS = 1 << 32
_TENSORS_SHOWN = 2


def prove(folder: RunFolder, config: Config, share: float, seed: int | None, words: Sequence[str]) -> None:
    """Train a share of a run's stretches again, or those named, and write RUN.proof.json beside it if all is as recorded.

    Args:
        seed: of the draw; by default one that nobody could know.
        words: stretches by the steps they lie between, as 200-400.

    Raises UsageError where nothing can be told, TrainingError where anything is not as the run has it.
    """
    run = Recorded(folder, config)
    asked = named(words, run.stretches)
    if not asked:
        _drawn_from(run, run.stretches, share)
    path = _proof_file(folder)
    earlier = _earlier(path, run)
    proof = run.along(run.steps)
    possible, kind, others = run.of_this_kind()
    if others:
        left_out = len(run.stretches) - len(possible)
        print(f"{left_out} stretches were trained on another kind of device ({listed(others)}), and are left out")
    if lost := [stretch for stretch in asked if stretch not in possible]:
        raise UsageError(f"--stretch: {lost[0]} were trained on another kind of device ({listed(others)}); name others")
    how, chosen = None, asked
    if not asked:
        pool = _drawn_from(run, possible, share)
        how = Draw(share=share, seed=secrets.randbelow(_SEEDS) if seed is None else seed, total=len(pool))
        chosen = draw(pool, share, how.seed)
        for stretch in sorted(set(possible) - set(pool)):
            print(f"{stretch} are most of the run, and not drawn: --stretch {_word(stretch)} trains them again; {_MORE}")
    told = f"drawn from {how.total} by --seed {how.seed}" if how else "named"
    print(f"{run.name}: {len(run.stretches)} stretches, {run.num_steps} steps; {len(chosen)} {told}", flush=True)
    code, num_rows = _all_trained(run, chosen)
    check = Check(
        time=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        host=platform.node(),
        kind=kind,
        versions=versions(),
        code=code,
        draw=how,
        stretches=[(stretch.first, stretch.last) for stretch in chosen],
        rows=num_rows,
    )
    write_proof(path, proof.model_copy(update={"checks": [*(earlier.checks if earlier else []), check]}))
    print(odds(how.total, len(chosen)) if how else "they were named and not drawn, and say nothing of the other steps")
    print(f"wrote {path}\nproof {proof.chain}", flush=True)


def check(path: Path, folder: RunFolder, config: Config, again: bool) -> None:
    """Compare a proof with a run's folder.

    Args:
        again: train its stretches again here as well.

    Raises TrainingError where the two differ, or a stretch does from what the run has.
    """
    proof, run = read_proof(path), Recorded(folder, config)
    if (step := broken_at(proof)) is not None:
        raise TrainingError(f"{path}: its own hashes do not fit together from step {step} on: somebody has edited it")
    if parted := _parted(proof, run):
        raise TrainingError(f"{run.name} is not what {path} has: {listed(parted)}")
    print(f"{run.name} is what {path} has, to step {proof.links[-1].step}: config, code, data, checkpoints and rows")
    for one in proof.checks:
        steps = ", ".join(str(Stretch(*pair)).removeprefix("steps ") for pair in one.stretches)
        how = f", drawn from {one.draw.total} by --seed {one.draw.seed}" if one.draw else ""
        print(f"trained again at {one.time} on {one.host}: steps {steps}{how}")
    if again:
        possible, _, others = run.of_this_kind()
        if lost := [stretch for stretch in proof.stretches if stretch not in possible]:
            raise UsageError(f"--again: {lost[0]} cannot be trained here ({listed(others) or 'other checkpoints are kept'})")
        _all_trained(run, proof.stretches)
    print(f"proof {proof.chain}", flush=True)


_MORE = "checkpoint: {milestones: N} in the config keeps more checkpoints of the next run"


def _word(stretch: Stretch) -> str:
    return f"{stretch.first}-{stretch.last}"


def _drawn_from(run: Recorded, stretches: Sequence[Stretch], share: float) -> list[Stretch]:
    """Those that may be drawn. Raises UsageError if there is none."""
    pool = in_the_draw(stretches, share)
    if not pool:
        word = _word(max(stretches, key=lambda stretch: stretch.num_steps))
        raise UsageError(
            f"{run.name}: its checkpoints leave nothing to draw from but most of the run in one piece; --stretch {word} trains "
            f"that again; {_MORE}"
        )
    return pool


def _proof_file(folder: RunFolder) -> Path:
    """Beside the run's folder, in which nothing is written."""
    path = folder.path if folder.path.name not in ("", "..") else folder.path.resolve()
    return path.with_name(f"{path.name}.proof.json")


def _earlier(path: Path, run: Recorded) -> Proof | None:
    """The proof that is there already, to which this one's checks are added. Raises UsageError where that cannot be."""
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: could not be written there; mend that, or prove a copy of the run elsewhere")
    if not path.exists():
        return None
    earlier = read_proof(path)
    if broken_at(earlier) is not None or (parted := _parted(earlier, run)):
        why = "it was edited" if broken_at(earlier) is not None else listed(parted)
        raise UsageError(f"{path}: is not a proof of the run as it stands ({why}); move it away to prove anew")
    return earlier


def _parted(proof: Proof, run: Recorded) -> list[str]:
    """In what a run differs from a proof, which may be of its beginning alone."""
    there = [link.step for link in proof.links if link.step in run.steps]
    return proof.parted(run.along(there)) if there else ["none of its checkpoints is there any more"]


def _all_trained(run: Recorded, stretches: Sequence[Stretch]) -> tuple[dict[str, str], int]:
    """Train stretches again, and say of each what came of it; returns the code that is here, and how many rows were compared.

    Raises TrainingError if any is not as the run has it, UsageError where this machine does not agree with itself.
    """
    from samestep.commands.prove.training import train_again

    code, changed = run.code_here()
    if changed:
        print(f"note: the code here is not the run's ({', '.join(changed)})", flush=True)
    if behind := sum(row["step"] > run.steps[-1] for row in run.rows):
        print(f"note: {behind} rows lie behind the last checkpoint, step {run.steps[-1]}: nothing proves them", flush=True)
    if run.parent:
        print(f"note: up to step {run.origin} it is {run.parent['run']} that was trained: prove that", flush=True)
    wrong = num_rows = 0
    for stretch in stretches:
        result = train_again(run.folder, stretch, run.rows)
        num_rows += result.num_rows
        if result.holds:
            print(
                f"{stretch}: the same bits, {result.num_rows} rows and the state at the end ({result.took_s:.1f} s)", flush=True
            )
            continue
        if result.computed and train_again(run.folder, stretch, run.rows).computed != result.computed:
            raise UsageError(
                f"{run.name}: {stretch}, trained twice here, came out in two ways: something is unseeded or not deterministic, "
                "and nothing can be proved (samestep verify tells what)"
            )
        wrong += 1
        print(f"{stretch}: {_told(run, result)}", flush=True)
    if wrong:
        causes = f", nor is the code here the run's ({', '.join(changed)})" if changed else ""
        raise TrainingError(
            f"{run.name} is not what its config comes to: {wrong} of {len(stretches)} stretches trained again are not as "
            f"recorded{causes}; no proof was written"
        )
    num_steps = sum(stretch.num_steps for stretch in stretches)
    in_all = sum(run.origin < row["step"] <= run.steps[-1] for row in run.rows)
    print(
        f"{run.name} is as recorded wherever it was trained again: {len(stretches)} of {len(run.stretches)} stretches, "
        f"{num_steps} of {run.num_steps} steps, {num_rows} of {in_all} rows",
        flush=True,
    )
    return code, num_rows


def _told(run: Recorded, result: Result) -> str:
    """What differs in a stretch, and what that looks like."""
    stretch, starts = result.stretch, run.starts_within(result.stretch)
    restarted = f"; a start went on from step {starts[-1]} amid them" if starts else ""
    tensors = ", ".join(result.tensors[:_TENSORS_SHOWN])
    more = f" and {len(result.tensors) - _TENSORS_SHOWN} more" if len(result.tensors) > _TENSORS_SHOWN else ""
    if result.failure:
        return f"trained again they fail: {result.failure}"
    if not result.wrong:
        return (
            f"all {result.num_rows} rows are as recorded, and the checkpoint of step {stretch.last} is not ({tensors}{more}): "
            f"it was changed or swapped, or its last steps were computed wrongly{restarted}"
        )
    step, what = result.wrong[0]
    if not result.tensors:
        others = len(result.wrong) - 1
        which = f"That row and {others} more were" if others else "That row was"
        return f"step {step}: {what}. {which} not earned: the state after step {stretch.last} is right"
    rows = [row["step"] for row in run.rows if stretch.first < row["step"] < step]
    since = f"since step {rows[-1]}, the row before" if rows else f"since step {stretch.first}, where it begins"
    swapped = "" if rows or not stretch.first else f", or the checkpoint of step {stretch.first} was changed or swapped"
    return (
        f"step {step}: {what}, and so is all that follows, to the state after step {stretch.last}. A step was computed wrongly "
        f"{since}{swapped}{restarted}"
    )
