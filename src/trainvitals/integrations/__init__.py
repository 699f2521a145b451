"""Where trainvitals meets trainers: the only package that imports torch, transformers, trl and accelerate.

Two lines are enough::

    from trainvitals.integrations.trl import attach
    attach(trainer)

or, for any `transformers.Trainer`, ``trainer.add_callback(VitalsCallback())``. Nothing is imported here, so that
``import trainvitals.integrations.nvml`` costs no torch.
"""
