"""Where a run stands, how long it is, and what happens at which step, by its job and the dataset's size."""

from __future__ import annotations

from dataclasses import dataclass, field

from convmlp.schedule import lr_at
from convmlp_platform.config.schema import TrainJob


@dataclass
class TrainState:
    """`step` steps are done, which used `samples_seen` samples: with the job, that is the whole data state.

    `attempt` is the start of training that did the last of them, 0 before any (ledger.ledger).
    `metrics` are those of the newest evaluation, which was after `evaluated` steps (0: there was none); `best` those of
    the evaluation whose weights were kept.
    """

    step: int = 0
    samples_seen: int = 0
    attempt: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    evaluated: int = 0


@dataclass(frozen=True)
class StepPlan:
    """Steps are counted from 0; "after step s" means after s steps were done.

    An epoch e is over after the first step that has used e * num_samples samples.
    """

    job: TrainJob
    num_samples: int

    @property
    def total_samples(self) -> int:
        """Of the whole schedule, cool-down included; what is left of them after whole steps is not used."""
        training, cooldown = self.job.training, self.job.schedule.cooldown_epochs
        if training.steps is not None:
            return training.steps * training.global_batch_size + int(cooldown * self.num_samples)
        assert training.epochs is not None
        return int((training.epochs + cooldown) * self.num_samples)

    @property
    def total_steps(self) -> int:
        """Steps of the whole schedule; the last samples, fewer than a batch, are left out."""
        return self.total_samples // self.job.training.global_batch_size

    @property
    def stop_step(self) -> int:
        """The step at which this run ends: the schedule's last one, or `training.max_steps` if that is smaller."""
        return min(self.total_steps, self.job.training.max_steps or self.total_steps)

    @property
    def total_epochs(self) -> float:
        """The whole schedule, in epochs."""
        return self.total_samples / self.num_samples

    @property
    def steps_per_epoch(self) -> float:
        return self.num_samples / self.job.training.global_batch_size

    def epochs_after(self, step: int) -> int:
        """Whole epochs that are over after `step` steps."""
        return step * self.job.training.global_batch_size // self.num_samples

    def lr(self, step: int) -> float:
        """Learning rate of a step, from the samples seen before it.

        Raises:
            ValueError: warm-up and cool-down don't fit into the run.
        """
        schedule, batch = self.job.schedule, self.job.training.global_batch_size
        by_epoch = schedule.moves == "epoch"
        # By step, the last samples, fewer than a batch, are no step: the decay ends with the last whole one.
        total = self.total_samples if by_epoch else self.total_steps * batch
        cooldown = min(self._samples(schedule.cooldown_epochs), total)
        # A warm-up over all epochs must fit all the same.
        warmup = min(self._samples(schedule.warmup_epochs), total - cooldown)
        return lr_at(
            step * batch,
            base_lr=self.job.optimizer.lr,
            total_samples=total,
            warmup_samples=schedule.warmup_steps * batch or warmup,
            warmup_lr=schedule.warmup_lr,
            min_lr=schedule.min_lr,
            cooldown_samples=cooldown,
            name=schedule.name,
            decay_from=schedule.decay_from,
            power=schedule.power,
            milestones=[self._samples(epochs) for epochs in schedule.milestones],
            gamma=schedule.gamma,
            moves_every=self.num_samples if by_epoch else 1,
            delay_samples=self._samples(schedule.delay_epochs),
        )

    def _samples(self, epochs: float) -> int:
        return int(epochs * self.num_samples)

    def evaluates_after(self, step: int) -> bool:
        """Every `eval.every_steps`, or at the end of every `eval.every_epochs`-th epoch; and at the run's end."""
        if step == self.stop_step:
            return True
        if (every := self.job.eval.every_steps) is not None:
            return step > 0 and step % every == 0
        epoch = self.epochs_after(step)
        ended = epoch > self.epochs_after(step - 1)
        return ended and epoch % (self.job.eval.every_epochs or 1) == 0

    def saves_after(self, step: int) -> bool:
        """Before evaluations, and every `checkpoint.every_steps`."""
        every = self.job.checkpoint.every_steps
        return self.evaluates_after(step) or (every is not None and step % every == 0)

    def logs_after(self, step: int) -> bool:
        return step % self.job.training.log_every_steps == 0 or step == self.stop_step
