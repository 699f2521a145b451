"""What the report says about what is missed: written by hand, after looking. Keys are case ids."""

from __future__ import annotations

from typing import Any

TRIED = """The goals are judged by the ninth round: 18 faults and six worries in vain that people report most often, known causes included, in settings that no older case has, by two authors who had not read the rules; people who knew the descriptions alone said which rules name them. Looked at once:
72 % detected (goal 95), the root cause first in 59 % (85), 0.44 false alarms in 1,000 healthy updates (0.2), a median delay of 30 updates (10); 4 % of the healthy runs warned (5) and the verdict (96 %; 90) are met. The four warned runs are one setting: a reward model whose states grow thirtyfold as it learns, told by a clause
that had been added the same day. What was repaired shows under *today*, and with the signals that it needs under *Every case, trained anew*.

On the half of the first round that was set aside before any threshold was touched, the first look said 94 % detected (goal 95) and the root cause first in 82 % (85): missed by one point and by three. The other goals held there: no false alarm, a median delay of 10 updates, the verdict right in 93 %. What was repaired since shows in its
second line of the table above (99 and 96 % today); it has been seen by now and proves nothing about faults to come, which is why the later rounds judge.

How far this goes: the first round, whose catalogue the rules' authors had written themselves, said 94 % detected and 82 % root first; faults that one author thought of 79 and 59; two drawn by lot from our notes 67 and 45, then 74 and 50; what people report 95 and 63, and most often, in new settings, 85 and 67, then 72 and 59; bugs that frameworks had and mended 67 and 39;
what is left when all of these are passed over 59 and 35. So of what people meet most often four runs in five (85 of 108 in two rounds) are told and three in five named, and the long tail is not. Between those two rounds known causes were tried over 304 further settings and mended; the second was not better for it: each round brings faults that nobody had thought of. Whoever runs a training of a kind that is rare should not take silence for health.

Tried so far: strong evidence at once and weak evidence late in twenty rules, rules for every line of the catalogue that a signal can show, sequential tests for plateaus, signals for copies and overlap in a group, for what texts foretell of a score, for length bias in pairs. What came to stay, and what said the cause in faults for which it was not
written, are invariants measured in the process: which parameters are held and reached, whose advantages, which tokens, packed rows against the same rows alone, the place of the labels, weights between two updates, copies against the policy's own probability, the surprise of sampled tokens, the checkpoint against what was trained. After the ninth round every rule was held against every trainer that gives what it reads (docs/decisions/0018).
"""
FIRST_SCORED: dict[str, Any] = {"detected": (312, 331), "first": (271, 331), "verdict": (432, 467), "false": (0, 19_765), "warned": (0, 136), "delay": 10.0}
"""What the set-aside half said the first time anybody looked, at commit 9521985: hits and tries, events and updates, median. The goals
are judged by these, for afterwards rules were repaired: hidden-nan because of rloo-nan-layer itself, length-collapse and reward-plateau
because of the demo. Make it anew only together with a new set-aside list."""
FIRST_SCORED_2: dict[str, Any] | None = {"detected": (209, 266), "first": (157, 266), "verdict": (331, 379), "warned": (5, 113), "false": (5, 15_591), "delay": 29.0}
"""The same of the second round (docs/decisions/0009), which judges the goals from then on: what `python -m tests.clinic.ward score --split
round-two` printed the first time, at commit 3aed13c on 2026-11-29. Written down once; it is never made anew. None: nobody has looked."""
FIRST_SCORED_4: dict[str, Any] | None = {"detected": (53, 72), "first": (36, 72), "verdict": (140, 151), "warned": (1, 79), "false": (10, 9_985), "delay": 9.0}
"""The fourth round (docs/decisions/0012), by ``--split round-four``, the first time at commit d0cfdb4 on 2026-11-29; it judges the goals from then on."""
FIRST_SCORED_3: dict[str, Any] | None = {"detected": (75, 112), "first": (50, 112), "verdict": (157, 175), "warned": (0, 63), "false": (0, 7_532), "delay": 29.0}
"""The same of the third round (docs/decisions/0011), by ``--split round-three``, the first time at commit 839895e on 2026-11-29; it judges the goals from then on."""
FIRST_SCORED_5: dict[str, Any] | None = {"detected": (60, 63), "first": (40, 63), "verdict": (105, 110), "warned": (0, 47), "false": (0, 5_580), "delay": 4.0}
"""The fifth round (docs/decisions/0013), by ``--split round-five``, the first time at commit c08f344 on 2026-11-30; it judges the goals from then on."""
FIRST_SCORED_6: dict[str, Any] | None = {"detected": (36, 54), "first": (21, 54), "verdict": (124, 128), "warned": (6, 74), "false": (6, 8_270), "delay": 4.0}
"""The sixth round (docs/decisions/0014), by ``--split round-six``, the first time at commit fae263d on 2026-11-30; it judges the goals from then on."""
FIRST_SCORED_7: dict[str, Any] | None = {"detected": (32, 54), "first": (19, 54), "verdict": (104, 119), "warned": (10, 65), "false": (15, 7_030), "delay": 10.0}
"""The seventh round (docs/decisions/0015), by ``--split round-seven``, the first time at commit 03d488c on 2026-11-30; it judges the goals from then on."""
FIRST_SCORED_8: dict[str, Any] | None = {"detected": (46, 54), "first": (36, 54), "verdict": (102, 118), "warned": (8, 64), "false": (8, 6_780), "delay": 10.0}
"""The eighth round (docs/decisions/0016), by ``--split round-eight``, the first time at commit e262b0e on 2026-11-30; it judges the goals from then on."""
FIRST_SCORED_9: dict[str, Any] | None = {"detected": (39, 54), "first": (32, 54), "verdict": (146, 152), "warned": (4, 98), "false": (4, 9_190), "delay": 30.0}
"""The ninth round (docs/decisions/0017), by ``--split round-nine``, the first time at commit 803cd6f on 2026-12-01; it judges the goals from then on."""
LATER = {"nine": FIRST_SCORED_9, "eight": FIRST_SCORED_8, "seven": FIRST_SCORED_7, "six": FIRST_SCORED_6, "five": FIRST_SCORED_5, "four": FIRST_SCORED_4, "three": FIRST_SCORED_3, "two": FIRST_SCORED_2}
"""Round to what it said the first time, the newest first. The goals are judged by the newest that was looked at."""
MISSED: dict[str, str] = {
    "grpo-off-policy": "Eight updates per batch at a rate sixty times too high: the size of the steps and single ratios speak before the share outside the clip range does. Both are true.",
    "grpo-sign-flip": "The turned reward teaches answers that never end or are empty; that is told before the held-out score has its evidence.",
    "grpo-gamed": "The paired test on held-out prompts did not reach its limit before the run ended.",
    "grpo-consensus": "Answers become alike only slowly; that the reward fell is told first, mode-collapse follows at updates 90 to 95.",
    "grpo-dead-component": "In this seed the second function is silent for another reason: it is never constant over the rule's whole window.",
    "grpo-reward-noise": "A random reward wanders: in this seed its level was above the start when the rule looked.",
    "rloo-wrong-sign": "In two seeds the turned reward teaches empty answers, told before the fall.",
    "ppo-rate-100x": "In one seed the loss is not a number before anything else is told.",
    "dpo-beta-huge": "A beta far too large for its data still separates the pairs of a tiny model; the held-out loss tells late.",
    "dpo-few": "Held-out evidence comes with the evaluations, and in some seeds not at all.",
}
CURE_TRIED = """What was tried. After a rate that is far too high the suggestion aims at a size of step. For preference losses 1 % of the weights was too much (DPO and KTO, 0 of 4)
and 0.1 % too little (DPO, one run: at the end it had learned, but was behind the twins); 0.3 % recovers, and was chosen after a look at those runs. A cap that cuts nearly
everything was doubled once, which still cut (1 of 4); it is multiplied by four. Eight passes over one batch stayed too many at a right rate (0 of 2); one pass is
advised along with the rate. For a rate of 0 in the configuration TRL's default was tried (0 of 2, as the random arm): that advice is in words now.
A larger label_smoothing against exploding margins was never forked and is no longer advised. Then every first suggestion was forked in faults that no parameter repairs as well: rules about symptoms
suggested another rate or larger groups and cured none of some forty runs, no more than random changes did; they say in words where to look now (docs/decisions/0019). Four examples in a batch of KTO
cured none of three, eight are suggested. Five times the rate cured none of two KTO runs at a two-hundredth of it; the rate is reckoned from the margin now, which grows in proportion. What `max_inflight_tasks`
does was not forked: the clinic's rollout worker does not know it.
"""
CURE_MISSED: dict[str, str] = {
    "grpo-length-bonus": "The reward paid for length before answers were cut, so a larger cap is suggested no more: advice in words. The right weights cure one of two.",
    "grpo-entropy-default": "In seed 6 the fall of the reward is told before the bonus that it was given up for, and its advice is in words.",
    "dpo-no-anchor": "Told from the rate alone at update 1 the suggestion cured two of two, and a healthy run at such a rate was warned (round eight); told when the harm is measured, at update 55, neither it nor the right rate brings the chosen answers back.",
    "cpo-simpo-rate": "In seed 5 the right rate is behind the twins at the end of the fork as well.",
    "async_grpo-cap-prefix": "In seed 5 four times the cap still cuts more answers than in the twins.",
    "grpo-micro-batches-not-divided": "Its effects are told, each with a remedy of its own; that the loss is not divided nobody says. In seed 6 the size of the steps is told first, and its rate cures.",
    "sft-mean-of-means": "Half as many micro-batches is half of the repair; in one seed the right change is behind its twins too.",
    "async_grpo-raw-logps": "What the sampler reports is wrong: sampler-mismatch advises in words, no parameter of ours repairs it.",
    "grpo-format-wins": "In one seed nothing is told; in the other the advice is in words, and the right weights come too late as well.",
    "distillation-cap-short": "In seed 5 one answer of 80 is still cut at the end; in the healthy twins none is.",
    "kto-imbalance": "The right weight brings the likelihood of the chosen answers back (-20 to -29, twins -20, carrying on -90 and less), but one desirable example in eight teaches less of the margin than the twins learn from four.",
    "grpo-entropy-bonus": "In seed 5 cut answers are told before the bonus that makes them: the first suggestion is more room for noise.",
    "grpo-entropy-target": "Until the fork of seed 5 the advice was in words only; switching the controller off is suggested since. In seed 7 the fall of the reward is told first, in words.",
    "kto-batch-of-two": "Batches of four are what TRL's guide asks for; they cured none of three seeds that were looked at, and eight are suggested since. In seed 8 the right change is behind the twins as well.",
    "kto-hardly-desirable": "One example in twenty is desirable; the right weight brings the likelihood of the chosen answers half of the way back within a run.",
    "kto-weights-inverted": "The likelihood of the chosen answers comes back, with the right weights and with ours; the margin stays a little below the twins', which learn from twice as many desirable examples.",
    "sft-rate-zero": "Which rate a model needs cannot be told from a run without any step; a default of TRL cures no better than chance here.",
    "grpo-off-policy": "Eight passes over a batch at sixty times the rate: the run swings, and in three of nine seeds it ends well by itself; so do other changes in three. In seed 8 single ratios are told first, and one pass at that rate is not enough.",
    "dpo-rate-100x": "In seed 3 the suggested rate is 1.3 times the right one, and the likelihood of chosen answers ends behind the twins'.",
    "sft-rate-100x": "In seeds 0 and 5 a rate of 0.7 of the right one is behind the twins at the end; it is still falling.",
}
