"""finetune.py as a whole: what it writes, exact resume after kill -9, two processes, settings, what goes wrong."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import multiprocessing
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

import resshift_core as rs
from resshift_core.file_lock import file_lock
from training import finetune, sole
from training.data import START
from training.interrupts import Interrupts
from training.report import Report, Table, before_and_after, write_summary
from training.trainer import Trainer

from . import standin
from .host_process import free_port
from .training_run import ROOT, arguments, command, environment, make_pictures, save_tiny_model, weights

needs_fork = pytest.mark.skipif(START != "fork", reason="processes are forked here; run --slow for fresh ones")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(folder of pictures, tiny model file)."""
    folder = tmp_path_factory.mktemp("training")
    return make_pictures(folder / "pictures"), save_tiny_model(folder / "tiny.safetensors")


pytestmark = pytest.mark.usefixtures("one_thread")


def contents(path: Path) -> tuple[dict, bytes]:
    """(header, bytes of all weights) of a .safetensors file; the order of words in its header is not fixed."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def losses(output: Path) -> list[tuple[str, str]]:
    with open(output / "log.csv", newline="") as file:
        return [(row["iteration"], row["loss"]) for row in csv.DictReader(file)]


# ---------------------------------------------------------------------------------------------------- what a run writes


@pytest.fixture(scope="module")
def finished(place, tmp_path_factory):
    """The folder of a run of 60 iterations on bicubic pairs."""
    output = tmp_path_factory.mktemp("finished") / "run"
    more = ("--iterations", 60, "--learning-rate", 2e-3, "--contact-sheet", "True", "--description", "six waves")
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 0
    return output


def test_a_run_writes_what_its_docstring_says(finished):
    for name in (
        "last.safetensors",
        "best.safetensors",
        "config.json",
        "scan.json",
        "log.csv",
        "validation.csv",
        "summary.png",
    ):
        assert (finished / name).stat().st_size > 0, name
    assert (finished / "contact_sheet.png").is_file()
    assert len(list((finished / "state").glob("*.pt"))) in (1, 2)


def test_companions_of_a_mac_are_no_pictures(finished, tmp_path):
    """It puts them beside files on drives that know no attributes of files."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "validation" / "._000000000.png").write_bytes(b"\0\5\x16\7")
    (folder / "summary.png").unlink()
    assert write_summary(folder) == folder / "summary.png"


