"""Which parts of trainers are looked into: one module each, with ``SIGNALS`` and ``install(hooks)``. To add one, add it here."""

from __future__ import annotations

from trainvitals.integrations import (
    adapters,
    answers_scan,
    async_rollout,
    dataset_rows,
    distillation,
    doubled_template,
    drift,
    dropped_rows,
    features,
    generation_prompt,
    label_shift,
    moe,
    packed_rows,
    ppo,
    preference,
    questions,
    ranks,
    reward_model,
    reward_range,
    sampling,
    supervised,
    token_ids,
    token_weights,
)

FAMILIES = (
    sampling, ppo, preference, supervised, reward_model, adapters, moe, async_rollout, distillation, drift, dropped_rows, dataset_rows, questions, doubled_template, answers_scan, generation_prompt, token_ids,
    reward_range, features, packed_rows, token_weights, label_shift, ranks,
)  # fmt: skip
"""In the order in which they wrap. Each wraps what it finds on a trainer and leaves the others alone."""
