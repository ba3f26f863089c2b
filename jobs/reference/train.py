"""`python -m jobs.reference.train`: behaviour cloning in JAX, resumable to the last bit.

A batch depends on (seed, step) alone, the learning rate on the step and the run's whole length, so where a training is cut makes no
difference. Saves run in the background; the stop file is looked at between steps. Compiled programs are cached under HOME, which makes a
resumed start quick; one CPU thread by default, because the order of additions must not depend on the machine.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.errors import BadInput, SegueError
from jobs.reference import faults, instructions
from jobs.reference.command_line import natural, run_main

_PEAK_RATE = 3e-3


class NotANumber(SegueError):
    """The loss is no number any more; nothing is saved after that."""


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m jobs.reference.train", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help=".npz file, a directory of them, or a LeRobot dataset (v2.1)")
    add("--checkpoints", type=Path, default=Path("checkpoints"), help="used without SEGUE_CHECKPOINT_DIR")
    add("--steps", type=natural, help="used without SEGUE_STEPS (default 400)")
    add("--save-interval", type=natural, help="used without SEGUE_SAVE_INTERVAL (default 100)")
    add("--batch-size", type=natural, default=64)
    add("--hidden", type=natural, default=128, help="width of the network")
    add("--seed", type=int, default=0)
    add("--keep", type=natural, default=2, help="checkpoints to keep in the directory")
    add("--threads", type=natural, default=1, help="CPU threads of one step")
    add("--step-seconds", type=float, default=0.0, help="each step takes at least so long")
    add("--pad-mb", type=float, default=0.0, help="ballast in each checkpoint")
    add("--workers", type=int, default=0, help="helper processes")
    add("--crash-at", type=natural, metavar="STEP")
    add("--hang-at", type=natural, metavar="STEP")
    add("--nan-at", type=natural, metavar="STEP", help="the loss of this step is not a number")
    return parser.parse_args(arguments)


def prepare_jax(threads: int) -> None:
    """Before JAX is imported: the platform (CPU unless told otherwise) and its threads."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("NPROC", str(threads))
    if threads == 1 and "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
    import jax

    if cache := compile_cache():
        change: Any = jax.config.update
        change("jax_compilation_cache_dir", str(cache))
        # XLA's own caches put their path into the key: carried to another scratch directory, nothing would be found again.
        change("jax_persistent_cache_enable_xla_caches", "none")
        change("jax_persistent_cache_min_compile_time_secs", 0.0)
        change("jax_persistent_cache_min_entry_size_bytes", -1)


def compile_cache() -> Path | None:
    """Under HOME, one directory for each kind of processor: a program compiled for another one might not run. None without a HOME."""
    import hashlib

    home = os.environ.get("HOME")
    if not home or not os.access(home, os.W_OK):
        return None
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return Path(home) / ".cache" / "jax" / hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]


