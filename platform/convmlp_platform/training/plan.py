"""How long a run is and what happens at which step: pure functions of the job and the dataset's size."""

from __future__ import annotations

from dataclasses import dataclass

from convmlp.schedule import lr_at
from convmlp_platform.config.schema import TrainJob


@dataclass(frozen=True)
class StepPlan:
    """Steps are counted from 0; "after step s" means after s steps were done.

    An epoch e is over after the first step that has used e * num_samples samples.
    """

    job: TrainJob
    num_samples: int

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule; the last samples, fewer than a batch, are left out."""
        return int(self.job.total_epochs * self.num_samples) // self.job.training.global_batch_size

    @property
    def stop_step(self) -> int:
        """Where this run ends: `training.max_steps` may come first."""
        return min(self.total_steps, self.job.training.max_steps or self.total_steps)

    @property
    def steps_per_epoch(self) -> float:
        return self.num_samples / self.job.training.global_batch_size

    def epochs_after(self, step: int) -> int:
        """Whole epochs that are over after `step` steps."""
        return step * self.job.training.global_batch_size // self.num_samples

    def lr(self, step: int) -> float:
        """Learning rate of a step, from the samples seen before it."""
        schedule, batch = self.job.schedule, self.job.training.global_batch_size
        # The last samples, fewer than a batch, are no step: a warm-up over the whole run must fit all the same.
        total = self.total_steps * batch
        cooldown = min(int(schedule.cooldown_epochs * self.num_samples), total)
        return lr_at(
            step * batch,
            base_lr=self.job.optimizer.lr,
            total_samples=total,
            warmup_samples=min(int(schedule.warmup_epochs * self.num_samples), total - cooldown),
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
            cooldown_samples=cooldown,
            name=schedule.name,
        )

    def evaluates_after(self, step: int) -> bool:
        """At the end of every `eval.every_epochs`-th epoch, and at the end of the run."""
        epoch = self.epochs_after(step)
        ended = epoch > self.epochs_after(step - 1)
        return step == self.stop_step or (ended and epoch % self.job.eval.every_epochs == 0)

    def saves_after(self, step: int) -> bool:
        """After evaluations, and every `checkpoint.every_steps`."""
        every = self.job.checkpoint.every_steps
        return self.evaluates_after(step) or (every is not None and step % every == 0)

    def logs_after(self, step: int) -> bool:
        return step % self.job.training.log_every_steps == 0 or step == self.stop_step
