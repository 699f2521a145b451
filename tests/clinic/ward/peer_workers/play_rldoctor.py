"""rl-doctor: its callback during the run, and its command line once over the finished ``trainer_state.json``; all defaults.

A run that died leaves that file in its checkpoints only, up to the last one. Here it is given whole, to the tool's advantage.
"""

from __future__ import annotations

import json
import os

import stage
from rl_doctor.cli import main
from rl_doctor.integrations.trl import RLDoctorCallback


def attach(trainer, folder):
    live = []
    callback = RLDoctorCallback(check_every=5) if stage.SETUP == "eager" else RLDoctorCallback()
    tell = callback.monitor.on_finding

    def on_finding(finding):
        live.append([trainer.state.global_step, finding.detector, finding.severity.name.lower()])
        tell(finding)

    callback.monitor.on_finding = on_finding  # its own hook, wrapped: it logs a line and we keep the step
    trainer.add_callback(callback)

    def finish():
        path, report = os.path.join(folder, "trainer_state.json"), os.path.join(folder, "report.json")
        trainer.state.save_to_json(path)
        code = main(["diagnose", path, "--format", "json", "--output", report])
        if code:
            raise RuntimeError(f"rl-doctor diagnose ended with {code}")
        with open(report, encoding="utf-8") as file:
            findings = json.load(file)["findings"]
        spoken = ("INFO", "WARNING", "CRITICAL")
        step = trainer.state.global_step
        return {
            "live": live,
            "report": [[step, finding["detector"], finding["severity"].lower()] for finding in findings if finding["severity"] in spoken],
        }

    return finish


stage.serve("rldoctor", attach)
