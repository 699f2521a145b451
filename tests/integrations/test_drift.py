"""Drift of prompts and completions: the numbers against an independent computation, and what they are good for."""

from __future__ import annotations

import json
import math
from collections import Counter
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from trainvitals.integrations.drift import (  # noqa: E402
    BUCKETS,
    UNITS,
    Drift,
    Edges,
    _by_length,
    _groups,
    _Labelled,
    _Sampled,
    chi_square_quantile,
    distance,
    jensen_shannon,
    size_of,
    unit,
)


def table(texts):
    return np.stack([unit([text]) for text in texts])


def words(random, count, vocabulary, size=30):
    """Texts that stay with one word once they have it: tokens of one text belong together."""
    found = []
    for _ in range(count):
        word, text = random.choice(vocabulary), []
        for _ in range(random.randint(size // 2, size)):
            word = word if random.random() < 0.5 else random.choice(vocabulary)
            text.append(word)
        found.append(text)
    return found


def test_the_numbers_are_those_of_the_formulas_written_out():
    random = Random(1)
    first, last = words(random, 12, range(20)), words(random, 9, range(5, 25))
    shares = []
    for sample in (first, last):
        count = Counter(token for text in sample for token in text)
        shares.append({token: n / sum(count.values()) for token, n in count.items()})
    tokens = sorted({*shares[0], *shares[1]})
    a, b = ([share.get(token, 0.0) for token in tokens] for share in shares)
    js = sum(x / 2 * math.log(2 * x / (x + y)) if x else 0 for x, y in zip(a, b, strict=True)) + sum(y / 2 * math.log(2 * y / (x + y)) if y else 0 for x, y in zip(a, b, strict=True))
    every = first + last
    total = sum(map(len, every))
    pooled = {token: sum(text.count(token) for text in every) / total for token in tokens}
    mean_size = total / len(every)
    rows = [[(text.count(t) - len(text) * pooled[t]) / mean_size / math.sqrt(pooled[t]) for t in tokens] for text in every]
    covariance = np.array([[sum(row[i] * row[j] for row in rows) / (len(rows) - 1) for j in range(len(tokens))] for i in range(len(tokens))])
    expected = np.trace(covariance) * (1 / len(first) + 1 / len(last))
    degrees = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    statistic = sum((x - y) ** 2 / ((x + y) / 2) for x, y in zip(a, b, strict=True))
    nats, ratio = distance(table(first)[:, :BUCKETS], table(last)[:, :BUCKETS])
    assert nats == pytest.approx(max(0.0, js - expected / 8), rel=1e-6)
    assert ratio == pytest.approx(statistic / (expected * chi_square_quantile(degrees) / degrees), rel=1e-6)
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == pytest.approx(math.log(2))


@pytest.mark.parametrize(("degrees", "within"), [(1.0, 0.08), (5.0, 0.03), (30.0, 0.005), (200.0, 0.001)])
def test_the_quantile_is_exceeded_once_in_ten_thousand(degrees, within):
    half, low, high = torch.tensor(degrees / 2, dtype=torch.float64), 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        beyond = float(torch.special.gammaincc(half, torch.tensor(middle / 2, dtype=torch.float64)))
        low, high = (middle, high) if beyond > 1e-4 else (low, middle)
    assert chi_square_quantile(degrees) == pytest.approx(low, rel=within)


def test_one_distribution_stays_below_the_bound_and_another_does_not():
    random = Random(2)
    drift = Drift()
    ratios = [told[1] for _ in range(200) if (told := drift.add(table(words(random, 8, range(40))))) is not None]
    assert len(ratios) > 40
    assert max(ratios) < 1
    later = [told for _ in range(32) if (told := drift.add(table(words(random, 8, range(10, 50))))) is not None]
    assert later[-1][1] > 2
    assert later[-1][0] > 0.05


def test_tokens_that_belong_together_are_not_counted_as_independent():
    """A chi-square test of tokens calls two halves of one sample different; the bound does not."""
    random = Random(3)
    texts = [[random.randrange(40)] * 50 for _ in range(2 * UNITS)]
    first, last = table(texts[:UNITS]), table(texts[UNITS:])
    a, b = first[:, :BUCKETS].sum(0), last[:, :BUCKETS].sum(0)
    some = a + b > 0
    chi = float(((a - b)[some] ** 2 / (a + b)[some]).sum())
    assert chi > 5 * chi_square_quantile(39)
    assert distance(first[:, :BUCKETS], last[:, :BUCKETS])[1] < 1


def test_lengths_alone_are_seen():
    random = Random(4)
    drift = Drift()
    drift.add(table([[random.randrange(40) for _ in range(random.randint(8, 12))] for _ in range(UNITS)]))
    told = drift.add(table([[random.randrange(40) for _ in range(random.randint(40, 60))] for _ in range(UNITS)]))
    assert told[1] > 3
    assert told[0] > 0.3


def test_the_first_looks_and_the_memory():
    drift = Drift(units=16, every=8)
    row = table([[1, 2, 3]])
    told = [at for at in range(200) if drift.add(row) is not None]
    assert told[:3] == [31, 39, 47]
    assert len(drift._start) == len(drift._recent) == 16
    assert drift.add(np.repeat(row, 8, axis=0)) == (0.0, 0.0)  # every unit is the same


def test_empty_texts_are_texts():
    drift = Drift(units=4, every=4)
    drift.add(table([[1, 2], [2, 3], [3], [1]]))
    nats, ratio = drift.add(table([[], [], [], []]))
    assert nats > 0.2
    assert math.isfinite(ratio)


def test_half_octaves():
    assert [size_of(n) for n in (0, 1, 2, 3, 4, 64, 10**9)] == [0, 1, 3, 4, 5, 13, 31]


def test_runs_of_equal_prompts_are_one_unit():
    assert _groups([[1], [1], [2], [2], [2], [1]]) == [(0, 2), (2, 5), (5, 6)]
    assert _groups([]) == []


class Recorder:
    """What a family hands over."""

    training = True

    def __init__(self):
        self.given = {}

    def give(self, name, value):
        self.given[name] = value

    def put(self, tensors, compute):
        self.given.update(compute(tensors))


def test_what_a_tool_answered_is_not_the_policys_text():
    """Prompts stay; after the first stretch the tool answers something new in every completion."""
    hooks = Recorder()
    reader = _Sampled(hooks)
    for update in range(2 * UNITS // 4 + 8):
        prompts = [[unit_of % 7, 5] for unit_of in range(4) for _ in range(2)]
        answer = [400 + update % 50] * 30 if update >= UNITS // 4 else []
        completions = [[1, 2, *answer, 3] for _ in prompts]
        mask = [[1, 1, *[0] * len(answer), 1] for _ in prompts]
        reader.after_generate((prompts, completions, mask, None), (), {}, 0.0)
    assert hooks.given["completion.drift_ratio"] == 0
    assert hooks.given["data.drift_ratio"] < 1


def test_an_evaluation_is_not_read():
    hooks = Recorder()
    hooks.training = False
    reader = _Sampled(hooks)
    for _ in range(3 * UNITS):
        reader.after_generate(([[1]], [[2]], None, None), (), {}, 0.0)
    assert hooks.given == {}


def test_padding_is_no_token_of_a_training_sequence():
    hooks = Recorder()
    reader = _Labelled(hooks)
    random = Random(5)
    for update in range(3 * UNITS // 8):
        lengths = [random.randint(8, 12) for _ in range(8)]
        width = 12 if update < 2 * UNITS // 8 else 400
        ids = torch.zeros(8, width, dtype=torch.long)
        mask = torch.zeros(8, width, dtype=torch.long)
        for row, length in enumerate(lengths):
            ids[row, :length] = torch.tensor([random.randrange(3, 40) for _ in range(length)])
            mask[row, :length] = 1
        reader.before_loss((SimpleNamespace(), {"input_ids": ids, "attention_mask": mask, "labels": ids}), {})
        reader.step_end()
    assert hooks.given["data.drift_ratio"] < 1
    assert hooks.given["data.drift"] < 0.01


def test_pairs_and_batches_of_one_length_are_left_alone():
    """The two responses of a pair share their prompt, sorted batches their length: neither is a sample of independent sequences."""
    hooks = Recorder()
    reader = _Labelled(hooks)
    ids = torch.arange(8).reshape(2, 4)
    reader.before_loss((SimpleNamespace(), {"input_ids": ids}), {})
    assert reader._counts is None
    reader.before_loss((SimpleNamespace(), {"input_ids": ids, "labels": ids}), {})
    assert reader._counts is not None
    assert _by_length(SimpleNamespace(group_by_length=True))
    assert _by_length(SimpleNamespace(train_sampling_strategy="group_by_length"))
    assert not _by_length(SimpleNamespace(train_sampling_strategy="random"))


def test_what_was_saved_goes_on_as_if_nothing_had_happened():
    random = Random(4)
    rows = table(words(random, 300, range(30)))
    whole, first = Drift(32, 8), Drift(32, 8)
    for part in rows[:100].reshape(25, 4, -1):
        assert whole.add(part) == first.add(part)
    text = json.dumps(first.state_dict())
    assert len(text) < 20_000
    second = Drift(32, 8)
    second.load_state_dict(json.loads(text))
    looks = [(whole.add(part), second.add(part)) for part in rows[100:].reshape(50, 4, -1)]
    assert all(one == other for one, other in looks)
    assert any(one is not None for one, _ in looks)
    empty = Drift()
    empty.load_state_dict(json.loads(json.dumps(Drift().state_dict())))
    assert empty.state_dict() == Drift().state_dict()


def framed(random, head, tail, count=40):
    return [[*head, *random.choices(range(100), k=random.randint(0, 9)), *tail] for _ in range(count)]


def test_the_frame_is_what_the_first_prompts_begin_and_end_with():
    random, edges = Random(0), Edges()
    assert edges.lost(framed(random, [7, 7, 7], [8, 8])) is None  # learned
    assert edges.lost(framed(random, [7, 7, 7], [8, 8])) == 0
    assert edges.lost(framed(random, [7, 7, 6], [8, 8])) == 1
    assert edges.lost(framed(random, [7, 7, 7], [8])) > 0.9
    assert edges.lost([[7, 7, 7, 8, 8], [7, 7, 8, 8]]) == 0.5  # too short for both
    assert edges.lost([]) is None
    again = Edges()
    again.load_state_dict(json.loads(json.dumps(edges.state_dict())))
    assert again.lost(framed(random, [7, 7, 7], [8, 8])) == 0
    assert again.lost(framed(random, [], [8, 8])) > 0.9


def test_prompts_without_a_frame_and_with_few_wordings():
    random, plain, few = Random(0), Edges(), Edges()
    assert [plain.lost(framed(random, [], [])) for _ in range(3)] == [None] * 3
    texts = [[7, 7, number, 8] for number in range(8)]
    for _ in range(7):
        assert few.lost(texts) is None
    assert few.lost(texts) is None  # the 64th prompt
    assert few.lost(texts) == 0
    assert few.lost([text[2:] for text in texts]) == 1
    one = Edges()
    assert [one.lost([[7, 7, 8]] * 40) for _ in range(5)] == [None] * 5  # one prompt is all frame
