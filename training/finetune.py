"""Fine-tune a ResShift model on a folder of pictures, or train a new one.

    python training/finetune.py --data PICTURES --output OUT

starts from the built-in model, cuts crops out of PICTURES, degrades them on the fly, trains, and writes OUT/last.safetensors
and OUT/best.safetensors (averaged weights), which the nodes, WebUI and the command line load as they are. More:

    --model FILE_OR_NAME                 start from another model, e.g. a published checkpoint (add --variant if it is asked for)
    --degradation bicubic                what makes the low-resolution pictures: realesrgan (default), paper-b1,
                                         everyday (B.1, or noise and JPEG each or not), bicubic (default for
                                         inpainting, where it changes nothing but the holes), or
    --degradation paired --pairs LOW     your own pairs: files of the same names in PICTURES and LOW
    --preset 12gb                        settings for a GPU's memory (8gb, 12gb, 16gb, 24gb, 80gb)
    --resume auto                        go on where OUT stopped, exactly: after Ctrl-C, a crash or a power cut
    --dry-run True --contact-sheet True  check data, memory and speed; look at what the network would be shown
    --steps 4 --kappa 2 --p 0.3          retrain the schedule (--min-noise-level 0.04 with the paper's 15 steps)
    --config training/configs/builtin.json   train a new network of that configuration from nothing; a file that has no
                                         `model` is a recipe: settings for whatever --model is
    torchrun --nproc_per_node=8 training/finetune.py ...   several GPUs; --batch-size counts the crops of all of them

Before the start every picture is decoded once; unreadable, tiny, grey and duplicate ones are named. If memory does not
suffice, fewer crops go together and gradients are added up. OUT holds config.json (all settings), scan.json (the data
check), log.csv, validation.csv, validation/*.png, tensorboard/, state/ (what resuming needs) and summary.png.
A step whose loss is not finite is skipped; three in a row stop the run. docs/training.md has recipes and numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run as a file: let it be the module that `python -m training.finetune` runs
    folder = Path(__file__).resolve().parent  # a portable Python has its library at sys.path[0], not this folder
    sys.path[:] = [str(folder.parent), *(place for place in sys.path if Path(place).resolve() != folder)]

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import torch
from safetensors import safe_open

import resshift_core as rs
from resshift_core.device import is_out_of_memory
from resshift_core.errors import brief
from training import distributed
from training.chain import Chain
from training.data import Crops, Positions, collate, default_workers, load_batches
from training.dataset import Data, degradation_of, prepare_data
from training.distributed import Processes
from training.interrupts import HALF_STEP, Interrupts, Stopped
from training.losses import LossSettings, Objective, make_lpips
from training.memory import fit_micro_batch
from training.program import GOES_ON, exit_status
from training.report import Report, memory_text, save_picture, write_summary
from training.resize import resize
from training.settings import SettingsError, TrainSettings, describe, parse, resolve, tell_changes, to_dict
from training.sole import alone_in
from training.start import Start, load_start
from training.state import first_mismatch, load_state, save_state, saved
from training.trainer import Trainer
from training.validation import Validator

log = logging.getLogger("resshift.training")


def make_trainer(settings: TrainSettings, model: rs.ResShiftModel, processes: Processes) -> Trainer:
    """Network, losses and optimiser.

    Raises:
        OfflineError: LPIPS is asked for and its weights are not to be had.
    """
    degrade = degradation_of(settings, model.scale)
    chain = Chain(model, degrade, settings.seed, settings.last_step_share, processes.device, settings.rollout_share)
    lpips = make_lpips(settings.lpips_net, processes.device) if settings.lpips else None
    kind = LossSettings(
        settings.loss, settings.eq8_weight, settings.lpips, settings.spectrum, settings.adversarial, settings.psnr_limit
    )  # fmt: skip
    return Trainer(model, settings, Objective(chain, kind, lpips), processes)


def _without_folder(value):
    """A model file travels: where things lay on the machine that trained it is nobody's business."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


