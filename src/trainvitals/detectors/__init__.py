"""Detectors: seven primitives that know numbers only (docs/detectors.md has their simulated false alarms and delays).

Each is one file and takes one number at a time through ``add``; `change` alone is asked about a sequence, after an alarm. Memory is bounded, nothing is drawn at random, and
``state_dict`` goes through JSON bit by bit. A number that is not finite is counted in ``nonfinite`` and enters nothing.
"""
