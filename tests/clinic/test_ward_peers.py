"""The other tools are treated fairly: rows as TRL logs them, thresholds as published, results that can be made again."""

from __future__ import annotations

import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers
from tests.clinic.ward import peer_scores, peers, record, rounds
from tests.clinic.ward.case import Case
from tests.clinic.ward.peer_baselines import always_silent, fixed_thresholds, nan_only
from tests.clinic.ward.peer_rows import DROPS_NAN, Row, Run, raw_names, read_runs, translate
from tests.clinic.ward.score import Alarm, Judged
from tests.clinic.ward.tally import Rate, Share

from trainvitals.events import CATALOGUE, labelled, split_label
from trainvitals.integrations import tiny
from trainvitals.integrations.trl import attach
from trainvitals.items import Boundary, Frame, RunEnd, RunStart
from trainvitals.names import Mapper

TRAINERS = ("grpo", "rloo", "sft", "dpo", "kto", "orpo", "cpo", "reward", "ppo", "online_dpo", "gkd", "distillation", "sdft", "sdpo", "async_grpo")


def _translate(*frames: Frame | Boundary, trainer: str = "grpo", status: str | None = "completed", **config: Any) -> Run:
    items: list[Any] = [RunStart("x-s0", trainer, "trl", config={"logging_steps": 1, **config}, total_steps=9), *frames]
    return translate([*items, *([RunEnd(9, status)] if status else [])], name="x-s0", case="x", seed=0)  # type: ignore[list-item]


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_raw_name_reads_back_as_the_signal_it_came_from(trainer: str) -> None:
    """The translation is the inverse of the mapper that reads logs, factor included."""
    mapper = Mapper(trainer, "trl")
    assert len(raw_names(trainer)) > 8
    for signal, (raw, factor) in raw_names(trainer).items():
        label = CATALOGUE[signal].label
        series = signal if label is None else labelled(signal, label, "some_name")
        found = mapper.resolve(raw.partition("<")[0] + "some_name" + raw.partition(">")[2] if "<" in raw else raw)
        assert found is not None
        assert found[0] == series
        assert found[1] * factor == 1.0


def test_a_row_holds_what_trl_logs_and_nothing_of_ours() -> None:
    values = {
        "optim.loss": 0.1, "optim.loss_raw": 0.2, "optim.grad_norm": 1, "optim.learning_rate": 1e-5, "reward.mean": 0.5, "reward.std": 0.3,
        "reward.group_zero_std_fraction": 0.25, "reward.group_std_mean": 0.2, "policy.entropy": 1.5, "policy.clip_fraction": 0.1, "policy.kl_ref": 0.01,
        "reward.component_mean{component=format}": 1.0, "advantage.std": 1.0, "completion.length_mean": 9.0, "time.step_seconds": 2.0,
        "time.data_wait_seconds": 0.1, "run.progress": 0.5, "policy.ratio_mean": 1.0,
    }  # fmt: skip
    (row, summary) = _translate(Frame(1, values, tokens=100.0, epoch=0.5)).rows
    assert row == Row(1, "train", {
        "loss": 0.1, "grad_norm": 1.0, "learning_rate": 1e-5, "reward": 0.5, "reward_std": 0.3, "frac_reward_zero_std": 0.25, "entropy": 1.5,
        "clip_ratio/region_mean": 0.1, "kl": 0.01, "rewards/format/mean": 1.0, "completions/mean_length": 9.0,
        "completions/mean_terminated_length": 0.0, "step_time": 2.0, "epoch": 0.5, "num_tokens": 100.0,
    }, seconds=2.0)  # fmt: skip
    assert (summary.kind, summary.step, summary.logs["train_loss"], summary.logs["epoch"]) == ("summary", 1, 0.1, 0.5)


def test_a_loss_that_is_not_finite_is_logged_as_transformers_logs_it() -> None:
    """Its filter replaces the loss, nothing else; GRPO's trainer logs None for a metric without any number, others NaN."""
    nan = math.nan
    values = {"optim.loss": nan, "optim.grad_norm": nan, "policy.entropy": nan, "reward.mean": math.inf}
    grpo = _translate(Frame(1, values)).rows[0].logs
    assert (grpo["loss"], grpo["entropy"], grpo["reward"]) == (0.0, None, math.inf)
    assert math.isnan(grpo["grad_norm"] or 0)
    sft = _translate(Frame(1, values), trainer="sft").rows[0].logs
    assert (sft["loss"], "reward" in sft, "sft" in DROPS_NAN) == (0.0, False, False)
    assert math.isnan(sft["entropy"] or 0)
    ppo = _translate(Frame(1, {"optim.loss": nan, "optim.grad_norm_step": 1.0}), trainer="ppo").rows[0].logs
    assert list(ppo) == ["loss/policy_avg"]
    assert math.isnan(ppo["loss/policy_avg"] or 0)


