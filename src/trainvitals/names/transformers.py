"""What the base `transformers.Trainer` logs, whatever the subclass (notes: transformers 4.57 and 5.23)."""

from __future__ import annotations

from trainvitals.names.entry import Entry

TABLE: tuple[Entry, ...] = (
    Entry("loss", "optim.loss", "loss", note="mean over the logging window; NaN steps are replaced by the running mean (logging_nan_inf_filter)"),
    Entry("grad_norm", "optim.grad_norm", "norm", note="of the last step of the window only, before clipping"),
    Entry("learning_rate", "optim.learning_rate", "rate", note="of the last step; 0 on the first step of a warm-up is normal"),
    Entry("lr", "optim.learning_rate", "rate"),
    Entry("epoch", "run.epoch", "count"),
    Entry("num_tokens", "run.tokens_seen", "tokens", note="running total over all ranks"),
    Entry("num_input_tokens_seen", "run.tokens_seen", "tokens", note="only with include_num_input_tokens_seen"),
    # The closing summary row: means over the whole run, never a step.
    Entry("train_runtime", "", note="closing summary row"),
    Entry("train_samples_per_second", "", note="closing summary row"),
    Entry("train_steps_per_second", "", note="closing summary row"),
    Entry("train_tokens_per_second", "", note="closing summary row"),
    Entry("train_loss", "", note="closing summary row: mean loss of the whole run"),
    Entry("total_flos", "", note="closing summary row"),
    Entry("runtime", "", note="of an evaluation"),
    Entry("samples_per_second", "", scope="eval", note="of an evaluation"),
    Entry("steps_per_second", "", note="of an evaluation"),
    Entry("model_preparation_time", "", note="of an evaluation"),
)

EVAL: tuple[Entry, ...] = (
    # After the `eval_` or `eval/` prefix is taken off. Everything else that training knows has no held-out signal.
    Entry("loss", "eval.loss", "loss", scope="eval"),
    Entry("reward", "eval.reward", "reward", scope="eval", note="the training reward on held-out prompts, no checker's score"),
    Entry("rewards/accuracies", "eval.accuracy", "fraction", scope="eval"),
    Entry("rewards/margins", "eval.margin", "reward", "sequence", trainers=("dpo", "kto", "bco"), scope="eval", note="the only word of KTO's evaluation on which of the two it prefers"),
    Entry("mean_token_accuracy", "eval.accuracy", "fraction", scope="eval"),
    Entry("accuracy", "eval.accuracy", "fraction", scope="eval", note="preference accuracy of a reward model, or the user's compute_metrics"),
    Entry("score", "eval.score", "score", scope="eval", note="only from a checker of the user's own"),
)
