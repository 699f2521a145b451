"""trainpulse: its callback for `transformers.Trainer`, every threshold at its default, on the recorded clock."""

from __future__ import annotations

import stage
import trainpulse.monitor
from trainpulse.callbacks import make_hf_callback


def attach(trainer, folder):
    del folder
    trainpulse.monitor.time = trainer.clock  # it times steps itself: give it the time that the recording took
    callback = make_hf_callback()
    trainer.add_callback(callback)

    def finish():
        monitor = callback.trainpulse_monitor
        return {"live": [[alert.step, alert.detector, alert.severity.value] for alert in monitor.alerts]}

    return finish


stage.serve("trainpulse", attach)