def test_a_run_logged_every_tenth_update_gives_a_row_for_each() -> None:
    """The loss of a logged row is the mean of its window and is not given to one update of it."""
    frames = [Frame(step, {"optim.loss_raw": float(step), "optim.grad_norm_step": 1.0, "optim.learning_rate": 1e-3}) for step in range(1, 10)]
    frames.append(Frame(10, {"optim.loss": 5.5, "optim.loss_raw": 10.0, "optim.grad_norm": 1.0, "optim.grad_norm_step": 1.0}))
    rows = _translate(*frames, logging_steps=10, trainer="sft").rows
    assert [row.logs["loss"] for row in rows if row.kind == "train"] == [float(step) for step in range(1, 11)]


def test_evaluation_rows_carry_their_prefix_and_belong_to_their_step() -> None:
    held_out = Frame(5, {"eval.loss": 2, "eval.accuracy": 0.5, "eval.score": 0.1, "eval.score_fall": 0.0}, phase="eval", closes=False)
    for trainer, accuracy in (("sft", "eval_mean_token_accuracy"), ("dpo", "eval_rewards/accuracies"), ("reward", "eval_accuracy")):
        rows = _translate(Frame(5, {"optim.loss": 1.0}, epoch=0.2), held_out, trainer=trainer).rows
        assert [(row.step, row.kind) for row in rows] == [(5, "train"), (5, "eval"), (5, "summary")]
        assert rows[1].logs == {"eval_loss": 2.0, accuracy: 0.5, "eval_score": 0.1, "epoch": 0.2}


def test_a_run_that_died_has_no_summary_and_an_unlogged_update_no_row() -> None:
    run = _translate(Frame(1, {"optim.loss": 1.0, "time.step_seconds": 1.0}), Frame(2, {"time.step_seconds": 3.0, "optim.learning_rate": 1.0}), status=None)
    assert [(row.step, row.kind, row.seconds) for row in run.rows] == [(1, "train", 1.0), (2, "step", 3.0)]
    assert run.status == "killed"


def test_recordings_of_the_ward_are_read_by_seed(tmp_path: Path) -> None:
    def records(seed: int, loss: Any) -> list[dict[str, Any]]:
        head = {"schema": "trainvitals/1.0", "run": f"sft-x-s{seed}"}
        return [
            {**head, "kind": "run_start", "trainer": "sft", "config": {"logging_steps": 1}, "total_steps": 1},
            {**head, "kind": "signal", "step": 1, "event": "frame", "values": {"optim.loss": loss}, "closes": True, "phase": "train"},
            {**head, "kind": "run_end", "step": 1, "status": "completed"},
        ]

    record.save("sft-x", {7: records(7, {"value": None, "nonfinite": "inf"}), 2: records(2, 3)}, tmp_path)
    runs = read_runs("sft-x", tmp_path)
    assert [(run.name, run.case, run.seed, run.trainer, run.status) for run in runs] == [
        ("sft-x-s2", "sft-x", 2, "sft", "completed"),
        ("sft-x-s7", "sft-x", 7, "sft", "completed"),
    ]
    assert [run.rows[0].logs["loss"] for run in runs] == [3.0, 0.0]


