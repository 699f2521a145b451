"""The demo's parts; its trainings are in the clinic."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from trainvitals.integrations import demo, tiny

pytestmark = pytest.mark.trl


def test_the_parser_breaks_when_told_and_not_before():
    reward = demo.reward_with_parser(5)
    texts = [[{"role": "assistant", "content": "aeio"}], [{"role": "assistant", "content": "abcd"}]]
    assert reward(texts, trainer_state=SimpleNamespace(global_step=4)) == [1.0, 0.25]
    assert reward(texts, trainer_state=SimpleNamespace(global_step=5)) == [0.0, 0.0]
    assert demo.reward_with_parser(None)(texts, trainer_state=SimpleNamespace(global_step=99)) == [1.0, 0.25]


@pytest.mark.parametrize(
    ("argv", "said"), [(["--faults", "gremlins"], "unknown fault 'gremlins'"), (["--steps", "3"], "at least 20")]
)
def test_wrong_arguments_are_explained(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(argv)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_the_tiny_policy_can_end_its_answers():
    """Without that every run would look broken to the rules about termination."""
    import torch

    vocabulary = tiny.tokenizer()
    policy = tiny.policy(vocabulary).eval()
    text = vocabulary.apply_chat_template([{"role": "user", "content": "what is two"}], add_generation_prompt=True, tokenize=False)
    ids = vocabulary([text] * 32, return_tensors="pt")
    torch.manual_seed(0)
    out = policy.generate(**ids, max_new_tokens=16, do_sample=True)
    assert (out == vocabulary.eos_token_id)[:, ids["input_ids"].shape[1] :].any(dim=1).float().mean() > 0.9


def test_two_policies_do_not_share_weights():
    vocabulary = tiny.tokenizer()
    first, second = tiny.policy(vocabulary), tiny.policy(vocabulary)
    next(first.parameters()).data.zero_()
    assert next(second.parameters()).abs().sum() > 0
