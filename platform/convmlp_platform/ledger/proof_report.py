"""The report of what a ledger proves, for people and programs."""

from __future__ import annotations

from dataclasses import dataclass, field

# Lines shown of each kind of problem; the rest are counted.
SHOWN = 10

# Kinds of problems, as they are counted in a report.
LINE = "the line of attempts"
MISSING = "micro-batches not recorded"
DOUBLED = "micro-batches recorded twice"
DAMAGED = "damaged frames"
DUPLICATES = "duplicates"
LOSSES = "losses"
ORDER = "samples out of order"
PAYLOADS = "payloads other than the dataset's"


@dataclass
class LedgerFindings:
    """Problems by kind: how many there are, and a line for each of the first ones."""

    counts: dict[str, int] = field(default_factory=dict)
    shown: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, line: str, count: int = 1) -> None:
        """Count problems of a kind, which `line` tells of."""
        self.count(kind, count)
        self.show(kind, line)

    def count(self, kind: str, count: int) -> None:
        if count:
            self.counts[kind] = self.counts.get(kind, 0) + count

    def show(self, kind: str, line: str) -> None:
        """One more line of a kind, if there is room."""
        if self.room(kind):
            self.shown.setdefault(kind, []).append(line)

    def room(self, kind: str) -> int:
        """How many more lines of a kind will be shown."""
        return SHOWN - len(self.shown.get(kind, []))


@dataclass(frozen=True)
class Span:
    """The steps `start`..`stop` - 1 of an attempt that count."""

    attempt: int
    start: int
    stop: int
    world_size: int


@dataclass(frozen=True)
class LedgerReport:
    """The findings.

    Args:
        run: the run's name.
        num_samples: of the dataset's split.
        repeats: uses of a sample one after the other (augment.repeats), each counted in an epoch of its own.
        attempts: starts of training that left a record.
        spans: the line of attempts that survived, oldest first; its last `stop` is how far the proof goes.
        samples: uses of samples on that line.
        complete_epochs: epochs that all streams are through with.
        epochs: epoch → different samples used.
        left_out: places of damaged samples, taken by others (data.on_damage: quarantine); a line for each of
            the first ones.
        other_format: payloads that were read from another format than the run's.
        void_samples: uses that a restart rolled back.
        torn_files: files that end within a frame: their writer was killed.
        checked_payloads: whether a dataset was at hand to compare checksums with.
    """

    run: str
    num_samples: int
    repeats: int
    attempts: int
    spans: list[Span]
    samples: int
    complete_epochs: int
    epochs: dict[int, int]
    num_left_out: int
    left_out: list[str]
    other_format: int
    void_samples: int
    torn_files: int
    checked_payloads: bool
    findings: LedgerFindings

    @property
    def ok(self) -> bool:
        """Nothing contradicts exactly-once."""
        return not self.findings.counts

    @property
    def steps(self) -> int:
        """How far the proof goes."""
        return self.spans[-1].stop

    @property
    def duplicates(self) -> int:
        return self.findings.counts.get(DUPLICATES, 0)

    @property
    def losses(self) -> int:
        return self.findings.counts.get(LOSSES, 0)

    def lines(self) -> list[str]:
        """The report as text."""
        return [*self._covered(), *self._counted(), *self._problems(), self._verdict()]

    def _covered(self) -> list[str]:
        survived = [
            f"attempt {s.attempt}: steps {s.start}..{s.stop} on {s.world_size} ranks" for s in self.spans
        ]
        more = self.attempts - len(self.spans)
        return [
            f"run {self.run}: {self.attempts} attempts, {self.steps} steps, {self.samples:,} uses of "
            f"{self.num_samples:,} samples",
            *(f"  {line}" for line in _some(survived)),
            f"  void: {self.void_samples:,} uses that a restart rolled back"
            + (f", with {more} attempts of which nothing remained" if more else "")
            + (
                f"; {self.torn_files} files end within a frame (killed while writing)"
                if self.torn_files
                else ""
            ),
        ]

    def _counted(self) -> list[str]:
        current = {e: used for e, used in self.epochs.items() if e >= self.complete_epochs}
        lines = [f"  complete epochs: {self.complete_epochs}"]
        lines += [
            f"  epoch {epoch}: {used:,} of {self.num_samples:,} so far" for epoch, used in current.items()
        ]
        lines.append(f"  duplicates: {self.duplicates:,}  losses: {self.losses:,}")
        if self.num_left_out:
            lines.append(f"  left out as damaged, their places taken by others: {self.num_left_out:,}")
            lines += [f"    {line}" for line in self.left_out]
        if self.other_format:
            lines.append(f"  read from the dataset's other format: {self.other_format:,}")
        if not self.checked_payloads:
            lines.append("  payload checksums were not compared: no dataset was given")
        return lines

    def _problems(self) -> list[str]:
        lines = []
        for kind, count in self.findings.counts.items():
            shown = self.findings.shown[kind]
            lines.append(f"{kind}: {count:,}" + (f", the first {len(shown)}:" if count > len(shown) else ":"))
            lines += [f"  {line}" for line in shown]
        return lines

    def _verdict(self) -> str:
        if not self.ok:
            return f"NOT PROVEN: {sum(self.findings.counts.values()):,} problems"
        checked = ", every payload the dataset's" if self.checked_payloads else ""
        law = "once an epoch" if self.repeats == 1 else f"{self.repeats} times in {self.repeats} epochs"
        return f"proven up to step {self.steps}: each sample exactly {law}, in its place{checked}"


def _some(lines: list[str]) -> list[str]:
    """A long list's ends."""
    if len(lines) <= 2 * SHOWN:
        return lines
    return [*lines[:SHOWN], f"... {len(lines) - 2 * SHOWN} more ...", *lines[-SHOWN:]]