UNRECORDED = {
    "grpo": {"clip_ratio/high_max", "clip_ratio/low_min", "completions/max_terminated_length", "completions/min_terminated_length"},
    "sft": {"eval_entropy", "eval_num_tokens", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second"},
}
"""What the trainer logs and a recording does not hold: no peer and no rule of ours reads these."""


@pytest.mark.slow
@pytest.mark.trl
@pytest.mark.parametrize("trainer", UNRECORDED)
def test_the_rows_of_a_real_training_are_its_log(trainer: str, tmp_path: Path) -> None:
    if transformers.__version__ < "5":
        pytest.skip("transformers 4 rounds the loss before it logs it")
    changes = {"eval_strategy": "steps", "eval_steps": 3} if trainer == "sft" else {}
    real = getattr(tiny, trainer)(str(tmp_path), max_steps=6, **changes)
    real.remove_callback(transformers.PrinterCallback)
    attach(real, console=io.StringIO())
    real.train()
    lines = [json.loads(line) for line in (tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()]
    lines = [{**line, "run": "x-s0"} for line in lines if line["kind"] in ("run_start", "signal", "run_end")]
    record.save("x", {0: lines}, tmp_path)
    (run,) = read_runs("x", tmp_path)
    for row in run.rows:  # our hook's share of padding, under async GRPO's name: no tool reads it
        row.logs.pop("batch/pad_frac", None)
    assert [(row.step, len(row.logs)) for row in run.rows] == [(row["step"], len(set(row) - UNRECORDED[trainer]) - 1) for row in real.state.log_history]
    for row, logged in zip(run.rows, real.state.log_history, strict=True):
        if row.kind != "summary":
            row.logs.pop("step_time", None)  # timed a little further out
            assert row.logs == pytest.approx({key: logged[key] for key in row.logs}, rel=1e-6)


# -- baselines ---------------------------------------------------------------------------------------------------------


def _rows(key: str, *values: float | None) -> list[Row]:
    return [Row(step, "train", {key: value}) for step, value in enumerate(values, 1)]


def test_fixed_thresholds_fire_once_each_at_the_published_values() -> None:
    falling = [2.0 * 0.99**step for step in range(30)]
    assert fixed_thresholds(_rows("loss", *falling)) == []
    assert fixed_thresholds(_rows("loss", *[1.0] * 10)) == []
    assert fixed_thresholds(_rows("loss", *[1.0] * 30)) == [(11, "LossNotDecreasing", "issue")]
    assert fixed_thresholds(_rows("loss", *falling, 2.2)) == [(31, "LossNotDecreasing", "issue")]
    assert fixed_thresholds(_rows("grad_norm", 1.0, 1e-7, 0.9e-7, 0.0)) == [(3, "VanishingGradient", "issue")]
    assert fixed_thresholds(_rows("grad_norm", 1.0, math.inf, math.nan)) == [(2, "ExplodingTensor", "issue")]
    ratios = [Row(step, "train", {"loss": -step}, update_ratio=ratio) for step, ratio in enumerate((1e-8, 10.0, 10.1, 1e-9), 1)]
    assert fixed_thresholds(ratios) == [(3, "WeightUpdateRatio", "issue")]


@pytest.mark.parametrize(("held_out", "fires"), [(1.09, False), (1.11, True)])
def test_overfit_compares_with_the_newest_training_loss(held_out: float, fires: bool) -> None:
    rows = [*_rows("loss", 3.0, 1.0), Row(2, "eval", {"eval_loss": held_out})]
    assert fixed_thresholds(rows) == ([(2, "Overfit", "issue")] if fires else [])


def test_nan_only_speaks_once_and_silence_never() -> None:
    rows = _rows("entropy", 1.0, None, math.nan, math.nan)
    assert nan_only(rows) == [(3, "not-finite", "critical")]
    assert nan_only([Row(1, "summary", {"train_loss": math.nan})]) == []
    assert always_silent(rows) == []


# -- the stage that callbacks are played on ----------------------------------------------------------------------------


def test_a_callback_sees_the_calls_of_a_trainer_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(peers.WORKERS))
    monkeypatch.setattr(sys, "argv", ["worker"])
    import stage

    frames = [Frame(1, {"optim.loss": 1.0, "time.step_seconds": 2.0}), Frame(2, {"optim.loss": math.nan}), Frame(2, {"eval.loss": 1.0}, phase="eval")]
    told = json.loads(peers.as_line(_translate(*frames)))
    trainer = stage.trainer_for(told)
    seen: list[tuple[Any, ...]] = []

    class Callback(transformers.TrainerCallback):
        def __getattribute__(self, name: str) -> Any:
            if not name.startswith("on_"):
                return super().__getattribute__(name)
            return lambda args, state, control, **kwargs: seen.append((name, state.global_step, trainer.clock.now, sorted(kwargs.get("logs", {}))))

    trainer.add_callback(Callback())
    assert len(stage.play(trainer, told)) == 4
    assert type(trainer).__name__ == "GRPOTrainer"
    closing = ["total_flos", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second"]
    assert seen == [
        ("on_train_begin", 0, 0.0, []), ("on_step_begin", 0, 0.0, []), ("on_step_end", 1, 2.0, []), ("on_log", 1, 2.0, ["loss", "step_time"]),
        ("on_step_end", 2, 2.0, []), ("on_log", 2, 2.0, ["loss"]), ("on_log", 2, 2.0, ["eval_loss"]), ("on_evaluate", 2, 2.0, []),
        ("on_log", 2, 2.0, closing), ("on_train_end", 2, 2.0, []),
    ]  # fmt: skip
    assert [row["step"] for row in trainer.state.log_history] == [1, 2, 2, 2]


# -- results -----------------------------------------------------------------------------------------------------------


def test_a_missing_environment_is_told_with_the_command_that_makes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record.save("sft-x", {0: _one_run()}, tmp_path)
    code = peers.main(["--recordings", str(tmp_path), "--out", str(tmp_path / "out.json"), "--envs", str(tmp_path / "none"), "--peer", "rlwatch"])
    assert code == 2
    assert "python -m tests.clinic.ward.peers --install" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()


def test_no_recordings_is_no_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(["--recordings", str(tmp_path), "--out", str(tmp_path / "out.json"), "--peer", "nan-only"]) == 2
    assert "no recorded runs" in capsys.readouterr().err


def test_a_tool_played_alone_leaves_the_results_of_the_others(tmp_path: Path) -> None:
    record.save("sft-x", {seed: _one_run(seed) for seed in (0, 3)}, tmp_path)
    out = tmp_path / "results" / "out.json"
    for name in ("nan-only", "fixed-thresholds"):
        assert peers.main(["--recordings", str(tmp_path), "--out", str(out), "--peer", name, "--split", "all"]) == 0
    first = out.read_text()
    tools = peers.read(out)["tools"]
    assert list(tools) == ["fixed-thresholds", "nan-only"]
    assert tools["nan-only"]["runs"]["sft-x-s3"]["alerts"] == [[2, "not-finite", "critical"]]
    assert tools["nan-only"]["totals"] | {"us_per_row": 0} == {
        "runs": 2, "ok": 2, "runs_with_alerts": 2, "alerts": 2, "rules": {"not-finite critical": 2}, "us_per_row": 0, "worst_ms": 0.0,
    }  # fmt: skip
    assert len(first.splitlines()) == 2 + 2 * (1 + 2 + 1)


def test_an_answer_is_kept_while_recording_version_and_setup_stay_the_same() -> None:
    peer = next(peer for peer in peers.PEERS if peer.name == "rlprobe")
    run = _translate(Frame(1, {"optim.loss": 1.0}))
    other = _translate(Frame(1, {"optim.loss": 1.1}))

    def tools(version: str, settings: str) -> peers.Tools:
        answer = {"status": "ok", "of": peers.fingerprint(run), "alerts": []}
        return {name: {"version": version, "settings": settings, "mode": "live", "runs": {"x-s0": answer}} for name in ("rlprobe", "rlprobe-report")}

    assert peers.is_kept(peer, run, tools("0.1.0", peer.settings))
    assert not peers.is_kept(peer, other, tools("0.1.0", peer.settings))
    assert not peers.is_kept(peer, run, tools("0.1.1", peer.settings))
    assert not peers.is_kept(peer, run, tools("0.1.0", "otherwise"))
    assert not peers.is_kept(peer, run, {"rlprobe": tools("0.1.0", peer.settings)["rlprobe"]})
    new = {"rlprobe": {**tools("0.1.0", peer.settings)["rlprobe"], "runs": {"x-s1": {"status": "ok", "alerts": []}}}}
    merged = peers.merged(tools("0.1.0", peer.settings), new, {"x-s0", "x-s1"})
    assert sorted(merged["rlprobe"]["runs"]) == ["x-s0", "x-s1"]
    assert sorted(peers.merged(tools("0.1.0", peer.settings), new, {"x-s1"})["rlprobe"]["runs"]) == ["x-s1"]
    assert sorted(peers.merged(tools("0.1.0", "otherwise"), new, {"x-s0", "x-s1"})["rlprobe"]["runs"]) == ["x-s1"]


def test_an_answer_about_a_run_that_was_recorded_again_is_dropped() -> None:
    tools = {"nan-only": {"version": "", "runs": {name: {"of": "old", "alerts": []} for name in ("a-s0", "b-s0", "c-s0")}}}
    assert list(peers.fresh(tools, {"a-s0": "old", "b-s0": "new"})["nan-only"]["runs"]) == ["a-s0"]


def test_the_set_aside_half_is_a_fault_or_a_seed_of_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "set_aside", lambda: {"faults": ["a"], "seeds": [3]})
    parts = {(case, seed): [split for split in ("dev", "aside", "all") if peers.in_split(case, seed, split)] for case in "ab" for seed in (0, 3)}
    assert parts == {("a", 0): ["aside", "all"], ("a", 3): ["aside", "all"], ("b", 0): ["dev", "all"], ("b", 3): ["aside", "all"]}


def _one_run(seed: int = 0) -> list[dict[str, Any]]:
    head = {"schema": "trainvitals/1.0", "run": f"sft-x-s{seed}"}
    bad = {"value": None, "nonfinite": "nan"}
    frames = [{**head, "kind": "signal", "step": step, "values": {"optim.loss": 1.0, "optim.grad_norm": norm}} for step, norm in ((1, 1.0), (2, bad))]
    return [{**head, "kind": "run_start", "trainer": "sft", "config": {}, "total_steps": 2}, *frames, {**head, "kind": "run_end", "step": 2}]


KEPT = peers.read()["tools"]
KEPT_LATER = peers.read(peers.RESULT_LATER)["tools"]


@pytest.mark.parametrize("kept", [KEPT, KEPT_LATER], ids=["first round", "later rounds"])
def test_kept_results_are_of_the_pinned_versions_and_every_rule_has_its_words(kept: dict[str, Any]) -> None:
    assert set(kept) == set(peers.CATEGORIES)
    pinned = {name: peer.requires[0].partition("==")[2] for peer in peers.PEERS for name in peers.names_of(peer).values()}
    for name, tool in kept.items():
        assert tool["version"] == pinned.get(name, "")
        assert {alert[1] for run in tool["runs"].values() for alert in run["alerts"]} <= set(peers.CATEGORIES[name])
        assert {alert[2] for run in tool["runs"].values() for alert in run["alerts"]} <= peers.LOUD | {"info"}
        assert {run["status"] for run in tool["runs"].values()} <= {"ok", "outside", "failed"}
        assert tool["totals"] == peers.totals(tool)


def test_every_category_is_one_of_ours() -> None:
    from typing import get_args

    from trainvitals.findings import Category

    assert {word for rules in peers.CATEGORIES.values() for words in rules.values() for word in words} <= set(get_args(Category))


@pytest.mark.slow
def test_kept_answers_are_about_the_recordings_in_the_tree() -> None:
    """Otherwise: `python -m tests.clinic.ward.peers` plays what has changed. A tool that has not played all of them is compared on its own runs."""
    recorded = {run.name: peers.fingerprint(run) for run in peers.recorded_in([record.FOLDER])}
    for tool in KEPT.values():
        assert {name: run["of"] for name, run in tool["runs"].items()}.items() <= recorded.items()


def test_every_tool_has_played_every_run_of_the_later_rounds() -> None:
    """Otherwise: `python -m tests.clinic.ward.peers --later`."""
    recorded = {record.run_id(case.id, seed) for which in rounds.ALL for case in (*which.older, *which.cases) for seed in record.seeds_in(case.id, which.folder)}
    assert {name: set(tool["runs"]) ^ recorded for name, tool in KEPT_LATER.items()} == {name: set() for name in peers.CATEGORIES}


@pytest.mark.slow
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: peer.name)
def test_a_tool_gives_the_kept_answer_again(peer: peers.Peer) -> None:
    try:
        peers.python_of(peer)
    except peers.MissingEnvironment as missing:
        pytest.skip(str(missing))
    kept = KEPT[peer.name]["runs"]
    loudest = max(kept, key=lambda name: len(kept[name]["alerts"]))
    case, _, seed = loudest.rpartition("-s")
    (run,) = [run for run in read_runs(case) if run.seed == int(seed)]
    played = peers.play(peer, [run])
    for name, tool in played.items():
        assert tool["runs"][run.name]["alerts"] == KEPT[name]["runs"][run.name]["alerts"]


