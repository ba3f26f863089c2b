"""OpenPI's PyTorch trainer, `scripts/train_pytorch.py <config>` (observed at commit 15a9616).

Label = updates done. It saves after `step % save_interval == 0` and after `num_train_steps - 1`, not after the last step: to end with a
save after step L it is told L+1. It refuses --resume without a checkpoint, and removes no old one.
"""

from __future__ import annotations

import re
from dataclasses import replace

from agent.recipes.base import Finished, Progress, Start
from agent.recipes.directories import numbered, thin_out
from agent.recipes.openpi import OpenPIBase

_LINE = re.compile(r"\bstep=(\d+) loss=(\S+)")
_FILES = ("model.safetensors", "optimizer.pt", "metadata.pt")


class OpenPIPyTorch(OpenPIBase):
    """`python scripts/train_pytorch.py <config> …`, under torchrun where the job has several GPUs."""

    name = "openpi-pytorch"
    script = "scripts/train_pytorch.py"
    sets_last_step = True
    sets_save_interval = True

    def told_steps(self, start: Start) -> int:
        """One more than wanted: the checkpoint before the last step is the one that is saved for sure."""
        return start.last_step + 1

    def interval(self, start: Start) -> int | None:
        """The save interval; never one that would save the step beyond the last as well."""
        interval = start.save_interval
        if interval is None:
            return None
        interval = max(1, interval)
        while interval > 1 and (start.last_step + 1) % interval == 0:
            interval -= 1
        return interval

    def next_save(self, start: Start, after: int) -> int | None:
        return super().next_save(replace(start, save_interval=self.interval(start)), after)

    def command(self, start: Start) -> list[str]:
        words = [self.python(start)]
        if start.gpus > 1:
            words += ["-m", "torch.distributed.run", "--standalone", "--nnodes=1", f"--nproc-per-node={start.gpus}"]
        words += [*self.words(start), f"--num-train-steps={self.told_steps(start)}"]
        if start.resume_step > 0:
            words.append("--resume")
        interval = self.interval(start)
        if interval is not None:
            words.append(f"--save-interval={interval}")
        return words

    def finished(self, start: Start) -> list[Finished]:
        """The rename from `tmp_<step>` is the commit."""
        root = self.checkpoint_root(start)
        found = []
        for label, name in sorted(numbered(root).items()):
            beyond = label > start.last_step > 0
            if not beyond and all((root / name / file).is_file() for file in _FILES):
                found.append(Finished(label, name, root, (name, *self.beside(root))))
        return thin_out(start, found)

    def progress(self, line: str) -> Progress | None:
        match = _LINE.search(line)
        if match is not None:
            try:
                return Progress(int(match[1]) + 1, float(match[2]))
            except ValueError:
                return Progress(int(match[1]) + 1)
        done = self.bar(line)
        return Progress(done) if done is not None else None
