"""The ward: real trainings with a known fault, their healthy twins, and what our rules (and others') say about them.

    python -m tests.clinic.ward list                 every case with its truth
    python -m tests.clinic.ward record [CASE...]     train and record what is missing (`--again`: everything named)
    python -m tests.clinic.ward score                judge the recordings with the built-in rules
    python -m tests.clinic.ward cure                 fork at the alarm: carry on, our suggestion, a random one, the right one
    python -m tests.clinic.ward report               write docs/benchmark.md from the results

`case.py` says what a case is, `cases.py` lists them all, `record.py` trains, `score.py` judges. ``make clinic`` runs what needs no
training: scoring and the report from the recordings in the tree.
"""