def test_labels_survive_the_way_there_and_back() -> None:
    run = _translate(Frame(1, {"reward.component_mean{component=a/b}": 0.5, "optim.loss": 1.0}))
    frame = Mapper("grpo", "trl").frame(run.rows[0].logs, step=1)
    assert {split_label(key)[2] for key in frame.values if key.startswith("reward.component")} == {"a/b"}


# -- scores ------------------------------------------------------------------------------------------------------------

SICK = Case("grpo-x", "grpo", "", _one_run, 100, onset=40, roots=("a",), categories=("collapse",), twin="grpo-ok")
FINE = Case("grpo-ok", "grpo", "", _one_run, 100)
OTHER = Case("sft-ok", "sft", "", _one_run, 100)
WARD = {case.id: case for case in (SICK, FINE, OTHER)}


def _judged(case: Case, seed: int, *alarms: tuple[int, str, str]) -> Judged:
    said = [Alarm(step, rule, "warning", category) for step, rule, category in alarms]
    causes = [alarm.rule for alarm in said if not case.sick or alarm.step > case.onset]
    return Judged(case.id, case.trainer, seed, "dev", case.sick, False, 100, case.onset, visible=50 if case.sick else None, alarms=said, causes=causes)


FOUND = [_judged(SICK, 0, (52, "a", "collapse")), _judged(SICK, 1, (60, "b", "stall")), _judged(FINE, 100), _judged(OTHER, 100)]
NAMES = ("grpo-x-s0", "grpo-x-s1", "grpo-ok-s100", "sft-ok-s100")


