"""Beyond TRL: a plain `transformers.Trainer`, accelerate, Lightning, and the seams at which Unsloth and Axolotl change TRL's trainers."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import math
import sys
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import transformers
from transformers import Trainer, TrainingArguments
from trl import GRPOTrainer

from trainvitals.integrations import tiny
from trainvitals.integrations.accelerate import VitalsTracker
from trainvitals.integrations.facts import trainer_kind


class Line(torch.nn.Module):
    """Four numbers to one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": ((self.layer(x) - labels) ** 2).mean()}


def points(count: int = 64) -> list[dict[str, torch.Tensor]]:
    """Learnable data, always the same."""
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(1))
    return [{"x": row, "labels": row.sum().reshape(1)} for row in x]


def plain(folder: Path, cls: type = Trainer, **changes: Any) -> Any:
    """A trainer without TRL: 8 samples per step in 2 micro-batches."""
    settings = {
        "max_steps": 8, "logging_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 0.05,
        "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "max_grad_norm": 0.5, "optim": "sgd",
    }  # fmt: skip
    return cls(Line(), TrainingArguments(str(folder), **{**settings, **changes}), train_dataset=points(), eval_dataset=points(8))


def series(path: Path, name: str) -> dict[int, float]:
    """A signal from a record file."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {row["step"]: row["values"][name] for row in rows if row.get("event") == "frame" and name in row["values"]}


# ---- transformers ---------------------------------------------------------------------------------------------------------


def test_a_plain_trainer(tmp_path, train, saw):
    trainer = plain(tmp_path, eval_strategy="steps", eval_steps=4)
    norms: list[float] = []
    clip = trainer.accelerator.clip_grad_norm_
    trainer.accelerator.clip_grad_norm_ = lambda *args, **kwargs: norms.append(float(norm := clip(*args, **kwargs))) or norm
    seen = train(trainer)
    saw("transformers", seen)
    assert seen.notices == []
    assert (seen.start.trainer, seen.start.framework) == ("unknown", "transformers")
    assert list(seen.series("optim.loss_raw").values()) == pytest.approx(list(seen.logged("loss").values()), rel=1e-3)
    assert list(seen.series("optim.grad_norm_step").values()) == pytest.approx(norms)
    assert list(seen.series("optim.clipped_step").values()) == [float(norm > 0.5) for norm in norms]
    assert sum(norm > 0.5 for norm in norms) > 0.0


# ---- accelerate -----------------------------------------------------------------------------------------------------------


def test_an_accelerate_loop_has_one_line_more(tmp_path, capsys):
    from accelerate import Accelerator

    tracker = VitalsTracker(tmp_path, trainer="sft", run_id="loop")
    accelerator = Accelerator(cpu=True, log_with=[tracker])
    accelerator.init_trackers("project", config={"learning_rate": 0.01, "name": "x"})
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model, optimizer = accelerator.prepare(model, optimizer)
    for step in range(1, 6):
        batch = points(8)
        loss = model(torch.stack([p["x"] for p in batch]), torch.stack([p["labels"] for p in batch]))["loss"]
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.log({"loss": float("nan") if step == 4 else loss.item(), "odd": 1.0}, step=step if step < 3 else None)
    assert accelerator.get_tracker("trainvitals", unwrap=True) is tracker.monitor
    accelerator.end_training()
    rows = [json.loads(line) for line in (tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()]
    assert (rows[0]["trainer"], rows[0]["framework"], rows[0]["run"], rows[0]["config"]["learning_rate"]) == (
        "sft",
        "accelerate",
        "loop",
        0.01,
    )
    losses = series(tmp_path / "vitals" / "rank0.jsonl", "optim.loss")
    assert list(losses) == [1, 2, 3, 4, 5]
    assert losses[4] == {"value": None, "nonfinite": "nan"}
    assert rows[-1]["status"] == "completed"
    assert next(row for row in rows if row["kind"] == "coverage")["unknown_metrics"] == ["odd"]
    assert "\nvitals_verdict: " in capsys.readouterr().err


def test_a_tracker_that_logs_before_it_is_initialised_and_one_that_never_logs(tmp_path):
    from accelerate import PartialState

    PartialState(cpu=True)
    tracker = VitalsTracker(tmp_path / "one", console=False)
    tracker.log({"loss": 1.0})
    tracker.finish()
    assert series(tmp_path / "one" / "vitals" / "rank0.jsonl", "optim.loss") == {1: 1.0}
    VitalsTracker(tmp_path / "two").finish()
    assert not (tmp_path / "two").exists()


# ---- Lightning ------------------------------------------------------------------------------------------------------------


def lightning() -> Any:
    """The module ``lightning.pytorch``; the test is skipped where it is not installed."""
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    return importlib.import_module("lightning.pytorch")


def lit_module(library: Any, log: list[dict[str, float]], poison: int = 0) -> Any:
    """A Lightning module that also notes what it computes; from micro-batch `poison` on its loss is NaN."""

    class Module(library.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"width": 4, "layers": [1, 2]})
            self.line = Line()

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.line(**batch)["loss"]
            if poison and len(log) >= poison:
                loss = loss * float("nan")
            log.append({"loss": loss.item()})
            self.log("train/perplexity", loss.exp())
            self.log("train/odd", 1.0)
            self.log("kl", loss * 2, on_step=True, on_epoch=True)
            return loss

        def validation_step(self, batch: Any, index: int) -> None:
            self.log("val_loss", self.line(**batch)["loss"])

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            grads = [parameter.grad.norm() for parameter in self.parameters()]
            log[-1]["norm"] = torch.linalg.vector_norm(torch.stack(grads)).item()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Module()


def fit(library: Any, folder: Path, module: Any, vitals: Any, checkpoint: str | None = None, **settings: Any) -> Any:
    """Train two epochs of 8 optimizer steps with 2 micro-batches each."""
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "accelerator": "cpu",
        "num_sanity_val_steps": 1,
    }
    settings = {**quiet, "max_epochs": 2, "accumulate_grad_batches": 2, "gradient_clip_val": 0.5, **settings}
    trainer = library.Trainer(default_root_dir=folder, callbacks=[vitals], **settings)
    load = torch.utils.data.DataLoader
    trainer.fit(module, load(points(), batch_size=4), load(points(8), batch_size=8), ckpt_path=checkpoint)
    return trainer


def test_lightning_emits_every_optimizer_step(tmp_path, capsys):
    library = lightning()
    from trainvitals.integrations.lightning import LightningVitals

    log: list[dict[str, float]] = []
    vitals = LightningVitals(trainer="grpo", names={"train/perplexity": "optim.update_ratio"})
    fit(library, tmp_path, lit_module(library, log), vitals)
    path = tmp_path / "vitals" / "rank0.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert (rows[0]["framework"], rows[0]["config"]["width"], rows[0]["config"]["gradient_accumulation_steps"]) == (
        "lightning",
        4,
        2,
    )
    assert rows[-1]["status"] == "completed"
    means = [(a["loss"] + b["loss"]) / 2 for a, b in zip(log[::2], log[1::2], strict=True)]
    assert series(path, "optim.loss_raw") == pytest.approx(dict(enumerate(means, 1)), rel=1e-5)
    norms = [entry["norm"] for entry in log if "norm" in entry]
    assert series(path, "optim.grad_norm_step") == pytest.approx(dict(enumerate(norms, 1)), rel=1e-5)
    assert list(series(path, "optim.clipped_step").values()) == [float(norm > 0.5) for norm in norms]
    assert set(series(path, "optim.learning_rate").values()) == {0.05}
    # What the module logs belongs to the micro-batch that closes the step; averages of an epoch are left out.
    assert series(path, "policy.kl_ref") == pytest.approx({n: 2 * entry["loss"] for n, entry in enumerate(log[1::2], 1)}, rel=1e-5)
    assert series(path, "optim.update_ratio") == pytest.approx(
        {n: math.exp(entry["loss"]) for n, entry in enumerate(log[1::2], 1)}, rel=1e-5
    )
    assert list(series(path, "eval.loss")) == [8, 16]
    assert [row["step"] for row in rows if row.get("what") == "eval_end"] == [8, 16]
    assert next(row for row in rows if row["kind"] == "coverage")["unknown_metrics"] == ["odd"]
    said = capsys.readouterr().err
    assert said.count("--- trainvitals") == 1
    assert "switched off" not in said


def test_lightning_finds_nan_and_a_failing_training_says_so(tmp_path):
    library = lightning()
    from trainvitals.integrations.lightning import LightningVitals

    vitals = LightningVitals(console=False)
    fit(library, tmp_path / "nan", lit_module(library, [], poison=8), vitals, max_epochs=4)
    assert {finding.rule.id for finding in vitals.monitor.findings if finding.severity == "error"} & {
        "nonfinite-loss",
        "hidden-nan",
    }
    module = lit_module(library, [])
    module.configure_gradient_clipping = lambda *args, **kwargs: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(library, tmp_path / "fails", module, LightningVitals(console=False))
    last = (tmp_path / "fails" / "vitals" / "rank0.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["status"] == "failed"


def test_lightning_resumes_and_survives_a_fault_of_ours(tmp_path, capsys, monkeypatch):
    library = lightning()
    from trainvitals.integrations.lightning import LightningVitals

    trainer = fit(library, tmp_path, lit_module(library, []), LightningVitals(console=False))
    resumed = LightningVitals(console=False)
    fit(library, tmp_path, lit_module(library, []), resumed, trainer.checkpoint_callback.best_model_path, max_epochs=3)
    rows = [json.loads(line) for line in (tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "run_start" for row in rows) == 2  # one file, continued
    assert [row["step"] for row in rows if row.get("what") == "resume"] == [16]
    assert resumed.monitor.step == 24
    broken = LightningVitals()
    monkeypatch.setattr(broken, "_fresh", lambda *args, **kwargs: 1 / 0)
    trainer = fit(library, tmp_path / "broken", lit_module(library, []), broken)
    assert trainer.global_step == 16
    assert capsys.readouterr().err.count("switched off: on_train_batch_end: ZeroDivisionError") == 1


# ---- Unsloth --------------------------------------------------------------------------------------------------------------


def unsloth_like() -> Any:
    """TRL's GRPO trainer as Unsloth makes it: a copy of the source with a fused loss, under another name."""
    module = sys.modules[GRPOTrainer.__module__]
    names = dict(vars(module))
    exec(inspect.getsource(GRPOTrainer).replace("class GRPOTrainer", "class _UnslothGRPOTrainer", 1), names)
    copy = names["_UnslothGRPOTrainer"]

    class UnslothGRPOTrainer(copy):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.train = MethodType(lambda trainer, *args, **kw: type(trainer).train(trainer, *args, **kw), self)

        def _get_per_token_logps_and_entropies(self, *args: Any, compute_efficient: bool = False, **kwargs: Any) -> Any:
            if compute_efficient:
                return None, None
            logps = super()._get_per_token_logps_and_entropies(*args, **kwargs)[0]
            return logps.detach(), None

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
            keep = inputs["completion_ids"].size(1)
            self._get_per_token_logps_and_entropies(model, ids, mask, keep, compute_efficient=True)
            logits = model(input_ids=ids, attention_mask=mask).logits[:, -keep - 1 : -1]
            logps = logits.log_softmax(-1).gather(-1, inputs["completion_ids"].unsqueeze(-1)).squeeze(-1)
            self._metrics["train"]["completion_length"].append(inputs["completion_mask"].sum(1).float().mean().item())
            self._metrics["train"]["kl"].append(0.0)
            self._metrics["train"]["clip_ratio/region_mean"].append(0.0)
            return -(torch.exp(logps - logps.detach()) * inputs["advantages"].unsqueeze(1) * inputs["completion_mask"]).mean()

    return UnslothGRPOTrainer


