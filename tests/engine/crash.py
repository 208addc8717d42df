"""Runs that are killed, for the tests of checkpoints: ``python crash.py FOLDER`` prints what was found as JSON."""

import json
import logging
import os
import random
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hggraph.engine import checkpoint
from hggraph.engine.checkpoint import SafeCheckpointIO, latest_checkpoint, load_checkpoint
from hggraph.engine.random_state import RandomState

NAMES = ("one name", "new names")
SAVES = 60  # more than the killed runs get done


class Moments:
    """Before and after each call that changes the disk, and in the middle of writes, this can end the process."""

    def __init__(self, last=None, pause=0.0):
        self.seen, self.last, self.pause, self.writes = 0, last, pause, 0
        for name in ("fsync", "replace", "unlink"):
            setattr(os, name, self.around(getattr(os, name)))
        write = checkpoint._Hashed.write

        def in_halves(file, data):
            write(file, data[: len(data) // 2])
            file.file.flush()
            self.writes += 1
            if self.writes % 8 == 1:
                self()
            return write(file, data[len(data) // 2 :])

        checkpoint._Hashed.write = in_halves

    def around(self, function):
        def called(*args, **kwargs):
            self()
            out = function(*args, **kwargs)
            self()
            return out

        return called

    def __call__(self):
        self.seen += 1
        if self.seen == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.pause)


def forked(run):
    """Run in a copy of this process, which has everything imported, and return its id."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        try:
            run()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return process


def ended(process):
    """Wait for the end; say whether it was a kill. Any other failure is an error."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, -signal.SIGKILL), f"a run failed with {code}"
    return code != 0


def save(io, folder, step, names):
    weights = {f"{number}": torch.full((1 + 500 * number,), float(step)) for number in range(3)}
    content = {"global_step": step, "epoch": 0, "state_dict": weights, "optimizer_states": [{"lr": 0.1}]}
    name = "last" if names == "one name" else f"step={step}"
    io.save_checkpoint(content, folder / f"{name}.ckpt")
    if names == "new names":
        io.remove_checkpoint(folder / f"step={step - 1}.ckpt")


def step_of(folder):
    """Load all that is there, and return the step that training would go on from."""
    for path in folder.glob("[!.]*.ckpt"):
        load_checkpoint(path)
    latest = latest_checkpoint(folder)
    return 0 if latest is None else load_checkpoint(latest)["global_step"]


def kill_at_each_moment(folder):
    """Kill one save at each of its moments in turn; return the steps found."""
    out = {}
    for names in NAMES:
        before = folder / names
        io = SafeCheckpointIO()
        for step in (1, 2):
            save(io, before, step, names)
        found, killed = [], True
        while killed:
            copy, last = folder / f"{names} {len(found)}", len(found) + 1
            shutil.copytree(before, copy)

            def run(copy=copy, last=last, names=names):
                Moments(last)
                save(SafeCheckpointIO(), copy, 3, names)

            killed = ended(forked(run))
            found.append(step_of(copy))
            save(SafeCheckpointIO(), copy, 4, names)
            assert step_of(copy) == 4 and not list(copy.glob(".*")), sorted(copy.iterdir())
            shutil.rmtree(copy)
        out[names] = found
    return out


def steps_in(log, word):
    """Return the last step that a log has a word about, or 0."""
    lines = log.read_text().splitlines() if log.exists() else []
    return max((int(line.split()[1]) for line in lines if line.startswith(f"{word} ")), default=0)


def kill_while_writing_slowly(folder):
    """Kill runs that save slowly, again and again, at random moments; return the steps begun, done and found."""
    out = {}
    generator = random.Random(0)
    for names in NAMES:
        rows = []
        log, place = folder / f"{names}.txt", folder / names
        for _ in range(10):

            def run(log=log, place=place, names=names):
                Moments(pause=2e-3)
                io = SafeCheckpointIO()
                first = step_of(place) + 1
                for step in range(first, first + SAVES):
                    with log.open("a") as file:
                        file.write(f"begun {step}\n")
                    save(io, place, step, names)
                    with log.open("a") as file:
                        file.write(f"done {step}\n")

            # not by the clock alone: on a busy machine a run may not even have begun
            wanted = steps_in(log, "begun") + generator.randint(1, 3)
            process = forked(run)
            while steps_in(log, "begun") < wanted:
                time.sleep(1e-3)
            time.sleep(generator.uniform(0, 0.1))
            os.kill(process, signal.SIGKILL)
            assert ended(process)
            rows.append([steps_in(log, "begun"), steps_in(log, "done"), step_of(place)])
        out[names] = rows
    return out


class Noisy(pl.LightningModule):
    """A network with dropout, on batches that depend on the step alone."""

    def __init__(self, moments=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.moments = moments

    def setup(self, stage):
        torch.manual_seed(self.trainer.global_rank)  # so that two processes drop others

    def training_step(self, batch, index):
        if self.moments is not None:
            self.moments()
        return self.net(batch[0] + 0.1 * random.random()).square().mean()

    def validation_step(self, batch, index):
        self.net(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.99**step)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def train_dataloader(self):
        data = TensorDataset(torch.randn(12, 4, generator=torch.Generator().manual_seed(1)))
        return Resumable(data, batch_sampler=Order(self), generator=torch.Generator())

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(2, 4)), generator=torch.Generator())


class Order:
    """Six batches of two, shuffled anew in each epoch, from the step that training has reached."""

    def __init__(self, module):
        self.module = module

    def __len__(self):
        return 6

    def __iter__(self):
        epoch, first = divmod(self.module.global_step, 6)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch)).view(6, 2)
        yield from order[first:].tolist()