def _results(tmp_path: Path, **tools: dict[str, Any]) -> Path:
    path = tmp_path / "peers.json"
    peers.write(path, {name.replace("_", "-"): tool for name, tool in tools.items()}, {"runs": 4, "us_per_row": 90, "us_later": 60})
    return path


def _tool(alerts: dict[str, list[Any]], *, mode: str = "live", names: tuple[str, ...] = NAMES, status: str = "ok") -> dict[str, Any]:
    runs = {name: {"status": status, "of": "x", "alerts": alerts.get(name, []), "rows": 100, "us_per_row": 20} for name in names}
    return {"version": "1.0", "settings": "as shipped", "mode": mode, "runs": runs}


def test_only_loud_alerts_count_and_each_rule_once_in_each_part() -> None:
    alerts = [[70, "r", "warning"], [30, "r", "warning"], [35, "r", "critical"], [41, "r", "warning"], [20, "note", "info"], [40, "q", "issue"]]
    judged = peer_scores.judge(FOUND[0], alerts)
    assert [(alarm.step, alarm.rule) for alarm in judged.alarms] == [(30, "r"), (40, "q"), (41, "r")]
    assert (len(judged.false), len(judged.after), judged.delay) == (2, 1, -9)
    assert [(alarm.step, alarm.rule) for alarm in peer_scores.judge(FOUND[2], alerts).alarms] == [(30, "r"), (40, "q")]