class Trainer:
    """Parameters, optimizer and the compiled step. ``step`` counts updates done."""

    def __init__(self, options: argparse.Namespace, told: instructions.Instructions) -> None:
        import jax
        import optax
        from flax import nnx

        from jobs.reference import checkpoints
        from jobs.reference.episodes import find
        from jobs.reference.policy import build, config_for

        self._options = options
        self._episodes = find(options.data)
        self.config = config_for(self._episodes, options.hidden)
        self.step = told.resume_step
        restored = checkpoints.restore(told.checkpoints, self.step) if self.step else None
        if restored is not None:
            self._check_fits(restored.config)
            self.config = restored.config
        graph, shapes, initial = build(self.config)
        warm_up = max(1, min(50, told.steps // 10))
        rate = optax.warmup_cosine_decay_schedule(
            0.0, _PEAK_RATE, warm_up, max(told.steps, warm_up + 1), _PEAK_RATE / 100
        )
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-4))
        if restored is None:
            self._parameters = jax.jit(initial)(options.seed)
            self._optimizer = jax.jit(optimizer.init)(self._parameters)
        else:
            nnx.replace_by_pure_dict(shapes, dict(restored.parameters))
            self._parameters = shapes
            structure: Any = jax.tree.structure(jax.eval_shape(optimizer.init, shapes))
            if structure.num_leaves != len(restored.optimizer):
                raise BadInput(
                    f"{told.checkpoints / str(self.step)}: was saved with another optimizer; it cannot be resumed"
                )
            self._optimizer = jax.tree.unflatten(structure, restored.optimizer)

        def loss_of(parameters: Any, state: Any, frames: Any, actions: Any) -> Any:
            errors = nnx.merge(graph, parameters)(state, frames) - actions
            return (errors**2).mean()

        def update(parameters: Any, state: Any, batch: Any) -> tuple[Any, Any, Any]:
            loss, gradients = jax.value_and_grad(loss_of)(parameters, *batch)
            changes, state = optimizer.update(gradients, state, parameters)
            return optax.apply_updates(parameters, changes), state, loss

        self._update = jax.jit(update)

    def _check_fits(self, saved: Any) -> None:
        for name in ("state", "actions", "hidden", "image"):
            before, now = getattr(saved, name), getattr(self.config, name)
            if before != now:
                raise BadInput(
                    f"the checkpoint has {name} = {before}, data and options give {now}: resume with the same data and --hidden"
                )

    def batch(self, step: int) -> tuple[Any, Any, Any]:
        """(state, frames or None, actions) of step ``step``: a pure function of (seed, step)."""
        import numpy as np

        random = np.random.Generator(np.random.Philox(key=[self._options.seed, step]))
        chosen = random.integers(0, self._episodes.frames, self._options.batch_size)
        images = self._episodes.images
        return self._episodes.state[chosen], None if images is None else images[chosen], self._episodes.actions[chosen]

    def advance(self) -> float:
        """One update; its loss. Raises NotANumber, and the state stays as it was."""
        parameters, optimizer, loss = self._update(self._parameters, self._optimizer, self.batch(self.step + 1))
        value = float(loss)
        if self.step + 1 == self._options.nan_at:
            value = math.nan
        if not math.isfinite(value):
            raise NotANumber(
                f"loss is nan in step {self.step + 1}: the training has diverged; lower the learning rate or look at the data"
            )
        self._parameters, self._optimizer = parameters, optimizer
        self.step += 1
        return value

    def snapshot(self) -> Any:
        """What is to be saved now."""
        import jax
        from flax import nnx

        from jobs.reference.checkpoints import TrainState

        return TrainState(
            self.step, self.config, nnx.to_pure_dict(self._parameters), tuple(jax.tree.leaves(self._optimizer))
        )


def train(options: argparse.Namespace) -> None:
    """Train as told, to the last step or the stop file's; the last save is complete on return."""
    from jobs.reference import checkpoints

    root = instructions.checkpoint_root(os.environ, options.checkpoints)
    finished = checkpoints.steps_in(root)
    told = instructions.read(os.environ, root, options.steps, options.save_interval, finished[-1] if finished else 0)
    if told.resume_step >= told.last_step:
        print(f"step {told.resume_step}: nothing left to do", flush=True)
        return
    workers = faults.Workers(options.workers)
    try:
        prepare_jax(options.threads)
        trainer = Trainer(options, told)
        checkpoints.clean(root, told.resume_step)
        saver = checkpoints.Saver(root, options.keep, int(options.pad_mb * 1e6))
        _steps(options, told, trainer, saver, workers)
        saver.finish()
    finally:
        workers.end()


def _steps(
    options: argparse.Namespace, told: instructions.Instructions, trainer: Trainer, saver: Any, workers: faults.Workers
) -> None:
    progress = instructions.Progress(told.progress_file)
    stopping = False
    while trainer.step < told.last_step and not stopping:
        began = time.monotonic()
        if trainer.step + 1 == options.crash_at:
            faults.crash(options.crash_at)
        if trainer.step + 1 == options.hang_at:
            faults.hang(options.hang_at)
        workers.check()
        loss = trainer.advance()
        if (left := options.step_seconds - (time.monotonic() - began)) > 0:
            time.sleep(left)
        step = trainer.step
        stopping = instructions.stop_wanted(told.stop_file, step)
        ending = stopping or step == told.last_step
        progress.tell(step, loss, time.monotonic(), ending, sys.stdout)
        if ending or step % told.save_interval == 0:
            saver.save(trainer.snapshot())


def main(arguments: Sequence[str] | None = None) -> int:
    """Train; see the options."""
    options = options_of(arguments)
    if options.seed < 0 or options.workers < 0 or options.step_seconds < 0 or options.pad_mb < 0:
        raise BadInput("--seed, --workers, --step-seconds and --pad-mb take no negative numbers")
    train(options)
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
