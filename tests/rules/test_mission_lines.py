"""The three lines that the mission gave, word for word."""

from __future__ import annotations

from collections.abc import Iterator

from trainvitals.items import Frame, Item, RunStart
from trainvitals.rulelang.loader import load_rules
from trainvitals.testing import capture

ONE = {
    "learning_rate": 1e-6,
    "num_generations": 8,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 8,
    "epsilon": 0.2,
}


def lines(rule: str, items: Iterator[Item]) -> list[str]:
    seen = capture(items, load_rules())
    return [f"{one.message} {one.advice}" for one in seen.of(rule, "firing")]


def run(**series: list[float]) -> Iterator[Item]:
    yield RunStart("mission", "grpo", "trl", config=ONE)
    for step in range(max(map(len, series.values()))):
        yield Frame(step + 1, {key.replace("__", "."): values[step] for key, values in series.items()})


def test_vram() -> None:
    items = run(memory__vram_used_fraction=[0.34] * 40, memory__vram_static_fraction=[0.22] * 40)
    assert lines("vram-underused", items) == [
        "VRAM utilization at 34%. Consider increasing per_device_train_batch_size from 4 to 16.",
    ]


def test_vram_without_the_static_share_asks_for_one_doubling() -> None:
    assert lines("vram-underused", run(memory__vram_used_fraction=[0.34] * 40)) == [
        "VRAM utilization at 34%. Consider increasing per_device_train_batch_size from 4 to 8.",
    ]


def test_advantage() -> None:
    items = run(reward__group_std_mean=[0.01] * 60, reward__mean=[0.6] * 25 + [0.05] * 35)
    assert lines("advantage-collapse", items) == [
        "Group reward std is 0.01 (near zero). Advantage signal has collapsed. Consider revisiting your reward function.",
    ]


def test_clip_ratio() -> None:
    share = [0.15 if step % 30 < 13 else 0.001 for step in range(120)]  # 13 of any 30 updates
    items = run(policy__ratio_outside_fraction=share, policy__clip_low=[0.8] * 120, policy__clip_high=[1.2] * 120)
    assert lines("clip-ratio-high", items) == [
        "Clip ratio outside [0.8, 1.2] for 43% of updates. Consider reducing the learning rate.",
    ]


def test_clip_ratio_of_a_log_is_a_lower_bound() -> None:
    (said,) = lines("clip-ratio-high", run(policy__clip_fraction=[0.08] * 120))
    assert said == "Clip ratio outside [0.8, 1.2] for at least 100% of updates. Consider reducing the learning rate."