def test_tensorboard_shows_losses_scores_and_grids(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(finished / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert {"training/loss", "training/rate", "training/images_per_second"} <= set(tags["scalars"])
    assert {"validation/psnr", "validation/ssim"} <= set(tags["scalars"])
    assert [event.step for event in board.Scalars("validation/psnr")] == [0, 50, 60]
    (grids,) = tags["images"]
    shown = board.Images(grids)[0]
    assert (shown.width, shown.height) == (3 * 256, 256)


def test_validation_takes_lpips_where_it_is_here(place, tmp_path, monkeypatch):
    """And the best model may be the one of the lowest."""
    from training import losses, validation

    values = iter([0.5, 0.2, 0.4])
    monkeypatch.setattr(validation, "lpips_is_here", lambda: True)
    monkeypatch.setattr(losses, "make_lpips", lambda net: lambda a, b: torch.full((1, 1, 1, 1), next(values)))
    more = ("--iterations", 4, "--validate-every", 2, "--best-by", "lpips")
    assert finetune.main(arguments(place[0], tmp_path / "run", place[1], *more)) == 0
    with open(tmp_path / "run" / "validation.csv", newline="") as file:
        assert [round(float(row["lpips"]), 3) for row in csv.DictReader(file)] == [0.5, 0.2, 0.4]
    assert rs.load_model(tmp_path / "run" / "best.safetensors", device="cpu").metadata["steps_trained"] == "2"


def test_training_helps(finished):
    with open(finished / "validation.csv", newline="") as file:
        scores = [float(row["psnr"]) for row in csv.DictReader(file)]
    assert scores[-1] > scores[0] + 0.3


def test_the_result_loads_everywhere_and_says_where_it_came_from(finished, place):
    model = rs.load_model(finished / "last.safetensors", device="cpu")
    assert model.config.name == "run" and model.config.licence == "Apache-2.0"
    image = torch.rand(1, 3, 20, 24)
    assert rs.upscale(model, image).shape == (1, 3, 80, 96)
    metadata = model.metadata
    assert metadata["steps_trained"] == "60" and metadata["data"] == "six waves" and metadata["parent"] == "small"
    assert metadata["parent_sha256"] == hashlib.sha256(place[1].read_bytes()).hexdigest()
    assert json.loads(metadata["training"])["learning_rate"] == 2e-3
    assert json.loads(metadata["training"])["model"] == place[1].name
    assert str(place[1].parent) not in " ".join(metadata.values())  # whose machine it was stays there


def test_the_saved_configuration_trains_again(finished, place, tmp_path):
    words = arguments(place[0], tmp_path / "again", place[1], "--config", finished / "config.json", "--iterations", 2)
    assert finetune.main(words) == 2  # which of the two is meant?
    at = words.index("--model")
    assert finetune.main(words[:at] + words[at + 2 :]) == 0
    model = rs.load_model(tmp_path / "again" / "last.safetensors", device="cpu")
    assert model.metadata["parent"] == "" and json.loads(model.metadata["training"])["learning_rate"] == 2e-3


def test_a_configuration_without_a_model_is_a_recipe(place, tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text('{"training": {"learning_rate": 3e-3}}')
    words = arguments(place[0], tmp_path / "run", place[1], "--config", file, "--iterations", 2)
    assert finetune.main(words) == 0
    metadata = rs.load_model(tmp_path / "run" / "last.safetensors", device="cpu").metadata
    assert metadata["parent"] == "small" and json.loads(metadata["training"])["learning_rate"] == 3e-3


def test_the_schedule_is_retrained(place, tmp_path):
    words = arguments(place[0], tmp_path / "run", place[1], "--iterations", 2, "--steps", 2, "--kappa", 0.3, "--p", 1)
    assert finetune.main(words) == 0
    model = rs.load_model(tmp_path / "run" / "last.safetensors", device="cpu")
    assert (model.schedule.steps, model.schedule.kappa, model.schedule.p, model.config.default_steps) == (2, 0.3, 1, 2)


def test_the_papers_schedule_of_fifteen_steps(place, tmp_path):
    more = ("--iterations", 1, "--steps", 15, "--kappa", 2, "--p", 0.3, "--min-noise-level", 0.04)
    assert finetune.main(arguments(place[0], tmp_path / "run", place[1], *more)) == 0
    model = rs.load_model(tmp_path / "run" / "last.safetensors", device="cpu")
    assert model.schedule.sqrt_eta[0] == pytest.approx(0.04 / 2) and model.schedule.steps == 15


@pytest.mark.parametrize("folder", ["out\u3000\u72ac"] if os.name == "nt" else ["out\u3000\u72ac", "a\tb", "x" * 220])
def test_whatever_the_folder_is_called_the_model_loads(place, tmp_path, folder):
    assert finetune.main(arguments(place[0], tmp_path / folder, place[1], "--iterations", 1)) == 0
    name = rs.load_model(tmp_path / folder / "last.safetensors", device="cpu").config.name
    assert name.isprintable() and 0 < len(name) <= 200


def test_a_recipe_says_nothing_of_another_models_kind_and_licence(place, tmp_path):
    assert finetune.main(arguments(place[0], tmp_path / "one", place[1], "--iterations", 1)) == 0
    recipe = json.loads((tmp_path / "one" / "config.json").read_text())
    assert recipe.pop("model")["licence"] == "" and not {"licence", "predict"} & set(recipe["training"])
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    theirs = standin.small_model(model_channels=8, licence="of theirs", predict="x0")
    model = rs.save_model(theirs, tmp_path / "theirs.safetensors")
    words = ("--config", tmp_path / "recipe.json", "--data", place[0], "--output", tmp_path / "two", "--model", model)
    assert finetune.main([str(word) for word in (*words, "--device", "cpu")]) == 0
    config = rs.load_model(tmp_path / "two" / "last.safetensors", device="cpu").config
    assert (config.licence, config.predict, config.name) == ("of theirs", "x0", "two")


@pytest.mark.parametrize("every", [2, 3])
def test_a_validation_that_was_broken_off_is_made_up_for(place, tmp_path, monkeypatch, every):
    output, real = tmp_path / "run", finetune.Run.validate
    words = arguments(place[0], output, place[1], "--iterations", 4, "--validate-every", every, "--save-every", 2)

    def interrupted(run, *args):
        if run.trainer.position.iteration == 4:
            raise KeyboardInterrupt
        real(run, *args)

    monkeypatch.setattr(finetune.Run, "validate", interrupted)
    assert finetune.main(words) != 0
    monkeypatch.setattr(finetune.Run, "validate", real)
    assert finetune.main([*words, "--resume", "auto"]) == 0
    with open(output / "validation.csv", newline="") as file:
        assert [row["iteration"] for row in csv.DictReader(file)] == ["0", str(every), "4"]


def test_the_best_model_is_not_remembered_before_it_is_written(place, tmp_path, monkeypatch):
    """Ctrl-C in between left a run whose best file was older than its best score, for good."""
    output, real = tmp_path / "run", finetune.Run.export
    words = arguments(place[0], output, place[1], "--iterations", 4, "--validate-every", 2, "--save-every", 2)

    def interrupted(run, name):
        if name == "best.safetensors" and run.trainer.position.iteration:
            raise KeyboardInterrupt
        real(run, name)

    values = iter(range(30))
    monkeypatch.setattr("training.validation.psnr", lambda *_: float(next(values)))  # every validation is the best so far
    monkeypatch.setattr(finetune.Run, "export", interrupted)
    assert finetune.main(words) != 0
    monkeypatch.setattr(finetune.Run, "export", real)
    assert finetune.main([*words, "--resume", "auto", "--iterations", "2"]) == 0
    assert rs.load_model(output / "best.safetensors", device="cpu").metadata["steps_trained"] == "2"


def test_few_photographs_are_varied(place, tmp_path):
    words = ("--variety", "True", "--leaves-share", 0.4, "--frame-share", 0.3, "--min-rescale", 0.3)
    words += ("--loss", "psnr", "--psnr-limit", 40)
    assert finetune.main(arguments(place[0], tmp_path, place[1], *words)) == 0
    used = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))["training"]
    assert used["variety"] is True and used["leaves_share"] == 0.4 and used["frame_share"] == 0.3 and used["psnr_limit"] == 40


def test_pairs_of_the_same_names(place, tmp_path, caplog):
    (tmp_path / "low").mkdir()
    for path in place[0].iterdir():
        with Image.open(path) as image:
            image.resize((18, 18), Image.Resampling.BICUBIC).save(tmp_path / "low" / path.name)
    words = (
        "--degradation",
        "paired",
        "--pairs",
        tmp_path / "low",
        "--leaves-share",
        0.9,
        "--frame-share",
        0.9,
        "--variety",
        "True",
    )  # of no use here
    assert finetune.main(arguments(place[0], tmp_path / "run", place[1], *words)) == 0
    assert "Pairs are used as they are: --variety, --leaves-share, --frame-share are of no use here." in caplog.text
    recipe = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))["training"]
    assert not any(recipe[name] for name in ("variety", "leaves_share", "frame_share", "drawn_share")), "nor said to be used"
    (tmp_path / "low" / "picture_3.png").unlink()
    assert finetune.main(arguments(place[0], tmp_path / "other", place[1], *words)) == 1


