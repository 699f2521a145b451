"""rlwatch, attached as its documentation recommends for TRL: ``rlwatch.attach(trainer=trainer)``, every threshold at its default.

The framework is told because its detection looks for an imported ``trl``, which this environment does not need. Alerts are those
that passed its cooldown and were delivered and stored.
"""

from __future__ import annotations

import rlwatch
import stage


def attach(trainer, folder):
    monitor = rlwatch.attach(framework="trl", trainer=trainer, run_id="recording")
    store = monitor.store
    del folder  # it writes ./rlwatch_logs, and runs are played in a folder of their own

    def finish():
        alerts = [[alert["step"], alert["detector"], alert["severity"]] for alert in store.get_alerts()]
        monitor.stop()
        return {"live": alerts}

    return finish


stage.serve("rlwatch", attach)
