from __future__ import annotations

from tests.clinic.ward.case import Case

CASES: tuple[Case, ...] = ()