def test_a_dry_run_trains_nothing(place, tmp_path, capsys):
    output = tmp_path / "run"
    assert finetune.main(arguments(place[0], output, place[1], "--dry-run", "True", "--contact-sheet", "True")) == 0
    shown = capsys.readouterr().out
    assert "images/s" in shown and "of memory at most" in shown
    assert sorted(path.name for path in output.iterdir()) == ["contact_sheet.png", "scan.json"]


def test_a_dry_run_tells_the_time_of_what_is_left(place, tmp_path, capsys):
    words = arguments(place[0], tmp_path / "run", place[1])
    assert finetune.main([*words, "--iterations", "2"]) == 0
    assert finetune.main([*words, "--iterations", "1002", "--resume", "auto", "--dry-run", "True"]) == 0
    assert "hours for 1000 updates" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------- resume


def test_a_run_is_not_overwritten(place, tmp_path, capsys):
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 2
    assert "--resume auto" in capsys.readouterr().err


LONGEST = 600  # seconds that a run of these may take
STARTED = []  # processes, and leaders of process groups


@pytest.fixture(autouse=True)
def nothing_goes_on():
    """A test that fails leaves no process behind; pytest would wait for them at its end."""
    yield
    while STARTED:
        process = STARTED.pop()
        if isinstance(process, subprocess.Popen) and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        elif not isinstance(process, subprocess.Popen) and process.is_alive():
            process.kill()
            process.join()


def in_child(words: list[str], **variables: str):
    """finetune.py in a forked process: the imports of a fresh one take longer than these runs. Returns the started process."""

    def run():
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os.environ.update(variables)
        tqdm.set_lock(threading.RLock())  # tqdm's own is shared with all forks, and stays locked when its holder is killed
        os._exit(finetune.main(words))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    STARTED.append(process)
    return process


class Fresh(subprocess.Popen):
    """finetune.py as people start it, with the few methods of multiprocessing.Process that are used here."""

    def __init__(self, words):
        super().__init__(command(*words), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def is_alive(self):
        return self.poll() is None

    def join(self, timeout=None):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout)

    @property
    def exitcode(self):
        return self.returncode


def newest_state(output: Path) -> str:
    return max((path.name for path in (output / "state").glob("*.pt")), default="")


def kill_and_resume(start, words: list[str], output: Path, kills: int) -> int:
    """Start the same run again and again, kill -9 it at random moments, let the last one finish.

    Returns how often it was killed before it had finished.
    """
    killed, rng = 0, random.Random(kills)
    for n in range(kills):
        before = newest_state(output)
        process = start(words)
        while n % 3 and process.is_alive() and newest_state(output) == before:  # every third dies before it gets anywhere
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        process.kill()
        process.join()
        killed += process.exitcode != 0
    process = start(words)
    process.join(LONGEST)
    assert process.exitcode == 0
    return killed


LONG = ("--iterations", 120, "--save-every", 4, "--degradation", "paper-b1", "--validate-every", 60, "--adversarial", 0.01)


def compare_with_unbroken(start, place, folder: Path, kills: int) -> None:
    unbroken, broken = folder / "unbroken" / "run", folder / "broken" / "run"
    assert finetune.main(arguments(place[0], unbroken, place[1], *LONG)) == 0
    killed = kill_and_resume(start, arguments(place[0], broken, place[1], *LONG, "--resume", "auto"), broken, kills)
    assert killed >= 3
    for name in ("last.safetensors", "best.safetensors"):
        assert contents(broken / name) == contents(unbroken / name), name
    assert losses(broken) == losses(unbroken)


@needs_fork
def test_killed_and_resumed_runs_end_in_the_same_bytes(place, tmp_path):
    compare_with_unbroken(in_child, place, tmp_path, kills=7)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(place, tmp_path):
    """Each a process of its own, from the command line."""
    compare_with_unbroken(Fresh, place, tmp_path, kills=20)


