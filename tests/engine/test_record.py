"""What a run is asked for is what it does, and what it says of itself is true: prolonged, changed, evaluated."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from hggraph.data.loading import EpochBatches
from hggraph.engine.record import RunError
from hggraph.engine.run import run
from tests.engine.toys import write_recipe

# of Lightning's own doings
pytestmark = [
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
    pytest.mark.filterwarnings("ignore:.*could not find the monitored key"),  # stopped before a validation
]
TEN = 0.01  # the recipe's learning rate


@pytest.fixture
def fit(tmp_path):
    """Train by the recipe of four steps an epoch with more options, in one folder, which is returned."""

    def start(*more: object, out: str = "run", **trainer: object) -> Path:
        recipe = write_recipe(tmp_path, "PlainNet", log_every_n_steps=1, **trainer)
        run("fit", ["--config", str(recipe), "--out", str(tmp_path / out), *map(str, more)])
        return tmp_path / out

    return start


def logged(folder: Path, column: str) -> list[tuple[int, float]]:
    """Return the values of a column of all starts with their steps."""
    tables = sorted((folder / "logs" / "csv").glob("version_*/metrics.csv"))
    rows = [row for table in tables for row in csv.DictReader(table.read_text().splitlines())]
    return [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]


def last(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def test_prolonged_run_follows_the_new_length(fit, capsys):
    """Warm-up of 2 steps, then a line to 0 at step 8; from step 8 on the line to 0 at step 16."""
    options = ("--model.power", 1, "--model.warmup", 2)
    fit(*options, max_epochs=2)
    capsys.readouterr()
    folder = fit(*options, max_epochs=4)
    want = [0.1, 0.55, *(1 - s / 6 for s in range(6)), *(1 - s / 14 for s in range(6, 14))]
    steps, rates = zip(*logged(folder, "lr-AdamW"), strict=True)
    assert steps == tuple(range(16)) and rates == pytest.approx([TEN * rate for rate in want])
    said = capsys.readouterr().out
    assert "trainer.max_epochs: 2 -> 4" in said and said.count("->") == 1
    epochs = {
        name: yaml.safe_load((folder / name).read_text())["trainer"]["max_epochs"]
        for name in ("config-until-step-8.yaml", "config.yaml")
    }
    assert epochs == {"config-until-step-8.yaml": 2, "config.yaml": 4}


def test_run_cut_short_by_steps_ends_as_the_unbroken_one(fit):
    constant = ("--model.power", 0)
    fit(*constant, max_steps=6)  # in the middle of an epoch
    folder = fit(*constant, max_steps=12)
    whole = fit(*constant, out="whole", max_steps=12)
    one, two = last(folder), last(whole)
    assert (one["epoch"], one["global_step"]) == (two["epoch"], two["global_step"]) == (2, 12)
    assert all(torch.equal(value, two["state_dict"][name]) for name, value in one["state_dict"].items())
    column = "train/loss"
    assert logged(folder, column) == logged(whole, column) and len(logged(whole, column)) == 12


def test_other_batches_are_refused_or_go_on_at_the_sample_reached(fit, tmp_path):
    """7 of 12 samples one by one, then 1 step of 4 ends the epoch; then 3 a step each, and with batches of 2 six."""
    folder = fit("--data.batch_size", 1, max_steps=7)
    before = (folder / "config.yaml").read_bytes()
    with pytest.raises(RunError, match=r"data\.batch_size 1 -> 4\. Give these, or --change"):
        fit("--data.batch_size", 4, max_epochs=3)
    assert (folder / "config.yaml").read_bytes() == before
    fit("--data.batch_size", 4, "--change", max_epochs=2)
    fit("--data.batch_size", 2, "--change", max_epochs=3)
    assert [step for step, _ in logged(folder, "val/miou")] == [7, 10, 16]
    assert last(folder)["epoch"] == 2 and last(folder)["ImageData"]["epoch"] == 3
    rates = [rate for _, rate in logged(folder, "lr-AdamW")]
    assert rates[7:] == pytest.approx(
        [TEN * (1 - s / 11) ** 0.9 for s in range(7, 11)] + [TEN * (1 - s / 17) ** 0.9 for s in range(11, 17)]
    )
    names = {path.name for path in folder.glob("config*")}
    assert names == {"config.yaml", "config-until-step-7.yaml", "config-until-step-11.yaml"}
    assert "change" not in yaml.safe_load((folder / "config.yaml").read_text())


def test_samples_go_on_in_the_epoch_order():
    whole = [key for batch in EpochBatches(12, 3) for key in batch]
    assert [key for batch in EpochBatches(12, 2, begun=lambda: (0, 6)) for key in batch] == whole[6:]
    assert [key for batch in EpochBatches(12, 4, begun=lambda: (0, 7)) for key in batch] == whole[7:11]
    fixed = EpochBatches(12, 3, begun=lambda: (5, 0), shuffle=False)
    assert [index for batch in fixed for _, index in batch] == list(range(12))


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (("--model.net", "tests.engine.toys.TinyNet"), "model.net.class_path"),
        (("--model.optimizer.init_args.lr", 0.1), "model.optimizer.init_args.lr"),
        (("--seed_everything", 1), "seed_everything"),
        (("--trainer.accumulate_grad_batches", 2), "trainer.accumulate_grad_batches"),
        (("--data.train_split", "val"), "data.train_split"),
        (("--monitor", "train/loss"), "monitor"),
    ],
)
def test_what_would_make_the_record_false_is_refused(option, named, trained):
    recipe = trained.parent / "toys.yaml"
    with pytest.raises(RunError, match=rf"last\.ckpt was trained by other options: {named} ") as caught:
        run("fit", ["--config", str(recipe), "--out", str(trained), *map(str, option)])
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_changed_rate_and_another_optimizer_are_taken(fit, capsys):
    fit("--model.power", 0, max_epochs=1)
    fit("--model.power", 0, "--model.optimizer.init_args.lr", 0.5, "--change", max_epochs=2)
    with pytest.warns(UserWarning, match="SGD starts anew: the checkpoint's optimiser is another one"):
        folder = fit("--model.power", 0, "--model.optimizer", "torch.optim.SGD", "--change", max_epochs=3)
    assert [rate for _, rate in logged(folder, "lr-AdamW")] == pytest.approx([TEN] * 4 + [0.5] * 4)
    assert len(logged(folder, "lr-SGD")) == 4


def test_a_schedule_by_epoch_is_made_from_the_recipe(fit):
    """Milestone 3 instead of 1, after two epochs: the rate rises again, and falls at the new one."""
    steps = ("--model.scheduler", "torch.optim.lr_scheduler.MultiStepLR", "--model.warmup", 2)
    fit(*steps, "--model.scheduler.milestones", "[1]", max_epochs=2)
    folder = fit(*steps, "--model.scheduler.milestones", "[3]", "--change", max_epochs=4)
    rates = [rate / TEN for _, rate in logged(folder, "lr-AdamW")]
    assert rates == pytest.approx([0.1, 0.55, 1, 1] + [0.1] * 4 + [1] * 4 + [0.1] * 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    run("fit", ["--config", str(write_recipe(folder, "PlainNet", max_epochs=1)), "--out", str(folder / "run")])
    return folder / "run"


def test_evaluations_are_kept_and_say_what_they_are(trained, capsys):
    config = ["--config", str(trained / "config.yaml")]
    for _ in range(2):
        run("validate", config)
    run("test", [*config, "--data.test_split", "test", "--ckpt_path", str(trained / "checkpoints" / "last.ckpt")])
    assert {path.name for path in trained.glob("results*")} == {
        "results-val.json",
        "results-val-2.json",
        "results-test.json",
    }
    found = json.loads((trained / "results-test.json").read_text())
    assert found.pop("date").endswith("+00:00") and 0 < found.pop("results")["miou"] <= 1
    assert Path(found.pop("checkpoint")).name == "last.ckpt"
    assert found == {"dataset": "Blocks", "split": "test", "selected_on": "val", "size": "own", "scales": [1.0]}
    with pytest.raises(ValueError, match=r"There is no test split: data\.test_split is None.*hggraph validate"):
        run("test", config)
    run("validate", [*config, "--data.val_split", "test"])
    assert json.loads((trained / "results-test-2.json").read_text())["selected_on"] == "val"


@pytest.mark.parametrize("command", ["validate", "test"])
def test_no_checkpoint_is_no_score(command, tmp_path):
    recipe = str(write_recipe(tmp_path))
    with pytest.raises(RunError, match=f"run has no checkpoint to {command}: train it") as caught:
        run(command, ["--config", recipe, "--out", str(tmp_path / "run"), "--data.test_split", "test"])
    assert caught.value.exit_code == 2 and not (tmp_path / "run").exists()


def test_a_best_checkpoint_chosen_on_the_test_split_is_said(fit, capsys):
    folder = fit("--data.val_split", "test", max_epochs=1)
    assert "chosen on the split 'test': its score there will be no test score" in capsys.readouterr().out
    run("validate", ["--config", str(folder / "config.yaml")])
    assert json.loads((folder / "results-test.json").read_text())["selected_on"] == "test"


def test_a_folder_of_another_recipe_or_of_nothing_known(trained, fit, tmp_path):
    (tmp_path / "bare").mkdir()
    alone = shutil.copy(trained / "checkpoints" / "last.ckpt", tmp_path / "bare")
    with pytest.raises(RunError, match=r"there is no config\.yaml beside it"):
        fit("--ckpt_path", alone, out="new")
    with pytest.warns(UserWarning, match="dirpath has changed"):
        folder = fit("--ckpt_path", trained / "checkpoints" / "last.ckpt", out="new", max_epochs=2)
    assert last(folder)["global_step"] == 8
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "config.yaml").write_text("model: another")  # killed before its first checkpoint
    fit(out="young", max_epochs=1)
    assert last(tmp_path / "young")["global_step"] == 4


def test_a_moved_run_keeps_its_best(fit, tmp_path):
    folder = fit("--monitor_mode", "min", max_epochs=1)  # so that to learn is to get worse
    shutil.move(folder, tmp_path / "moved")
    fit("--monitor_mode", "min", out="moved", max_epochs=2)
    scores = [score for _, score in logged(tmp_path / "moved", "val/miou")]
    assert scores[1] > scores[0]
    best = torch.load(tmp_path / "moved" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 4


@pytest.mark.parametrize(
    ("options", "steps", "left"),
    [
        (("--trainer.fast_dev_run", "true"), None, set()),
        (("--trainer.enable_checkpointing", "false"), 12, {"config.yaml", "logs"}),
        (("--trainer.logger", "false"), None, {"config.yaml", "checkpoints", "model"}),
        (("--trainer.overfit_batches", "2"), 6, {"config.yaml", "checkpoints", "logs", "model"}),
        (("--trainer.limit_train_batches", "0.5", "--trainer.limit_val_batches", "1"), 6, None),
    ],
)
def test_options_of_the_trainer(options, steps, left, fit):
    folder = fit(*options)
    if steps is not None:
        assert logged(folder, "train/loss")[-1][0] == steps - 1
    if left is not None:
        assert {path.name for path in folder.glob("*")} == left


def test_overfitted_batches_stay_the_same(fit):
    """With a rate of 0 each epoch has the losses of the first: the same samples, in the same order."""
    rate = ("--model.optimizer.init_args.lr", 0)
    folder = fit("--trainer.overfit_batches", 2, *rate, "--data.dataset", "tests.engine.toys.Fixed", max_epochs=3)
    losses = [loss for _, loss in logged(folder, "train/loss")]
    assert losses == pytest.approx(losses[:2] * 3) and losses[0] != losses[1]


def test_logger_plugins_and_folder_of_the_user_count(tmp_path):
    recipe = str(write_recipe(tmp_path, "PlainNet", max_epochs=1))
    logger = ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger", "--trainer.logger.save_dir"]
    plugin = ["--trainer.plugins", "lightning.pytorch.plugins.io.TorchCheckpointIO"]
    root = ["--trainer.default_root_dir", str(tmp_path / "root")]
    run("fit", ["--config", recipe, *logger, str(tmp_path / "mine"), *plugin, *root])
    assert list((tmp_path / "mine").rglob("metrics.csv")) and not (tmp_path / "root" / "logs").exists()
    assert {path.name for path in (tmp_path / "root" / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    with pytest.raises(RunError, match=r"--out or --trainer\.default_root_dir, not both"):
        run("fit", ["--config", recipe, "--out", str(tmp_path / "a"), *root])


def test_data_metric_and_plateau_as_lightning_users_write_them(tmp_path):
    recipe = yaml.safe_load(write_recipe(tmp_path, "PlainNet", max_epochs=3).read_text())
    recipe["data"] = {"class_path": "tests.engine.toys.PlainData", "init_args": {"batch_size": 4}}
    recipe["model"]["metric"] = {
        "class_path": "torchmetrics.classification.MulticlassJaccardIndex",
        "init_args": {"num_classes": 3},
    }
    recipe["model"]["scheduler"] = {
        "class_path": "lightning.pytorch.cli.ReduceLROnPlateau",
        "init_args": {"monitor": "val/multiclass_jaccard_index", "mode": "min", "patience": 0, "factor": 0.5},
    }
    recipe["monitor"] = "val/multiclass_jaccard_index"
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(recipe))
    fit = ["--config", str(path), "--out", str(tmp_path / "run"), "--trainer.log_every_n_steps", "1"]
    run("fit", [*fit, "--trainer.max_epochs", "2"])
    run("fit", fit)
    folder = tmp_path / "run"
    scores = [score for _, score in logged(folder, "val/multiclass_jaccard_index")]
    rates, best, want = [rate for _, rate in logged(folder, "lr-AdamW")], float("inf"), TEN
    assert len(scores) == 3 and len(rates) == 9
    for epoch, score in enumerate(scores):
        assert rates[3 * epoch : 3 * epoch + 3] == pytest.approx([want] * 3)
        want, best = (want, score) if score < best * (1 - 1e-4) else (want / 2, best)
    assert want < TEN  # it has learned, so a plateau that hopes for less has come
    run("validate", ["--config", str(folder / "config.yaml")])
    assert json.loads((folder / "results-val.json").read_text())["dataset"] == "PlainData"