class Run:
    """The loop around a Trainer: data in, reports and files out."""

    def __init__(self, settings: TrainSettings, start: Start, trainer: Trainer, data: Data):
        self.settings, self.start, self.trainer, self.data = settings, start, trainer, data
        self.processes = trainer.processes
        self.output, self.states = settings.output, settings.output / "state"
        self.best: float | None = None
        self.report: Report | None = None
        self.validator = Validator(data.pairs, settings.best_by == "lpips") if self.processes.first else None

    # ------------------------------------------------------------------------------------------------ state

    def resume(self) -> bool:
        """Take over the newest state; False where there is none.

        Raises:
            SettingsError: there is one, and --resume auto was not given, or it is of another network.
        """
        finished = (self.output / "last.safetensors").exists() and not self.settings.dry_run
        if self.settings.resume != "auto":
            if self.processes.first and (saved(self.states) or finished) and not self.settings.dry_run:
                raise SettingsError(
                    f"{self.output} holds a run already. Add --resume auto to go on with it, or choose another --output."
                )
            return False
        state = load_state(self.states)
        if state is not None and ("trainer" not in state or state.get("kind", self.kind) != self.kind):
            raise SettingsError(f"The state in {self.states} is of another program. Choose another --output.")
        found = -1 if state is None else state["trainer"]["position"]["iteration"]
        if self.processes.agree(found, "min") != self.processes.agree(found, "max"):
            raise SettingsError(
                f"The processes of this run do not find the same state in {self.output}. With several machines it must be one "
                "folder that all of them see."
            )
        if state is None:
            if finished:
                raise SettingsError(
                    f"{self.output} holds last.safetensors, but no state to go on from. Choose another --output; --model "
                    "last.safetensors starts from its weights."
                )
            return False
        before = self._compare(state)
        try:
            self.trainer.load_state_dict(state["trainer"], before["optimizer"], before["weight_decay"])
        except RuntimeError as error:
            raise SettingsError(
                f"The state in {self.states} is of another network than this run's ({first_mismatch(error)}). Give the settings that it was "
                "started with, or choose another --output."
            ) from error
        if state.get("yardstick") in (None, self.yardstick) or self.finished():
            self.best = state["best"]
        else:
            log.warning("Validation is not what it was in the run so far: best.safetensors will be the best from here on.")
        return True

    def finished(self) -> bool:
        """Whether nothing is left to do, and what it came to is there."""
        iteration = self.trainer.position.iteration
        return iteration >= self.settings.iterations and all(
            (self.output / name).is_file() for name in ("config.json", "best.safetensors")
        )

    def _is_exported(self) -> bool:
        """Whether OUTPUT/last.safetensors is of the state's iteration."""
        path = self.output / "last.safetensors"
        if not path.is_file():
            return False
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("steps_trained") == str(self.trainer.position.iteration)

    @property
    def kind(self) -> str:
        """Of run; a fine-tuned model would not go on as a one-step student."""
        return type(self.settings).__name__

    @property
    def yardstick(self) -> list[str]:
        """What scores can be compared by."""
        settings = self.settings
        kind = (settings.best_by, settings.degradation, settings.damaged_share, settings.validation_crop, settings.seed)
        return [*map(str, kind), *self.data.held]

    def _compare(self, state: dict) -> dict:
        before = tell_changes(json.loads(state["settings"]), self.settings)
        if before["predict"] not in (None, self.settings.predict):
            raise SettingsError(
                f"The run so far learned to predict {before['predict']}, and --predict is {self.settings.predict}. Leave it out, or "
                "choose another --output."
            )
        if state["data"] != self.data.fingerprint:
            log.warning("The pictures are not those of the run so far: it goes on, but not as it would have.")
        return before

    def save(self) -> None:
        """State and OUTPUT/last.safetensors. First process only."""
        state = {
            "trainer": self.trainer.state_dict(),
            "best": self.best,
            "yardstick": self.yardstick,
            "kind": self.kind,
            "settings": json.dumps(to_dict(self.settings)),
            "data": self.data.fingerprint,
        }
        save_state(self.states, self.trainer.position.iteration, state)
        self.export("last.safetensors")

    def export(self, name: str) -> None:
        """The averaged weights with what there is to know about them."""
        recipe = {name: _without_folder(value) for name, value in to_dict(self.settings).items()}
        notes = {
            "parent": self.start.parent,
            "parent_sha256": self.start.parent_sha256,
            "steps_trained": self.trainer.position.iteration,
            "data": self.settings.description or f"{self.data.count} pictures, fingerprint {self.data.fingerprint}",
            "degradation": self.settings.degradation,
            "training": json.dumps(recipe),
        }
        model = self.trainer.averaged_model()
        rs.save_model(model, self.output / name, {key: str(value) for key, value in notes.items()})

    # ------------------------------------------------------------------------------------------------ the loop

    def validate(self, interrupts: Interrupts) -> None:
        """Scores, grid, and OUTPUT/best.safetensors where they are the best so far. First process only."""
        settings, iteration = self.settings, self.trainer.position.iteration
        with interrupts.breakable():
            result = self.validator(self.trainer.averaged_model())
        value = result.scores[settings.best_by] * (-1 if settings.best_by == "lpips" else 1)
        if math.isfinite(value) and (self.best is None or value > self.best):
            self.export("best.safetensors")  # before it is remembered: it may not be written
            self.best = value
        self.report.validated(iteration, result.scores, result.grid)

    def _validation_is_missing(self) -> bool:
        """Whether the run was stopped in the validation that was due at the state it goes on from."""
        iteration = self.trainer.position.iteration
        due = iteration % self.settings.validate_every == 0 or iteration == self.settings.iterations
        return due and all(row["iteration"] != iteration for row in self.report.scores.read(self.report.scores.path))

    def write_config(self) -> None:
        """OUTPUT/config.json. What the parent brought along is not said of a model that the file makes, or is a recipe for."""
        self.output.mkdir(parents=True, exist_ok=True)
        config, training = self.trainer.model.config, to_dict(self.settings)
        for word in ("predict", "licence"):
            if training[word] == getattr(self.start.as_loaded, word):
                del training[word]
        values = {"model": replace(config, name="", licence="").to_dict(), "training": training}
        if self.settings.not_here:  # a student is made from its teacher: its file is a recipe, without a model
            values = {"training": {k: v for k, v in values["training"].items() if k not in self.settings.not_here}}
        (self.output / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")

    def batches(self):
        settings, processes = self.settings, self.processes
        positions = Positions(self.trainer.position.iteration, settings.batch_size, processes.rank, processes.world)
        workers = settings.workers
        if workers is None:
            workers = default_workers(processes.device, processes.here)
        return load_batches(self.data.crops, positions, workers, pin=processes.device.type == "cuda")

    def steps(self, batches):
        """(batch, the one after it) for every step; on a CPU, where nothing is gained by what follows, with None for that."""
        return pairwise(batches) if self.processes.device.type == "cuda" else ((batch, None) for batch in batches)

    def loop(self) -> None:
        """Until the last iteration; Ctrl-C and SIGTERM save after the step that they fall into, and stop.

        Raises:
            Stopped: by one of them.
        """
        settings, trainer = self.settings, self.trainer
        interrupts = Interrupts(together=self.processes.world > 1)
        if self.processes.first:
            if not self.finished():
                self.write_config()
            names = [
                "mse", "psnr", "l1", "charbonnier", "lpips", "spectrum", "adversarial", "discriminator", "truth", "inverse", "consistency",
            ]  # fmt: skip
            self.report = Report(self.output, settings.iterations, trainer.position.iteration, names)
            if trainer.position.iteration == 0 or self._validation_is_missing():
                self.validate(interrupts)
        try:
            with interrupts:
                self._iterate_and_save(interrupts)
        except KeyboardInterrupt:
            raise Stopped(interrupts.status) from None
        finally:
            if self.report is not None:
                self.report.close()
        if self.processes.first:
            write_summary(self.output)

    def _iterate_and_save(self, interrupts: Interrupts) -> None:
        try:
            self._iterate(interrupts)
            return
        except KeyboardInterrupt:
            if self.processes.first and interrupts.half:
                self.report.say(HALF_STEP)
            elif self.processes.first:
                self.save()
                self.report.say(f"Stopped at iteration {self.trainer.position.iteration}; --resume auto goes on from there.")
            raise
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = brief(error)
        raise MemoryError(
            f"Out of memory at iteration {self.trainer.position.iteration} ({reason}). Go on from the last state by --resume auto "
            f"with --micro-batch {max(1, self.trainer.micro_batch // 2)}, or --checkpointing True."
        )

    def _iterate(self, interrupts: Interrupts) -> None:
        settings, trainer = self.settings, self.trainer
        started = time.perf_counter()
        if trainer.position.iteration >= settings.iterations:
            if self.processes.first:
                self.report.say(f"Nothing is left to do: the run has made {trainer.position.iteration} iterations.")
                if self.best is None:
                    self.validate(interrupts)
                if not self._is_exported():  # a run may have been killed between its last state and this file
                    self.export("last.safetensors")
            return
        for (numbers, crops), following in self.steps(interrupts.passing(self.batches())):
            with interrupts.step():
                values = trainer.step(numbers, crops, following)
            if self.processes.first:
                now = time.perf_counter()
                self._after_step(values, settings.batch_size / (now - started), interrupts)
                started = time.perf_counter()
            if trainer.position.iteration >= settings.iterations:
                return
            if self.processes.agree(float(interrupts.asked)):
                raise KeyboardInterrupt

    def _after_step(self, values: dict[str, float], images_per_second: float, interrupts: Interrupts) -> None:
        settings, iteration = self.settings, self.trainer.position.iteration
        self.report.step(self.trainer.device, values, images_per_second)
        last = iteration == settings.iterations
        if iteration % settings.log_every == 0 or last:
            self.report.write(iteration, {**values, "images_per_second": images_per_second})
        if iteration % settings.validate_every == 0 or last:
            self.validate(interrupts)
        if iteration % settings.save_every == 0 or last:
            self.save()


def draw_contact_sheet(trainer: Trainer, crops: Crops, output: Path, count: int = 16) -> Path:
    """OUTPUT/contact_sheet.png: crops above what the network is given of them, four pairs in a row, white between pairs."""
    numbers = list(range(count))
    batch = collate([crops[n] for n in numbers])
    points = trainer.chain.draw(numbers, batch)
    small = torch.nn.functional.interpolate(points.lq, size=tuple(points.hr.shape[-2:]), mode="nearest")
    pairs = torch.cat([points.hr, small], 2).add(1).div(2)  # (B, 3, 2 H, W)
    pairs = torch.nn.functional.pad(pairs, (6, 6, 6, 6), value=1.0)
    rows = [torch.cat(list(pairs[i : i + 4]), 2) for i in range(0, count, 4)]
    path = output / "contact_sheet.png"
    save_picture(torch.cat(rows, 1), path)
    return path


def dry_run(run: Run, steps: int = 3) -> None:
    """A few steps that nothing remembers: speed and memory."""
    trainer, started = run.trainer, None
    left = max(0, run.settings.iterations - trainer.position.iteration)
    for done, ((numbers, crops), following) in enumerate(run.steps(run.batches())):
        if done == 1:
            started = time.perf_counter()  # the first step warms up
        trainer.step(numbers, crops, following)
        if done == steps:
            break
    if run.processes.first:
        seconds = (time.perf_counter() - started) / steps
        hours = seconds * left / 3600
        rate = run.settings.batch_size / seconds
        print(
            f"{seconds:.2f} s per update, {rate:.1f} images/s, about {hours:.1f} hours for {left} updates, "
            f"{memory_text(trainer.device)} of memory at most."
        )


def train(settings: TrainSettings, start: Start, trainer: Trainer, data: Data) -> None:
    """From a trainer to the last file: resume, find the micro-batch, loop.

    Raises:
        SettingsError, NotFinite, MemoryError: told as sentences.
    """
    current = Run(settings, start, trainer, data)
    resumed = current.resume()
    numbers = list(range(trainer.micro_batch))
    said = fit_micro_batch(trainer, numbers, collate([data.crops[n] for n in numbers]))
    if trainer.processes.first:
        print(said)
        if resumed:
            print(f"Going on from iteration {trainer.position.iteration}.")
        if settings.contact_sheet:
            print(f"Contact sheet: {draw_contact_sheet(trainer, data.crops, settings.output)}")
    if settings.dry_run:
        dry_run(current)
    else:
        current.loop()


def prepare(settings: TrainSettings, processes: Processes) -> tuple[TrainSettings, Start]:
    """The model to start from, and the settings with everything chosen for it.

    Raises:
        SettingsError, rs.ResShiftError: told as sentences.
    """
    if settings.batch_size % processes.world:
        raise SettingsError(f"--batch-size is {settings.batch_size}; it must be a multiple of the {processes.world} processes.")
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = torch.version.hip is None  # MIOpen would search for minutes for every shape
    start = load_start(settings, processes.device)
    return resolve(settings, start.model.config), start


def run(settings: TrainSettings, processes: Processes) -> None:
    """Everything from the loaded model to the last file.

    Raises:
        SettingsError, DataError, OfflineError, NotFinite, MemoryError, rs.ResShiftError: told as sentences.
    """
    settings, start = prepare(settings, processes)
    start.model = resize(start.model, settings)
    start.apply(settings)
    if settings.eq8_weight and start.model.schedule.kappa == 0:
        raise SettingsError("--eq8-weight divides by kappa, and the model's is 0. Leave it out, or give --kappa.")
    if processes.first:
        print(f"{start.model}\n{describe(settings)}")
    data = prepare_data(settings, start.model, processes)
    train(settings, start, make_trainer(settings, start.model, processes), data)


def program(argv, doc: str, what: Callable[[TrainSettings, Processes], None], cls: type[TrainSettings] = TrainSettings) -> int:
    """A command line around `what`; returns its exit status."""
    processes: Processes | None = None

    def work() -> None:
        nonlocal processes
        settings = parse(argv, doc, cls)
        processes = distributed.start(settings.device)
        with alone_in(settings.output, processes):
            what(settings, processes)

    try:
        return exit_status(work, GOES_ON)
    finally:
        if processes is not None:
            distributed.stop(processes)


def main(argv=None) -> int:
    """The program."""
    return program(argv, __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