def test_muon_resumes_exactly_too(place, tmp_path, monkeypatch):
    """The built-in model's optimiser, whose state is not AdamW's."""
    unbroken, broken = tmp_path / "unbroken" / "run", tmp_path / "broken" / "run"
    more = ("--iterations", 8, "--optimizer", "muon", "--learning-rate", 2e-3)
    assert finetune.main(arguments(*place[:1], unbroken, place[1], *more)) == 0
    step = Trainer.step

    def interrupted(trainer, *batch):
        if trainer.position.iteration == 5:
            raise KeyboardInterrupt
        return step(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", interrupted)
    assert finetune.main(arguments(*place[:1], broken, place[1], *more)) == 130
    monkeypatch.setattr(Trainer, "step", step)
    assert finetune.main(arguments(*place[:1], broken, place[1], *more, "--resume", "auto")) == 0
    assert contents(broken / "last.safetensors") == contents(unbroken / "last.safetensors")


@pytest.fixture
def default_signals():
    """Ctrl-C is ignored by what a shell starts with &."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_signals")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["_update", "write", "validate"])
def test_a_signal_saves_no_half_step(place, tmp_path, monkeypatch, number, status, where):
    """It comes between the weights and their average, in the tables' locks, or in validation, which is broken off."""
    unbroken, broken = tmp_path / "unbroken" / "run", tmp_path / "broken" / "run"
    more = ("--iterations", 8, "--validate-every", 4)
    assert finetune.main(arguments(*place[:1], unbroken, place[1], *more)) == 0
    finished = []

    if where == "_update":

        def kill(average, *args):
            signal.raise_signal(number)
            finished.append(True)
            return AveragedModel.update_parameters(average, *args)

        monkeypatch.setattr("training.trainer.AveragedModel", type("Killed", (AveragedModel,), {"update_parameters": kill}))
    elif where == "write":

        def kill(report, *args):
            signal.raise_signal(number)
            finished.append(True)

        monkeypatch.setattr("training.report.Report.write", kill)
    else:
        validate, models = finetune.Validator.__call__, []

        def kill(validator, model):
            models.append(model)
            if len(models) == 2:
                signal.raise_signal(number)
                finished.append(True)
            return validate(validator, model)

        monkeypatch.setattr(finetune.Validator, "__call__", kill)
    handlers = [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]
    assert finetune.main(arguments(*place[:1], broken, place[1], *more)) == status
    assert finished == ([] if where == "validate" else [True])
    assert [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)] == handlers
    monkeypatch.undo()
    assert [path.name[:9] for path in (broken / "state").glob("*.pt")] == ["000000004" if where == "validate" else "000000001"]
    assert finetune.main(arguments(*place[:1], broken, place[1], *more, "--resume", "auto")) == 0
    assert contents(broken / "last.safetensors") == contents(unbroken / "last.safetensors")


@pytest.mark.usefixtures("default_signals")
@pytest.mark.skipif(os.name == "nt", reason="Windows has no groups of processes to signal")
@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_all_processes_saves(place, tmp_path, number, status):
    """As torchrun passes it on: the loader's processes, which it reached as well, ended and took the run with them."""
    more = ("--iterations", 100000, "--workers", 1, "--save-every", 100000, "--validate-every", 100000)
    words = command(*arguments(place[0], tmp_path / "run", place[1], *more))
    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    STARTED.append(process)
    log = tmp_path / "run" / "log.csv"
    end = time.monotonic() + 120
    while time.monotonic() < end and not (log.exists() and len(log.read_text().splitlines()) > 3):
        time.sleep(0.1)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == status and "Traceback" not in said, said
    assert len(list((tmp_path / "run" / "state").glob("*.pt"))) == 1 and (tmp_path / "run" / "last.safetensors").exists()