class Resumable(DataLoader):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def train(folder, moments=None, *, epochs=3, callbacks=(), devices=1, keep=1):
    """Train, from the latest checkpoint on, and write the weights beside the folder."""
    module = Noisy(moments)
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=2, save_top_k=keep, save_last=True)
    random.seed(3)
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp_fork",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafeCheckpointIO()],
        callbacks=[RandomState(), saver, *callbacks],
    )
    trainer.fit(module, ckpt_path=latest_checkpoint(folder))
    torch.save(module.state_dict(), folder.with_suffix(".pt"))


def equal(*folders):
    """Say whether trainings have ended with the same weights, to the bit."""
    one, *others = (torch.load(folder.with_suffix(".pt"), weights_only=True) for folder in folders)
    assert all(value.isfinite().all() for value in one.values())
    return all(torch.equal(value, other[name]) for other in others for name, value in one.items())


def kill_training(folder):
    """Kill a training 20 times; say whether it ended equal to an unbroken one, and which steps were found."""
    generator = random.Random(0)
    unbroken, broken = folder / "unbroken", folder / "broken"

    def run(last):
        train(broken, Moments(last), epochs=10)

    assert not ended(forked(lambda: train(unbroken, epochs=10)))
    found = []
    for _ in range(20):
        last = generator.randint(1, 100)
        assert ended(forked(lambda last=last: run(last))), f"done after {len(found)} kills"
        found.append(step_of(broken))
    assert not ended(forked(lambda: run(None)))
    return {"equal": equal(unbroken, broken), "found": found}


def resume_two_processes(folder):
    """Resume a training of two processes from its middle; say whether it ended equal."""
    unbroken, resumed = folder / "unbroken", folder / "resumed"
    assert not ended(forked(lambda: train(unbroken, devices=2, keep=-1)))
    resumed.mkdir()
    shutil.copy(unbroken / "step=8.ckpt", resumed)
    states = load_checkpoint(resumed / "step=8.ckpt")["random_state"]["processes"]
    assert not ended(forked(lambda: train(resumed, devices=2)))
    differ = not torch.equal(states[0]["torch"], states[1]["torch"])
    return {"equal": equal(unbroken, resumed), "states": len(states), "differ": differ}


def main(folder):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message=".*damaged.*")
    warnings.filterwarnings("error", message=".*cannot be read.*")
    os.fsync = lambda descriptor: None  # a kill leaves the system running: what is written stays without it
    tasks = [kill_at_each_moment, kill_while_writing_slowly, kill_training, resume_two_processes]
    found = {}
    for task in tasks:
        (folder / task.__name__).mkdir()
        begun = time.perf_counter()
        found[task.__name__] = task(folder / task.__name__)
        print(f"{task.__name__}: {time.perf_counter() - begun:.1f} s", file=sys.stderr)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