def test_a_tool_is_scored_as_we_are_and_any_word_of_its_rule_is_right() -> None:
    alerts = {
        "grpo-x-s0": [[10, "kl_drift", "warning"], [75, "advantage_collapse", "critical"], [80, "kl_drift", "warning"]],
        "grpo-x-s1": [[60, "kl_drift", "warning"], [75, "advantage_collapse", "critical"]],
        "grpo-ok-s100": [[75, "plateau", "info"]],
        "sft-ok-s100": [[75, "plateau", "warning"], [100, "plateau", "warning"]],
    }
    line = peer_scores.score("rldoctor", _tool(alerts), FOUND, WARD)
    assert line is not None
    assert (line.scores.detected, line.category, line.scores.delay) == (Share(2, 2), Share(1, 2), 17.5)
    assert (line.scores.false_runs, line.scores.false_rate) == (Share(1, 2), Rate(2, 40 + 40 + 100 + 100))
    assert (line.inside, line.failed, line.micros, line.label) == (3, 0, 20.0, "rldoctor 1.0")
    assert peer_scores.score("rldoctor", _tool({}, names=("x-s0",)), FOUND, WARD) is None


def test_every_tool_stands_beside_us_on_the_same_runs(tmp_path: Path) -> None:
    path = _results(tmp_path, rlprobe=_tool({}), nan_only=_tool({}), rlprobe_report=_tool({}, mode="report", names=NAMES[:1], status="failed"))
    lines = peer_scores.compare(FOUND, WARD, peers.read(path))
    assert [(line.name, len(line.runs)) for line in lines] == [("trainvitals", 4), ("rlprobe", 4), ("nan-only", 4), ("trainvitals", 1), ("rlprobe-report", 1)]
    assert [line.scores.detected for line in lines] == [Share(2, 2), Share(0, 2), Share(0, 2), Share(1, 1), Share(0, 1)]
    assert lines[0].category == Share(1, 2)
    assert [line.inside for line in lines] == [4, 3, 4, 1, 1]
    assert (lines[-1].cells()[2], lines[-1].cells()[-2], lines[1].cells()[-2]) == ("1 (1), raised in 1", "at the end", "none detected")