@pytest.mark.usefixtures("default_signals")
@needs_fork
def test_all_processes_stop_after_the_same_step(place, tmp_path):
    """Though the signal reaches one of them; and what loads the data ignores it."""
    output = tmp_path / "run"
    words = arguments(place[0], output, place[1], "--iterations", 10**6, "--workers", 1)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [in_child(words, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    deadline = time.monotonic() + 120
    while not (output / "log.csv").is_file() or len(losses(output)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(processes[1].pid, signal.SIGINT)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [130, 130]
    (state,) = (output / "state").glob("*.pt")
    assert int(state.name[:9]) == int(losses(output)[-1][0]) >= 3


def test_an_impatient_signal_ends_the_run_at_once(monkeypatch):
    with Interrupts(together=False) as interrupts:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # torchrun passes every one on
        assert interrupts.asked and interrupts.status == 143
        monkeypatch.setattr("training.interrupts.PATIENCE", -1.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1)


def test_loader_workers_that_die_by_the_signal_are_no_error():
    def batches():
        yield 1
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Terminated.")

    interrupts = Interrupts(together=False)
    with pytest.raises(RuntimeError, match="killed by signal"):
        list(interrupts.passing(batches()))
    with interrupts:
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        list(interrupts.passing(batches()))


@pytest.mark.usefixtures("default_signals")
def test_an_impatient_signal_in_a_step_saves_no_half_of_it(place, tmp_path, monkeypatch, capsys):
    """It was saved, and --resume auto made the same step twice."""
    unbroken, broken = tmp_path / "unbroken" / "run", tmp_path / "broken" / "run"
    more = ("--iterations", 4, "--save-every", 1)
    assert finetune.main(arguments(*place[:1], unbroken, place[1], *more)) == 0
    made = []

    def kill(average, *args):
        made.append(AveragedModel.update_parameters(average, *args))
        if len(made) == 3:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("training.interrupts.PATIENCE", -1.0)
    monkeypatch.setattr("training.trainer.AveragedModel", type("Killed", (AveragedModel,), {"update_parameters": kill}))
    assert finetune.main(arguments(*place[:1], broken, place[1], *more)) == 143
    monkeypatch.undo()
    assert "in the middle of a step, which is not saved" in capsys.readouterr().out
    assert max(int(path.name[:9]) for path in (broken / "state").glob("*.pt")) == 2
    assert finetune.main(arguments(*place[:1], broken, place[1], *more, "--resume", "auto")) == 0
    assert contents(broken / "last.safetensors") == contents(unbroken / "last.safetensors")


def test_only_what_changes_nothing_is_broken_off():
    """A batch half received, a queue's lock left behind: the worker prints a traceback, the run waits for ever."""
    interrupts, done = Interrupts(together=False), []
    with interrupts, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)
        done.append("noted")
        with interrupts.breakable():
            done.append("begun")
    assert done == ["noted"] and interrupts.asked
    interrupts = Interrupts(together=False)
    with interrupts, pytest.raises(KeyboardInterrupt), interrupts.breakable():
        signal.raise_signal(signal.SIGTERM)
        done.append("broken off")
    interrupts = Interrupts(together=True)
    with interrupts, interrupts.breakable():
        signal.raise_signal(signal.SIGTERM)
        done.append("together")
    assert done == ["noted", "together"]


def test_a_table_that_a_spreadsheet_holds_gets_its_rows_later(tmp_path, monkeypatch, caplog):
    def held(*_, **__):
        raise PermissionError(13, "Permission denied")

    table = Table(tmp_path / "log.csv", ["loss"], 0)
    table.add(1, {"loss": 0.5})
    with monkeypatch.context() as patch:
        patch.setattr("training.report.open", held, raising=False)
        table.add(2, {"loss": 0.25})
        table.add(3, {"loss": 0.125})
    assert [record.getMessage().count("log.csv cannot be written now") for record in caplog.records] == [1]
    table.add(4, {"loss": 0.0625})
    rows = [(1, 0.5), (2, 0.25), (3, 0.125), (4, 0.0625)]
    assert [(row["iteration"], row["loss"]) for row in Table.read(table.path)] == rows
    with monkeypatch.context() as patch:
        patch.setattr("training.report.open", held, raising=False)
        table.add(5, {"loss": 0.0})
        table.close()
    assert "log.csv cannot be written (Permission denied); its last rows, 1, are lost" in caplog.text
    table.close()  # the last row of a run waits for no other one
    assert [(row["iteration"], row["loss"]) for row in Table.read(table.path)] == [*rows, (5, 0.0)]


@pytest.mark.parametrize("count, size", [(1, 132), (2, 132), (3, 264)])
def test_before_and_after_takes_any_number_of_pictures(tmp_path, count, size):
    places = [tmp_path / name for name in ("first.png", "last.png")]
    for place, level in zip(places, (40, 200)):
        Image.new("L", (3 * 256, count * 256), level).save(place)
    picture = before_and_after(*places)
    assert picture.shape == (size, 2 * (4 * 132 + 12), 3)
    assert [int(picture[66, 66 + 132 * i, 0]) for i in range(4)] == [40, 40, 200, 200]


def test_torn_rows_of_a_table_are_left_out(tmp_path):
    (tmp_path / "log.csv").write_bytes(
        b"iteration,loss\n1,0.5\n,0.25\n2,x\n\xff\xfe4,0.4\n3,\n\0\0\0\0"
    )  # zeros: power was lost
    assert Table.read(tmp_path / "log.csv") == [{"iteration": 1, "loss": 0.5}, {"iteration": 3}]


def test_a_file_of_output_gets_lines_instead_of_a_bar(tmp_path, monkeypatch, capsys):
    report = Report(tmp_path, 300, 0, [])
    clock = iter((31.0, 31.0, 60.0, 62.0, 62.0))
    report.told = 0.0
    monkeypatch.setattr("training.report.time.monotonic", lambda: next(clock))
    for iteration in (10, 20, 30):
        report.step(torch.device("cpu"), {"loss": 0.5}, 7.0)
        report.write(iteration, {"loss": 0.5, "images_per_second": 7.0})
    report.close()
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"iteration {i} of 300: loss 0.50000, 7.0 images/s" for i in (10, 30)] and err == ""


def test_the_tables_of_a_run_are_closed_with_it(tmp_path, monkeypatch):
    report, closed = Report(tmp_path, 1, 0, []), []
    monkeypatch.setattr(Table, "close", lambda table: closed.append(table.path.name))
    report.close()
    assert closed == ["log.csv", "validation.csv"]


def test_a_torn_state_falls_back_to_the_one_before(place, tmp_path, caplog):
    output = tmp_path / "run"
    more = ("--iterations", 8, "--save-every", 3)
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 0
    whole = contents(output / "last.safetensors")
    newest = sorted((output / "state").glob("*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    (output / "last.safetensors").unlink()
    assert finetune.main(arguments(*place[:1], output, place[1], *more, "--resume", "auto")) == 0
    assert newest.name in caplog.text and "falling back" in caplog.text
    assert contents(output / "last.safetensors") == whole
    assert [iteration for iteration, _ in losses(output)] == [str(n) for n in range(1, 9)]


def test_changed_settings_are_named_when_resuming(place, tmp_path, caplog):
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 3, "--clip", 2, "--resume", "auto")) == 0
    assert "iterations was 2, is 3" in caplog.text and "clip was 1.0, is 2" in caplog.text


def test_a_setting_newer_than_the_run_has_not_changed(place, tmp_path, caplog, monkeypatch):
    output, write = tmp_path / "run", finetune.to_dict
    older = {"spectrum", "width"}
    monkeypatch.setattr(finetune, "to_dict", lambda settings: {k: v for k, v in write(settings).items() if k not in older})
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    monkeypatch.setattr(finetune, "to_dict", write)
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 3, "--resume", "auto")) == 0
    assert "iterations was 2, is 3" in caplog.text and "spectrum" not in caplog.text and "width" not in caplog.text


