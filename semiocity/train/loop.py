"""The training loop, one for every task: batches in order, phases, averages, checkpoints, metrics.

A step is numbered by how many steps are done after it; the checkpoint `step-N` and line N of metrics.jsonl belong
together. Everything random is keyed by seed, step and row, so a run that comes back goes on as if nothing had happened.
"""

from __future__ import annotations

import json
import math
import shutil
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from semiocity import ranks
from semiocity.data.loader import Slice
from semiocity.errors import UserError
from semiocity.files import digest, fsync_folder, make_durable, write_json
from semiocity.train import compiling, optimizers, schedule, zero
from semiocity.train.batch_statistics import BatchStatistics
from semiocity.train.checkpoint import Checkpoints, Keep
from semiocity.train.ema import Ema
from semiocity.train.feed import Feed
from semiocity.train.gpu_peaks import peak_tflops
from semiocity.train.looks import Looks, averaged
from semiocity.train.metrics import Metrics
from semiocity.train.noise import torch_seed
from semiocity.train.norms import Norms
from semiocity.train.options import TrainJob, check_batch, identity, is_done, load
from semiocity.train.tasks import TASKS
from semiocity.train.tasks.base import DatasetFacts, Task, Tensors
from semiocity.train.throughput import Meter
from semiocity.train.wandb_writer import open_wandb
from semiocity.train.watchdog import Watchdog
from semiocity.train.zero import Engine, World

ROLLBACKS = 1


def run(
    job: TrainJob,
    run: Path,
    dataset: Path,
    world: World,
    stop: Callable[[], bool],
    hung: Callable[[str, bool], None] | None = None,
) -> bool:
    """Train until the end or until any rank is asked to stop; call it on every rank alike. `hung` is told when it
    stands still (`Watchdog`).

    True: finished, the model is exported. False: stopped; every rank has saved and passed a barrier. A run that was
    stopped, killed or damaged goes on from its newest good checkpoint; a finished one returns True at once.
    Raises UserError for settings that do not fit the dataset, the ranks or the checkpoint.
    """
    try:
        check_batch(job, world.size)
    except ValueError as error:
        raise UserError(str(error)) from None
    settings = identity(job)
    if job.compile == "blocks":
        compiling.refuse_without_compiler()
    if job.optimizer.kind == "adamw_8bit":
        optimizers.eight_bit()
    with zero.session(world, job.resources.cpus_per_rank) as device, Watchdog(world, job.hang, hung) as watchdog:
        if zero.from_first(is_done(run, job)):
            return True
        zero.start_deepspeed()
        trainer = Trainer(job, run, dataset, world, device, settings, watchdog)
        try:
            return trainer.train(stop)
        except Exception as error:
            if world.folder is not None and ranks.collective_timeout(error):
                traceback.print_exc()
                watchdog.report_hang(f"a collective's own limit has passed: {error}")
            raise
        finally:
            trainer.close()


class _Outcome(NamedTuple):
    """What a step came to."""

    values: dict[str, float]
    """To be shown."""
    applied: bool
    """Whether every phase moved its weights."""
    stopping: bool
    """Whether any rank wants to stop."""
    written: bool
    """Whether all ranks have done their part of the checkpoint that is under way."""
    speed: dict[str, float] | None
    """What to show of the speed where a point is due."""


