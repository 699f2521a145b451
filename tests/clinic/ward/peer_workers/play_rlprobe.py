"""rlprobe: its recorder with live diagnosis, and ``rlprobe doctor`` once over the finished recording; thresholds at their defaults.

Attached with one line, as its README shows, it prints nothing during training; `on_finding` is its documented switch for live
findings. Recordings hold no completions, so what it reads from samples (links behind a finding) is missing; no detector needs them.
"""

from __future__ import annotations

import os

import stage
from rlprobe.doctor import diagnose
from rlprobe.integrations.trl import attach as attach_rlprobe


def attach(trainer, folder):
    live = []
    path = os.path.join(folder, "run")

    def on_finding(finding):
        live.append([trainer.state.global_step, finding.signature_id, finding.severity, finding.first_step])

    often = {"diagnose_every": 10} if stage.SETUP == "eager" else {}
    callback = attach_rlprobe(trainer, path, on_finding=on_finding, **often)

    def finish():
        callback.recorder.close()  # its exit handler does this for a training that died
        step = trainer.state.global_step
        findings = diagnose(path)
        return {"live": live, "report": [[step, f.signature_id, f.severity, f.first_step] for f in findings]}

    return finish


stage.serve("rlprobe", attach)