# ---------------------------------------------------------------------------------------------------- processes


def by_variables(words: list[str]) -> None:
    """Two processes with the variables that torchrun sets."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [in_child(words, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]


def by_torchrun(words: list[str]) -> None:
    whole = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", *command(*words)[1:]]
    done = subprocess.run(whole, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "launch", [pytest.param(by_variables, marks=needs_fork), pytest.param(by_torchrun, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("rate", "losses"), [(0.5, ()), (0.01, ("--spectrum", 0.3, "--adversarial", 0.1))], ids=["distance", "texture"]
)
def test_two_processes_compute_what_one_does(place, tmp_path, launch, rate, losses):
    """SGD: the weights after a few steps are the sum of the gradients."""
    more = ("--iterations", 3, "--optimizer", "sgd", "--learning-rate", rate, "--warmup-share", 0, "--clip", 0, "--ema", 0)
    more += ("--degradation", "paper-b1", *losses)
    assert finetune.main(arguments(*place[:1], tmp_path / "one", place[1], *more)) == 0
    launch(arguments(place[0], tmp_path / "two", place[1], *more))
    start = weights(place[1])
    one, two = (weights(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    moved = max(float((one[key] - start[key]).abs().max()) for key in one)
    apart = max(float((one[key] - two[key]).abs().max()) for key in one)
    assert moved > 1e-3 and apart < 1e-4 * moved


def test_a_batch_that_cannot_be_shared_out_is_refused(place, tmp_path, capsys, monkeypatch):
    from training.distributed import Processes

    monkeypatch.setattr(finetune.distributed, "start", lambda device: Processes(0, 3, torch.device("cpu")))
    monkeypatch.setattr(finetune.distributed, "stop", lambda processes: None)
    monkeypatch.setattr(Processes, "share", lambda self, value: value)
    assert finetune.main(arguments(*place[:1], tmp_path / "run", place[1])) == 2
    assert "multiple of the 3 processes" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("form", ["module", "file"])
def test_both_forms_of_the_program_show_its_manual(form, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", ["first", str(ROOT / "training"), *sys.path])
    monkeypatch.setattr(sys, "argv", ["finetune", "--help"])
    with pytest.raises(SystemExit) as stop:
        if form == "module":
            runpy.run_module("training.finetune", run_name="__main__")
        else:
            runpy.run_path(str(ROOT / "training" / "finetune.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert stop.value.code == 0 and "python training/finetune.py" in shown and "--resume auto" in shown
    # as `python -m` from the root has it; a portable Python's first entry is its own library, and stays
    assert form == "module" or (sys.path[:2] == [str(ROOT), "first"] and str(ROOT / "training") not in sys.path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["finetune", "distill", "evaluate", "train_autoencoder"])
def test_every_program_starts_in_both_forms(name):
    for words in (["-m", f"training.{name}"], [str(Path("training", f"{name}.py"))]):
        whole = [sys.executable, *words, "--help"]
        done = subprocess.run(whole, cwd=ROOT, env=environment(COLUMNS="120"), capture_output=True, text=True)
        assert done.returncode == 0 and f"python training/{name}.py" in done.stdout


def test_bad_pictures_are_named_and_left_out(place, tmp_path, capsys):
    data = shutil.copytree(place[0], tmp_path / "data")
    (data / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    shutil.copy(data / "picture_1.png", data / "twin.png")
    assert finetune.main(arguments(data, tmp_path / "run", place[1], "--iterations", 1)) == 0
    out = capsys.readouterr().out
    assert "broken.png" in out and "twin.png (as " in out and "6 pictures can be used" in out


def test_a_folder_without_pictures_is_said(place, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert finetune.main(arguments(tmp_path / "empty", tmp_path / "run", place[1])) == 1
    assert "There are no pictures. Known are files that end in .avif, " in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="torch.compile wants a C++ compiler")
@pytest.mark.parametrize("checkpointing", ["False", "True"])
def test_a_compiled_run_computes_the_same(place, tmp_path, checkpointing):
    more = ("--iterations", 3, "--learning-rate", 1e-3)
    assert finetune.main(arguments(place[0], tmp_path / "plain", place[1], *more)) == 0
    more += ("--compile", "True", "--checkpointing", checkpointing)
    assert finetune.main(arguments(place[0], tmp_path / "compiled", place[1], *more)) == 0
    plain, compiled = ([float(loss) for _, loss in losses(tmp_path / name)] for name in ("plain", "compiled"))
    assert compiled == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    "words, status, sentence",
    [
        (("--optimizer", "nosuch"), 2, "--optimizer nosuch is not among timm's: adabelief"),
        (("--optimizer", "bnbadamw8bit"), 2, "--optimizer bnbadamw8bit cannot be used here"),
        (("--data", "nowhere"), 1, "There is no folder nowhere"),
        (("--device", "foo"), 1, "The device 'foo' cannot be used"),
        (("--device", "meta"), 1, "The device meta computes nothing"),
        (("--validation", "locales"), 1, "There is no picture in locales to validate on"),
        (("--licence", "x" * 201), 2, "settings that no file may have: licence is"),
        (("--degradation", "paired", "--pairs", "nowhere"), 1, "There is no folder nowhere"),
    ],
)
def test_what_cannot_be_is_said(place, tmp_path, capsys, words, status, sentence):
    if "bnb" in str(words) and torch.cuda.is_available():
        pytest.skip("may be used here")
    assert finetune.main(arguments(place[0], tmp_path / "run", place[1], *words)) == status
    assert sentence in capsys.readouterr().err


def test_an_output_that_is_a_file_is_said(place, tmp_path, capsys):
    (tmp_path / "run").write_text("")
    assert finetune.main(arguments(place[0], tmp_path / "run", place[1])) == 2
    assert "cannot be made a folder" in capsys.readouterr().err


def test_two_runs_in_one_folder_are_not_started(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sole, "PATIENCE", 0.3)
    output = tmp_path / "run"
    output.mkdir()
    with file_lock(output / sole.LOCK):
        assert finetune.main(arguments(place[0], output, place[1])) == 2
        shown = capsys.readouterr()
        assert "waiting for its end" in shown.out and f"Another run is at work in {output}" in shown.err
        assert [path.name for path in output.iterdir()] == [sole.LOCK]
    assert finetune.main(arguments(place[0], output, place[1])) == 0
    assert not (output / sole.LOCK).exists()


def test_a_missing_model_is_said(place, tmp_path, capsys):
    assert finetune.main(arguments(place[0], tmp_path / "run", tmp_path / "none.safetensors")) == 1
    assert "none.safetensors" in capsys.readouterr().err


def test_lpips_offline_is_a_sentence(place, tmp_path, capsys, monkeypatch):
    import urllib.error
    import urllib.request

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    assert finetune.main(arguments(place[0], tmp_path / "run", place[1], "--lpips", 1)) == 1
    assert "Connect this machine once, or copy vgg16" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- found by review


def test_a_state_of_bf16_goes_on_in_fp16(place, tmp_path):
    """On an older card "auto" means fp16; the state has no scale for it yet."""
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    more = ("--iterations", 3, "--resume", "auto", "--precision", "fp16")
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 0


def test_gradients_of_fp16_that_are_never_finite_stop_the_run(place, tmp_path, monkeypatch, capsys):
    backward = Trainer._backward

    def broken(trainer, *args):
        result = backward(trainer, *args)
        next(trainer.raw.parameters()).grad.fill_(float("nan"))
        return result

    monkeypatch.setattr(Trainer, "_backward", broken)
    more = ("--iterations", 60, "--precision", "fp16")
    assert finetune.main(arguments(*place[:1], tmp_path / "run", place[1], *more)) == 1
    assert "not finite in 3 steps in a row" in capsys.readouterr().err
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        assert {row["skipped"] for row in csv.DictReader(file)} == {"1.0"}


def test_damaged_states_do_not_start_the_run_anew(place, tmp_path, capsys):
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    best = contents(output / "best.safetensors")
    for path in (output / "state").glob("*.pt"):
        path.write_bytes(path.read_bytes()[:-100])
    assert finetune.main(arguments(*place[:1], output, place[1], "--resume", "auto")) == 1
    assert "No state in" in capsys.readouterr().err
    shutil.rmtree(output / "state")
    for more in ((), ("--resume", "auto")):
        assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 2
    assert "no state to go on from" in capsys.readouterr().err
    assert contents(output / "best.safetensors") == best


def test_a_run_killed_before_its_last_file_gets_it(place, tmp_path, monkeypatch, capsys):
    output, export = tmp_path / "run", finetune.Run.export
    more = ("--iterations", 4, "--save-every", 2)

    def killed(run, name):
        if name == "last.safetensors" and run.trainer.position.iteration == 4:
            raise OSError("no space left")
        export(run, name)

    monkeypatch.setattr(finetune.Run, "export", killed)
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 1
    monkeypatch.undo()
    assert finetune.main(arguments(*place[:1], output, place[1], *more, "--resume", "auto")) == 0
    assert "Nothing is left to do: the run has made 4 iterations" in capsys.readouterr().out
    assert rs.load_model(output / "last.safetensors", device="cpu").metadata["steps_trained"] == "4"


def test_a_finished_run_stays_what_it_is(place, tmp_path, capsys):
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    before = {path.name: path.read_bytes() for path in output.iterdir() if path.suffix in (".safetensors", ".json", ".csv")}
    assert {"best.safetensors", "last.safetensors", "config.json"} <= before.keys()
    more = ("--iterations", 2, "--resume", "auto", "--kappa", 2, "--validation-crop", 48)
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 0
    assert "Nothing is left to do" in capsys.readouterr().out
    for name in ("best.safetensors", "last.safetensors", "config.json"):
        assert (output / name).read_bytes() == before[name], name


def test_what_is_predicted_stays(place, tmp_path, capsys):
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    learned = rs.load_model(output / "last.safetensors", device="cpu").config.predict
    other = "x0" if learned == "residual" else "residual"
    more = ("--iterations", 4, "--resume", "auto", "--predict", other)
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 2
    assert f"learned to predict {learned}" in capsys.readouterr().err


def test_a_state_of_another_network_is_one_line(place, tmp_path, capsys):
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    capsys.readouterr()
    more = ("--iterations", 4, "--resume", "auto", "--width", 16)
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "is of another network" in last and "size mismatch for" in last and last.endswith("choose another --output.")


def test_the_log_says_decibels_where_it_says_psnr(place, tmp_path):
    more = ("--iterations", 2, "--loss", "psnr", "--eq8-weight", "True")
    assert finetune.main(arguments(*place[:1], tmp_path / "run", place[1], *more)) == 0
    with open(tmp_path / "run" / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["psnr"]) > 5 for row in rows) and any(float(row["psnr"]) != -float(row["loss"]) for row in rows)


def test_the_best_is_compared_by_one_yardstick(place, tmp_path, caplog):
    output = tmp_path / "run"
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2)) == 0
    more = ("--iterations", 3, "--resume", "auto", "--best-by", "ssim")
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 0
    assert "best.safetensors will be the best from here on" in caplog.text
    caplog.clear()
    more = ("--iterations", 4, "--resume", "auto", "--best-by", "ssim", "--degradation", "paper-b1")
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 0
    assert "best.safetensors will be the best from here on" in caplog.text
    assert rs.load_model(output / "best.safetensors", device="cpu").metadata["steps_trained"] == "4"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--adversarial", 0.005), "had no discriminator"),
        (("--weight-decay", 0.1), "moments begin anew"),
        (("--optimizer", "muon"), "moments begin anew"),
        (("--betas", 0.5, 0.9), "betas was"),
    ],
)
def test_settings_that_change_the_optimiser_when_resuming(place, tmp_path, caplog, monkeypatch, more, told):
    output, seen = tmp_path / "run", []
    shared = ("--crop", 32, "--optimizer", "adamw")
    assert finetune.main(arguments(*place[:1], output, place[1], "--iterations", 2, *shared)) == 0
    step = Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda t, *batch: seen.append(dict(t.optimizer.param_groups[0])) or step(t, *batch))
    more = ("--iterations", 4, *shared, "--resume", "auto", *more)
    assert finetune.main(arguments(*place[:1], output, place[1], *more)) == 0
    assert told in caplog.text
    if "--betas" in more:
        assert {group["betas"] for group in seen} == {(0.5, 0.9)}


def test_memory_that_runs_out_in_the_run_is_a_sentence(place, tmp_path, monkeypatch, capsys):
    step = Trainer.step

    def full(trainer, *batch):
        if trainer.position.iteration == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", full)
    assert finetune.main(arguments(*place[:1], tmp_path / "run", place[1])) == 1
    assert "Out of memory at iteration 3" in (told := capsys.readouterr().err) and "--micro-batch 2" in told


def test_the_folder_of_the_run_is_no_data(place, tmp_path, capsys):
    data = shutil.copytree(place[0], tmp_path / "data")
    output = data / "run"
    for more in ((), ("--resume", "auto", "--iterations", 7)):
        assert finetune.main(arguments(data, output, place[1], *more)) == 0
        assert "6 pictures can be used" in capsys.readouterr().out


def test_pictures_to_validate_on_are_not_trained_on(place, tmp_path, caplog):
    data = shutil.copytree(place[0], tmp_path / "data")
    (data / "val").mkdir()
    shutil.move(data / "picture_0.png", data / "val")
    more = ("--validation", data / "val")
    assert finetune.main(arguments(data, tmp_path / "run", place[1], *more)) == 0
    assert "1 pictures are among those to validate on, too, and are not trained on" in caplog.text


@needs_fork
def test_machines_that_do_not_share_the_folder_are_told(place, tmp_path):
    """The second one has no state to go on from."""
    assert finetune.main(arguments(place[0], tmp_path / "first", place[1], "--iterations", 2)) == 0
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        in_child(
            arguments(place[0], tmp_path / name, place[1], "--resume", "auto"), RANK=str(rank), LOCAL_RANK=str(rank), **shared
        )
        for rank, name in enumerate(("first", "second"))
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [2, 2]