class Trainer:
    """A training on one rank. Collective throughout: all ranks construct it and call its methods together."""

    def __init__(
        self,
        job: TrainJob,
        run: Path,
        dataset: Path,
        world: World,
        device: torch.device,
        settings: dict[str, Any],
        watchdog: Watchdog,
    ) -> None:
        self.job, self.run, self.world, self.device, self.watchdog = job, run, world, device, watchdog
        self.first = world.rank == 0
        self.feed = Feed(job, run, dataset, world)
        self.order = self.feed.order

        torch.manual_seed(job.seed)  # the first weights; noise and order are keyed
        data = self.feed.data
        self.facts = DatasetFacts(
            data.name,
            data.digest,
            tuple(spec.name for spec in data.classes),
            tuple(data.palette),
            data.ignore_id,
        )
        self.task: Task = load(TASKS[job.task].task)(job, self.facts)
        self.feed.read_by(self.task)

        self._build_engines()
        self.flops = [self.task.flops(height, width) for height, width in self.feed.sizes]
        """Of a sample in each bucket."""
        self.meter = Meter(world.size, job.global_batch, self._peak())
        self.looks = Looks(job, self.feed, self.task, self.modules, self.engines, self.averages, world, device)
        self.state = {
            "settings": settings,
            "order": self.order.facts,
            "stage": job.zero.stage,
            "schedule": schedule.end_of(job.optimizer, job.steps),
            # Large files may be hashed for this: once for all ranks.
            "frozen": zero.from_first(dict(self.task.frozen_digests()) if self.first else None),
        }
        self.checkpoints = Checkpoints(
            run / "checkpoints",
            world,
            device,
            Keep(job.keep_last, job.keep_every),
            background=job.checkpoint_async,
            delays_s=job.rehearse.slow_save_s,
        )
        self.metrics: Metrics | None = None
        self.done = 0
        """Steps done."""
        self.saved_at: int | None = None
        self.bad: list[tuple[int, list[str]]] = []
        """Steps in a row without a finite loss and gradient, and the keys of their samples."""
        self.rollbacks = 0

    def _build_engines(self) -> None:
        phases = self.task.phases()
        self.modules: dict[str, nn.Module] = {name: m for phase in phases for name, m in phase.modules.items()}
        for name, module in self.task.frozen().items():
            self.modules[name] = module.to(self.device).eval().requires_grad_(False)
        if self.job.compile == "blocks":
            for phase in phases:
                compiling.compile_blocks(phase.modules.values())
        self.engines = [
            Engine(
                phase,
                zero.Bundle(phase, self.task, self.modules),
                micro_batch=self.job.global_batch // (self.world.size * self.job.accumulation),
                accumulation=self.job.accumulation,
                device=self.device,
                alone=len(phases) == 1,
            )
            for phase in phases
        ]
        self.statistics = BatchStatistics(self.modules)
        self.averages = {e.phase.name: Ema(e, self.job.ema) for e in self.engines if e.phase.ema}

    def _peak(self) -> float | None:
        """TFLOP/s of this rank's GPU at best, where all phases compute in bf16."""
        if self.device.type != "cuda" or any(e.phase.zero.precision != "bf16" for e in self.engines):
            return None
        return peak_tflops(torch.cuda.get_device_name(self.device))

    # -- the run ------------------------------------------------------------------------------------------------------

    def train(self, stop: Callable[[], bool]) -> bool:
        """Go on from the newest checkpoint; see `run`."""
        self.done = self.checkpoints.load_newest(self.state, self.engines, self.averages) or 0
        self.saved_at = self.done or None
        self._introduce()
        self.meter.begin()
        self._look()
        while self.done < self.job.steps:
            if not self._train_on(stop):
                self._save(wait=True)
                self._say("stopped")
                zero.barrier()
                return False
        self._save(wait=True)
        with self.watchdog.paused("exporting"):
            self._export()
        return True

    def _train_on(self, stop: Callable[[], bool]) -> bool:
        """Steps until the end (True), a stop (False), or a rollback (True, with `done` set back)."""
        waiting = time.monotonic()
        for part in self.feed.slices(self.done, pin_memory=self.device.type == "cuda"):
            waited_s = time.monotonic() - waiting
            self._rehearse()
            self.meter.step(waited_s, self.flops[part.bucket])
            values, applied, stopping, written, speed = self._step(part, stop())
            self.done += 1
            if written:
                self.checkpoints.advance()
            self.watchdog.beat()
            self.feed.done(part)
            if self.metrics:
                self.metrics.step(self.done, values, speed)
            if not applied and self._handle_bad(part):
                return True
            if applied:
                self.bad.clear()
            if stopping and self.done < self.job.steps:
                return False
            self._look()
            # Not while bad steps pile up: the last good checkpoint must stay one. The end's own comes after this loop.
            if self.done % self.job.checkpoint_every == 0 and not self.bad and self.done < self.job.steps:
                self._save()
            waiting = time.monotonic()
        return True

    def _step(self, part: Slice, stopping: bool) -> _Outcome:
        """One step through all phases that are due."""
        batch = {name: tensor.to(self.device, non_blocking=True) for name, tensor in part.tensors.items()}
        size = len(part) // self.job.accumulation
        shown: dict[str, tuple[Tensor, Tensor]] = {}
        local: dict[str, float] = {}
        applied = True
        due = (part.step + 1) % self.job.log_every == 0 or part.step + 1 == self.job.steps
        squares: dict[str, float] = {}
        self.statistics.remember()
        for engine in (e for e in self.engines if part.step % e.phase.every == 0):
            prefix = f"{engine.phase.name}/" if len(self.engines) > 1 else ""
            torch.manual_seed(torch_seed(self.job.seed, part.step, self.world.rank))
            rate = schedule.learning_rate(engine.phase.optimizer, part.step + 1, self.job.steps)
            with engine.thawed():
                for micro in range(self.job.accumulation):
                    piece = {name: tensor[micro * size : (micro + 1) * size] for name, tensor in batch.items()}
                    for name, pair in engine.backward(piece, part.step, micro == self.job.accumulation - 1).items():
                        total, count = (torch.as_tensor(x, dtype=torch.float64, device=self.device) for x in pair)
                        before = shown.get(prefix + name)
                        shown[prefix + name] = (before[0] + total, before[1] + count) if before else (total, count)
                self.checkpoints.wait_copied()
                norms = Norms(engine) if due else None
                stepped = engine.step_with(rate)
            if norms:
                of = norms.squares(self.world.size)
                squares |= {f"{prefix}parameter_norm": of.parameters, f"{prefix}update_norm": of.update}
            if stepped.applied and (average := self.averages.get(engine.phase.name)):
                average.update()
            applied &= stepped.applied
            local[f"{prefix}lr"], local[f"{prefix}gradient_norm"] = rate, stepped.gradient_norm
        self.statistics.settle(applied)

        # One small message a step carries all that the ranks must agree on.
        numbers = [float(stopping), self.checkpoints.ready(), *squares.values()]
        own_from = len(numbers)
        numbers += self._place(*self.meter.own()) if due else []
        plain = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        added = zero.add_up(torch.cat([plain, *(x.reshape(1) for pair in shown.values() for x in pair)]))
        sums = added[len(numbers) :]
        values = {name: sums[2 * i] / sums[2 * i + 1] for i, name in enumerate(shown) if sums[2 * i + 1] != 0}
        values.setdefault("loss", values.get(f"{self.engines[0].phase.name}/loss", math.nan))
        local |= {name: math.sqrt(added[2 + i]) for i, name in enumerate(squares)}
        others = added[own_from : len(numbers)]
        speed = self.meter.look(list(zip(others[::2], others[1::2]))) if due else None
        return _Outcome({**values, **local}, applied, added[0] > 0, added[1] == self.world.size, speed)

    def _place(self, *own: float) -> list[float]:
        """This rank's numbers among those of all ranks, whose places hold zero."""
        numbers = [0.0] * (len(own) * self.world.size)
        numbers[len(own) * self.world.rank : len(own) * (self.world.rank + 1)] = own
        return numbers

    def _rehearse(self) -> None:
        time.sleep(self.job.rehearse.slow_step_s)
        if self.job.rehearse.fail == (self.world.rank, self.done + 1):
            raise RuntimeError(f"rehearsal: rank {self.world.rank} fails in step {self.done + 1}")

    # -- trouble ------------------------------------------------------------------------------------------------------

    def _handle_bad(self, part: Slice) -> bool:
        """After a step that was refused: go on, or go back to the last good checkpoint (True), or fail."""
        self.bad.append((self.done, part.keys))
        if self.first:
            print(f"step {self.done}: loss or gradient is not finite; weights left as they were", flush=True)
        if len(self.bad) < self.job.bad_steps:
            return False
        if self.rollbacks < ROLLBACKS and self.saved_at is not None:
            self.rollbacks += 1
            with self.meter.paused():
                at = self.checkpoints.load_newest(self.state, self.engines, self.averages)
            assert at is not None, "a checkpoint was saved or loaded before"
            self.done = self.saved_at = at
            self.bad.clear()
            if self.first:
                print(f"{self.job.bad_steps} such steps in a row: going back to step {at}", flush=True)
                self._open_metrics()
            return True
        self.checkpoints.finish()
        steps = f"{self.bad[0][0]} to {self.bad[-1][0]}"
        keys = sorted({key for part_keys in zero.gather([k for _, ks in self.bad for k in ks]) for key in part_keys})
        again = " again after going back" if self.rollbacks else ""
        raise UserError(
            f"{self.run}: no finite loss or gradient in steps {steps}{again}; the last good checkpoint is kept. "
            f'A lower optimizer.lr, a longer warmup_steps or zero.precision = "fp32" may help, or one of these samples '
            f"is to blame: {', '.join(keys[:50])}"
        )

    # -- what is left behind ------------------------------------------------------------------------------------------

    def _introduce(self) -> None:
        """Say what is trained, and note in history.jsonl that this attempt began and where."""
        if not self.first:
            return
        self.run.mkdir(parents=True, exist_ok=True)
        order, parameters = self.order, sum(p.numel() for m in self.modules.values() for p in m.parameters())
        print(
            f"{self.job.task}: {parameters:,} parameters; {order.rows:,} rows, {order.steps_per_epoch:,} steps an "
            f"epoch, {self.feed.tails} at its end; {self.world.size} ranks on {self.device.type}; "
            f"{'going on after' if self.done else 'starting at'} step {self.done} of {self.job.steps}",
            flush=True,
        )
        for note in self.task.notes(order.rows):
            print(note, flush=True)
        entry = {
            "first_step": self.done,
            "ranks": self.world.size,
            "job": self.world.job_id,
            "restart": self.world.restart,
            "rows": order.rows,
            "steps_per_epoch": order.steps_per_epoch,
            "tail": {order.tail: order.left_over},
            "order": order.digest,
            "time": round(time.time(), 1),
        }
        with (self.run / "history.jsonl").open("a", encoding="ascii") as file:
            file.write(json.dumps(entry, sort_keys=True) + "\n")
        self._open_metrics()

    def _open_metrics(self) -> None:
        if self.metrics:
            self.metrics.close()
        self.metrics = Metrics(
            self.run,
            step=self.done,
            steps=self.job.steps,
            log_every=self.job.log_every,
            global_batch=self.job.global_batch,
            boards=open_wandb(self.job, self.run, self.done),
        )

    def _save(self, wait: bool = False) -> None:
        """Make a checkpoint; with `wait` it is there, and those before it, when this returns."""
        if self.saved_at == self.done:
            with self.watchdog.paused("saving"):
                self.checkpoints.finish()
            return
        # Another attempt may have gone on from the last checkpoint already; it must not find a newer one of ours.
        ranks.refuse_superseded(self.world)
        with self.watchdog.paused("saving"), self.meter.paused():
            if self.metrics:
                self.metrics.flush()  # a checkpoint never knows more steps than the metrics and the ledger do
            self.feed.flush()
            self.checkpoints.save(self.done, self.state, self.engines, self.averages, wait=wait)
        self.saved_at = self.done

    def _say(self, state: str) -> None:
        if self.metrics:
            self.metrics.progress(self.done, None, state)
            print(f"{state} after step {self.done} of {self.job.steps}", flush=True)

    def _look(self) -> None:
        """The validation and the image grid that are due now."""
        validate, sample = self.looks.due(self.done, self.metrics)
        if validate or sample:
            self.checkpoints.wait_copied()  # averaged weights take the place of those that are being copied
        if validate:
            with self.watchdog.paused("validating"), self.meter.paused():
                values = self.looks.validation()
            if self.metrics:
                self.metrics.validation(self.done, values)
        if sample:
            with self.watchdog.paused("sampling"), self.meter.paused():
                grid = self.looks.grid()
            if self.metrics:
                self.metrics.images(self.done, grid, self.task.grid_title)

    def _export(self) -> None:
        """Export the averaged weights, then mark the run as done. The folder is there whole or not at all."""
        weights: dict[str, Tensors] = {}
        self.checkpoints.wait_copied()
        with averaged(self.engines, self.averages):
            for engine in self.engines:
                weights.update(engine.full_weights(keep=self.first))
        if self.first:
            final, temporary = self.run / "export", self.run / ".export.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            self.task.export(
                weights,
                temporary,
                {
                    "step": self.done,
                    "seed": self.job.seed,
                    "dataset": self.facts.name,
                    "dataset_digest": self.facts.digest,
                },
            )
            make_durable(temporary)
            shutil.rmtree(final, ignore_errors=True)
            temporary.rename(final)
            fsync_folder(self.run)
            write_json(self.run / "done.json", {"step": self.done, "settings": digest(self.state["settings"])})
            self._say("done")
        zero.barrier()

    def close(self) -> None:
        """Close files and engines."""
        self.checkpoints.close()
        self.feed.close()
        if self.metrics:
            self.metrics.close()
        for engine in self.engines:
            engine.close()