def test_the_section_says_whether_the_floor_is_met(tmp_path: Path) -> None:
    late = {"grpo-x-s0": [[75, "kl_drift", "warning"]]}
    path = _results(tmp_path, rldoctor=_tool(late), rlprobe=_tool({}), trainpulse=_tool({}), fixed_thresholds=_tool({name: [[45, "Overfit", "issue"]] for name in NAMES}))
    text = peer_scores.section(FOUND, WARD, path)
    assert text == peer_scores.section(FOUND, WARD, path)
    assert "*Detection of rl-doctor* (rldoctor, its better mode), all runs: 100% (2/2; 34% to 100%) against 50% (1/2; 9% to 91%): met." in text
    assert "*Silence of rlprobe*, all runs: healthy runs warned 0% (0/2; 0% to 66%) against 0% (0/2; 0% to 66%): met" in text
    assert "90 microseconds a row against 20: **not met**. Our first" in text
    assert "* median delay: fixed-thresholds (-5, over the 100% that it detects)" in text
    assert "* detected: nobody" in text
    home = text.partition("The same on")[2]
    assert "| rldoctor 1.0 |" in home
    assert "| 3 (3) |" in home
    assert "| 4 (" not in home


def test_what_nobody_had_seen_is_our_first_looks_beside_the_others_on_the_same_runs(tmp_path: Path) -> None:
    path = tmp_path / "peers.json.xz"
    peers.write(path, {"nan-only": _tool({"grpo-x-s0": [[75, "not-finite", "critical"]], "sft-ok-s100": [[9, "not-finite", "critical"]]})})
    assert path.read_bytes()[:6] == b"\xfd7zXZ\x00"
    first = [{"detected": (1, 1), "warned": (0, 1), "false": (2, 100)}, {"detected": (0, 1), "warned": (1, 1), "false": (1, 180)}]
    text = peer_scores.unseen(FOUND, first, WARD, path)
    us, them = [[cell.partition(" (")[0] for cell in line.split(" | ")] for line in text.splitlines() if line.startswith("| ")][2:]
    assert us == ["| **trainvitals**, first looks", "4", "50%", "50%", "10.71"]
    assert them == ["| nan-only 1.0", "4", "50%", "50%", "3.57"]
    assert peer_scores.unseen(FOUND, first, WARD, tmp_path / "none.json.xz") == ""


def test_without_results_or_runs_there_is_no_section(tmp_path: Path) -> None:
    assert peer_scores.section(FOUND, WARD, tmp_path / "none.json") == ""
    path = _results(tmp_path, rlprobe=_tool({}, names=("grpo-gone-s0",)))
    assert peer_scores.section(FOUND, WARD, path) == ""
    path = _results(tmp_path, rlprobe=_tool({}))
    text = peer_scores.section([run for run in FOUND if run.trainer == "sft"], WARD, path)
    assert "| rlprobe 1.0 |" in text
    assert "The same on" not in text


def test_every_tool_has_its_settings_in_brief() -> None:
    assert set(peer_scores.BRIEF) == set(peers.CATEGORIES)


def test_our_own_cost_is_measured_on_the_same_rows() -> None:
    cost = peers.own_cost([_translate(Frame(1, {"optim.loss": 1.0}), Frame(2, {"optim.loss": 2.0}), trainer="sft")])
    assert cost["runs"] == 1
    assert cost["us_per_row"] >= cost["us_later"] >= 0
