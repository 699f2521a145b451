"""`HeldoutProbe` under real training: right numbers, no trace in the training, and no harm when something is wrong."""

from __future__ import annotations

import io
import json
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from trainvitals import HeldoutProbe, VitalsCallback, attach
from trainvitals.integrations import facts, generating, heldout, tiny
from trainvitals.items import Frame

pytestmark = pytest.mark.trl

CHATS = [[{"role": "user", "content": text}] for text in tiny.questions(4)]
STEADY = {"lr_scheduler_type": "constant", "max_completion_length": 8, "num_generations": 4, "per_device_train_batch_size": 8}


def length(completions: list[Any], **kwargs: Any) -> list[float]:
    """A checker that also draws from every generator there is."""
    random.random(), np.random.random(), torch.rand(1)
    return [float(len(tiny.text_of(completion))) for completion in completions]


def evaluations(monitor: Any) -> dict[int, dict[str, float]]:
    return {item.step: item.values for item in monitor.items if isinstance(item, Frame) and item.phase == "eval"}


class After(TrainerCallback):
    """What another callback finds after the probe: random numbers and modes."""

    def __init__(self) -> None:
        self.drawn: list[tuple[Any, ...]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        modes = tuple(module.training for module in model.modules())
        self.drawn.append((random.random(), float(np.random.random()), float(torch.rand(1)), modes))


@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampled"])
def test_training_is_the_same_to_the_last_bit(tmp_path, monitor, sample):
    ends, drawn = [], []
    for name in ("without", "with"):
        trainer = tiny.grpo(str(tmp_path / name), max_steps=4, **STEADY)
        trainer.model.model.layers[0].eval()  # a frozen part that is not in training mode
        if name == "with":
            trainer.add_callback(HeldoutProbe(length, CHATS, every=1, sample=sample, seed=7))
        after = After()
        trainer.add_callback(after)
        callback = attach(trainer, monitor=type(monitor)())
        trainer.train()
        ends.append({key: value.clone() for key, value in trainer.model.state_dict().items()})
        drawn.append(after.drawn)
        assert not callback.off
    assert len(evaluations(callback.monitor)) == 5
    assert drawn[0] == drawn[1]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_it_scores_what_the_policy_says_now(tmp_path, monitor):
    """Greedy decoding token by token, without a cache and without padding, gives the same scores."""
    trainer = tiny.grpo(str(tmp_path), max_steps=4, **STEADY)
    seen: list[dict[str, Any]] = []

    def checker(**given: Any) -> list[float | None]:
        seen.append(given)
        return [float(len(ids)) if answer != 2 else None for ids, answer in zip(given["completion_ids"], given["answer"], strict=True)]

    rows = [{"prompt": chat, "answer": index} for index, chat in enumerate(CHATS)]
    trainer.add_callback(HeldoutProbe(checker, rows, every=2, batch_size=3, sample=False))
    attach(trainer, monitor=monitor)
    trainer.train()
    assert sorted(evaluations(monitor)) == [0, 2, 4]
    model, vocabulary = trainer.model.eval(), trainer.processing_class
    for row, ids, completion in zip(rows, seen[-1]["completion_ids"], seen[-1]["completions"], strict=True):
        text = vocabulary.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        whole = vocabulary(text)["input_ids"]
        start = len(whole)
        while len(whole) < start + 8 and whole[-1:] != [tiny.END_ID]:
            with torch.no_grad():
                whole.append(int(model(torch.tensor([whole])).logits[0, -1].argmax()))
        assert ids == whole[start:]
        assert completion == [{"role": "assistant", "content": vocabulary.decode(ids, skip_special_tokens=True)}]
    last = evaluations(monitor)[4]
    lengths = [len(ids) for ids in seen[-1]["completion_ids"]]
    assert last["eval.length_mean"] == sum(lengths) / 4
    assert last["eval.score"] == pytest.approx((sum(lengths) - lengths[2]) / 3)
    assert last["eval.seconds"] > 0
    assert seen[-1]["prompts"] == CHATS
    assert seen[-1]["trainer_state"].global_step == 4


def test_it_is_an_evaluation_between_two_steps(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=3)
    probe = HeldoutProbe(lambda completions, **kw: [float(len(text)) for text in completions], ["what is", "two plus"], every=2, max_new_tokens=4)
    attach(trainer, monitor=monitor)
    trainer.add_callback(probe)  # after attach: the order does not matter
    trainer.train()
    assert monitor.boundaries("eval_begin") == monitor.boundaries("eval_end") == [0, 2, 3]
    kinds = [
        (getattr(item, "what", None) or getattr(item, "phase", ""), item.step) for item in monitor.items if hasattr(item, "step") and item.step == 2
    ]
    assert kinds == [("train", 2), ("eval_begin", 2), ("eval", 2), ("eval_end", 2)]
    assert [frame.step for frame in monitor.frames] == [1, 2, 3]
    assert {"eval.score", "eval.fall_chance"} <= monitor.start.emits
    assert "eval.loss" not in monitor.start.emits
    assert [step for step, _ in probe.history] == [0, 2, 3]


def test_a_run_without_a_probe_promises_none_of_its_signals(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=1, eval_strategy="steps", eval_steps=1)
    attach(trainer, monitor=monitor)
    trainer.train()
    assert "eval.loss" in monitor.start.emits
    assert not monitor.start.emits & facts.PROBED


def test_its_time_is_not_the_time_of_a_step_and_is_complained_of(tmp_path, monitor, capsys):
    trainer = tiny.sft(str(tmp_path), max_steps=2)

    def slow(completions: list[Any], **kwargs: Any) -> list[float]:
        import time

        time.sleep(1.0)
        return [0.0] * len(completions)

    trainer.add_callback(HeldoutProbe(slow, ["two"], every=1, max_new_tokens=2))
    attach(trainer, monitor=monitor)
    trainer.train()
    assert all(values["eval.seconds"] >= 1.0 for values in evaluations(monitor).values())
    assert monitor.series("time.step_seconds")[2] < 0.9
    assert capsys.readouterr().err.count("HeldoutProbe: an evaluation takes 1.") == 1


def test_an_adapter_is_asked_together_with_its_base(tmp_path):
    peft = pytest.importorskip("peft")
    vocabulary, answers = tiny.tokenizer(), []
    for scale in (0.0, 50.0):  # an adapter that does nothing, and one that drowns the base
        model = peft.get_peft_model(tiny.policy(vocabulary), peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"]))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.constant_(parameter, scale)
        assert generating.policy_of(model) is model
        answers.append(generating.generate(model, vocabulary, CHATS, 8, sample=False, batch_size=16))
    assert answers[0] != answers[1]


def test_a_resumed_run_asks_again_where_it_goes_on(tmp_path, monitor):
    first = tiny.sft(str(tmp_path), max_steps=4, save_strategy="steps", save_steps=2)
    first.add_callback(HeldoutProbe(length, CHATS, every=2, max_new_tokens=2))
    attach(first, monitor=monitor)
    first.train()
    again = type(monitor)()
    second = tiny.sft(str(tmp_path), max_steps=4)
    second.add_callback(HeldoutProbe(length, CHATS, every=2, max_new_tokens=2))
    attach(second, monitor=again)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert sorted(evaluations(again)) == [2, 4]
    for name in ("eval.score", "eval.length_mean"):
        assert [evaluations(again)[step][name] for step in (2, 4)] == [evaluations(monitor)[step][name] for step in (2, 4)]


@pytest.mark.parametrize("first", ["probe", "vitals"])
def test_a_plain_callback_knows_what_will_come(tmp_path, monitor, first):
    """Without `attach`, both given to the trainer."""
    callbacks = [HeldoutProbe(length, CHATS, every=1, max_new_tokens=2), VitalsCallback(monitor=monitor)]
    trainer = tiny.sft(str(tmp_path), max_steps=2, callbacks=callbacks if first == "probe" else callbacks[::-1])
    trainer.train()
    assert "eval.score" in monitor.start.emits
    assert sorted(evaluations(monitor)) == [0, 1, 2]


def test_the_record_can_be_replayed(tmp_path):
    trainer = tiny.sft(str(tmp_path), max_steps=2)
    trainer.add_callback(HeldoutProbe(length, CHATS, every=1, max_new_tokens=2))
    callback = attach(trainer, console=io.StringIO(), fail_soft=False)
    trainer.train()
    rows = [json.loads(line) for line in (tmp_path / "vitals" / "rank0.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "eval.score" in row.get("values", {})] == [0, 1, 2]
    assert callback.monitor.verdict is not None


def test_a_checker_that_raises_costs_one_notice(tmp_path, monitor, capsys):
    def broken(completions: list[Any], **kwargs: Any) -> list[float]:
        raise KeyError("answer")

    trainer = tiny.sft(str(tmp_path), max_steps=3)
    probe = HeldoutProbe(broken, CHATS, every=1, max_new_tokens=2)
    trainer.add_callback(probe)
    callback = attach(trainer, monitor=monitor)
    trainer.train()
    assert trainer.state.global_step == 3
    assert not callback.off
    assert not probe.off
    said = capsys.readouterr().err
    assert said.count("HeldoutProbe: the reward function raised KeyError: 'answer'") == 1
    assert all(set(values) == {"eval.length_mean", "eval.seconds"} for values in evaluations(monitor).values())


@pytest.mark.parametrize("scores", [[1.0], "no numbers", None], ids=["too few", "no numbers", "nothing"])
def test_a_checker_that_returns_nonsense_costs_one_notice(tmp_path, monitor, capsys, scores):
    trainer = tiny.sft(str(tmp_path), max_steps=2)
    trainer.add_callback(HeldoutProbe(lambda **given: scores, CHATS, every=1, max_new_tokens=2))
    attach(trainer, monitor=monitor)
    trainer.train()
    assert capsys.readouterr().err.count("HeldoutProbe: the reward function raised") == 1


def test_an_asynchronous_checker(tmp_path, monitor):
    async def judge(completions: list[Any], **kwargs: Any) -> list[float]:
        return [0.5] * len(completions)

    trainer = tiny.sft(str(tmp_path), max_steps=1)
    trainer.add_callback(HeldoutProbe(judge, CHATS, max_new_tokens=2))
    attach(trainer, monitor=monitor)
    trainer.train()
    assert evaluations(monitor)[1]["eval.score"] == 0.5


def test_a_nan_score_is_not_averaged_away(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=1)
    trainer.add_callback(HeldoutProbe(lambda completions, **kw: [math.nan, 1.0, 1.0, None], CHATS, max_new_tokens=2))
    attach(trainer, monitor=monitor)
    trainer.train()
    assert math.isnan(evaluations(monitor)[1]["eval.score"])
    assert "eval.fall_chance" not in evaluations(monitor)[1]


def test_a_generation_that_fails_switches_only_the_probe_off(tmp_path, monitor, capsys):
    trainer = tiny.sft(str(tmp_path), max_steps=2)
    trainer.model.generate = lambda **kwargs: 1 / 0
    trainer.model.train()
    probe = HeldoutProbe(length, CHATS, every=1, max_new_tokens=2)
    trainer.add_callback(probe)
    callback = attach(trainer, monitor=monitor)
    trainer.train()
    assert probe.off
    assert not callback.off
    assert monitor.boundaries("eval_begin") == monitor.boundaries("eval_end") == [0]
    assert capsys.readouterr().err.count("HeldoutProbe switched off") == 1


@pytest.mark.parametrize("how", ["fsdp", "zero3", "dtensor"])
def test_a_sharded_model_is_left_alone(tmp_path, monitor, capsys, monkeypatch, how):
    """Generating would wait for ranks that do not come. What marks a shard is planted on a real model."""
    trainer = tiny.sft(str(tmp_path), max_steps=2)
    calls: list[Any] = []
    monkeypatch.setattr(trainer.model, "generate", calls.append)
    if how == "zero3":
        next(trainer.model.parameters()).ds_id = 0
    elif how == "fsdp":
        layer = trainer.model.model.layers[1]
        layer.__class__ = type("FullyShardedDataParallel", (type(layer),), {})
    else:
        monkeypatch.setattr(generating, "_PARTS", frozenset({"Parameter"}))
    probe = HeldoutProbe(length, CHATS, every=1)
    trainer.add_callback(probe)
    attach(trainer, monitor=monitor)
    trainer.train()
    assert probe.off
    assert calls == []
    assert not monitor.boundaries("eval_begin")
    assert capsys.readouterr().err.count("HeldoutProbe switched off: the model is sharded") == 1


def test_wraps_are_taken_off():
    model = tiny.model(tiny.tokenizer())
    wrapped = type("DistributedDataParallel", (torch.nn.Module,), {})()
    wrapped.module = model
    pair = torch.nn.Module()
    pair.policy = model
    assert generating.policy_of(wrapped) is generating.policy_of(pair) is generating.policy_of(model) is model
    assert generating.policy_of(None) is None


def test_other_ranks_stay_silent(tmp_path, monitor):
    trainer = tiny.sft(str(tmp_path), max_steps=1)
    probe = HeldoutProbe(lambda **given: pytest.fail("asked"), CHATS)
    trainer.is_world_process_zero = lambda: False
    trainer.add_callback(probe)
    attach(trainer, monitor=monitor)
    trainer.train()
    assert not trainer.state.is_world_process_zero
    assert probe.history == []
    assert not monitor.boundaries("eval_begin")


def test_nobody_to_publish_to_is_said_once(tmp_path, capsys):
    trainer = tiny.sft(str(tmp_path), max_steps=3, callbacks=[HeldoutProbe(length, CHATS, every=1)])
    trainer.train()
    assert capsys.readouterr().err.count("there is no VitalsCallback in this trainer") == 1


def test_what_makes_no_sense_is_refused():
    for bad in ([], [{"question": "two"}]):
        with pytest.raises(ValueError, match="prompt"):
            HeldoutProbe(length, bad)
    with pytest.raises(ValueError, match="every"):
        HeldoutProbe(length, CHATS, every=0)


# ---- numbers in, numbers out ----


def test_the_evidence_is_an_e_value():
    """Its mean over fair coins is 1, it grows with the falls, and it is what integration gives."""
    for changed in (0, 1, 5, 40):
        chances = [math.comb(changed, s) / 2**changed for s in range(changed + 1)]
        assert sum(p * heldout.sign_evidence(s, changed - s) for s, p in enumerate(chances)) == pytest.approx(1.0)
    grid = (np.arange(200_000) + 0.5) / 400_000 + 0.5
    assert heldout.sign_evidence(9, 3) == pytest.approx(2**12 * np.mean(grid**9 * (1 - grid) ** 3), rel=1e-6)
    assert heldout.sign_evidence(5_000, 0) == 1e300


def test_falls_against_the_best_evaluation():
    falls = heldout.Falls()
    assert falls.add([0.0] * 32, 0.0) == {"eval.score_fall": 0.0, "eval.fall_chance": 1.0}
    for reward in (0.1, 0.1, 0.1, 0.1, 0.1, 0.7, 0.7):
        falls.train(reward)
    first = falls.add([1.0] * 32, 1.0)
    assert first == {"eval.score_fall": 0.0, "eval.fall_chance": 1.0, "eval.proxy_gain": 0.0}
    falls.train(0.8)
    fall = falls.add([0.5] * 30 + [None, 1.0], 0.516)
    assert fall["eval.fall_chance"] == 1.0  # once is not enough
    assert fall["eval.score_fall"] == 0.0
    assert fall["eval.proxy_gain"] == pytest.approx(0.8 - (5 * 0.1 + 2 * 0.7) / 7)
    falls.train(math.nan)
    again = falls.add([0.5] * 28 + [1.5, 1.5] + [None, 1.0], 0.6)
    # The best is the second, this the first time that two later ones can agree: weight 1 / (2 * 3 * 1 * 2). The newest is the
    # weaker one: 28 of 30 changed prompts fell.
    assert again["eval.fall_chance"] == pytest.approx(12 / heldout.sign_evidence(28, 2))
    assert again["eval.score_fall"] == pytest.approx(0.4)
    assert "eval.proxy_gain" not in again
    third = falls.add([1.0] * 16 + [0.9] * 16, 0.95)
    assert third["eval.fall_chance"] == again["eval.fall_chance"]  # the least since the best
    assert third["eval.score_fall"] == pytest.approx(0.05)
    assert falls.add([1.0] * 32, 1.0) == {"eval.score_fall": 0.0, "eval.fall_chance": 1.0}
    assert falls.add([0.0] * 32, 0.0)["eval.fall_chance"] == 1.0
    assert falls.add([math.nan] * 32, math.nan) == {}


def test_the_reward_before_the_first_evaluation_is_that_of_the_first_updates():
    falls = heldout.Falls()
    falls.add([1.0] * 8, 1.0)
    for reward in (0.1, 0.2, 0.3, 0.4, 0.5, 0.9, 0.9, 0.9, 0.9, 0.9):
        falls.train(reward)
    assert falls.add([0.0] * 8, 0.0)["eval.proxy_gain"] == pytest.approx(0.6 - 0.3)
    falls.train(0.8)
    assert falls.add([0.0] * 8, 0.0)["eval.proxy_gain"] == pytest.approx(0.8 - 0.3)


def test_luck_alone_is_rarely_called_a_fall():
    """Scores that only wobble, looked at 40 times, the best one picked by luck: the bound of 0.05 is kept in 300 runs."""
    noise = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        falls = heldout.Falls()
        for _ in range(40):
            scores = (noise.random(32) < 0.5).astype(float).tolist()
            if falls.add(scores, sum(scores) / 32)["eval.fall_chance"] < 0.05:
                alarms += 1
                break
    assert alarms <= 0.05 * 300