def test_unsloths_copy_of_grpo_is_seen_where_it_can_be(tmp_path, train):
    template = tiny.grpo(str(tmp_path), max_steps=4, per_device_train_batch_size=8)
    trainer = unsloth_like()(
        model=template.model,
        reward_funcs=tiny.vowels,
        args=template.args,
        train_dataset=tiny.prompts(),
        processing_class=tiny.tokenizer(),
    )
    assert trainer_kind(trainer) == "grpo"
    seen = train(trainer)
    assert trainer.state.global_step == 4
    for name in ("reward.group_std_mean", "reward.mean", "completion.length_mean", "optim.loss_raw", "optim.grad_norm_step"):
        assert len(seen.series(name)) == 4, name
    assert seen.series("policy.clip_fraction") == dict.fromkeys(range(1, 5), 0.0)
    assert not [name for name in seen.signals if name.startswith(("policy.ratio", "advantage.", "policy.entropy"))]
    assert all("_get_per_token_logps_and_entropies switched off" in notice for notice in seen.notices)
    assert len(seen.notices) <= 1


# ---- Axolotl --------------------------------------------------------------------------------------------------------------


class OptimizerMixin:
    """As Axolotl puts in front of the trainer."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own."""
        return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]


class AxolotlTrainer(OptimizerMixin, Trainer):
    """Supervised training in Axolotl: transformers' trainer with more names in its log."""

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Perplexity and memory, as Axolotl adds them."""
        if "loss" in logs:
            logs["ppl"] = round(math.exp(logs["loss"]), 5)
            logs["memory/max_active (GiB)"] = 1.5
        super().log(logs, *args, **kwargs)


def test_axolotls_trainer(tmp_path, train):
    trainer = plain(tmp_path, AxolotlTrainer)
    trainer.remove_callback(transformers.PrinterCallback)
    seen = train(trainer)
    assert (seen.start.trainer, seen.notices) == ("sft", [])
    assert len(seen.series("optim.loss_raw")) == 8
    assert {"ppl", "memory/max_active (GiB)"} <= seen.callback._mapper.unknown
