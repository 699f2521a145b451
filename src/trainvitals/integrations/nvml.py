"""The accelerator as NVML sees it: utilisation, temperature, throttling. Needs no torch and no CUDA context.

NVML calls take from 0.1 ms to several ms, so they are made from the watchdog's thread, never from the training step.
On a machine without an NVIDIA driver `Nvml.open` returns None and the rules that need these signals do not apply.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

# nvidia-ml-py: nvmlClocksEventReasons; software and hardware thermal slowdown, hardware power brake.
# https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
_HW_SLOWDOWN = 0x8
_SW_THERMAL = 0x20
_HW_THERMAL = 0x40
_HW_POWER_BRAKE = 0x80
THROTTLE_BITS = _HW_SLOWDOWN | _SW_THERMAL | _HW_THERMAL | _HW_POWER_BRAKE


class Nvml:
    """One device.

    Attributes:
        latest: Signals of the last `sample`; replaced as a whole, so another thread may read it at any time.
    """

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle
        self.latest: dict[str, float] = {}
        self._errors: int | None = None  # counted by the driver before we came

    @classmethod
    def open(cls, device: int = 0) -> Nvml | None:
        """Open a device by its CUDA index (CUDA_VISIBLE_DEVICES is honoured), or return None when there is none."""
        try:
            import pynvml

            pynvml.nvmlInit()
            visible = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
            name = visible[device] if device < len(visible) else str(device)
            handle = pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(name)
        except Exception:  # no library, no driver, no such device, a MIG slice without rights: all mean "not here"
            return None
        return cls(pynvml, handle)

    def sample(self) -> dict[str, float]:
        """Read the device now; a value that the device does not offer is left out."""
        values: dict[str, float] = {}
        library, handle = self._library, self._handle
        with contextlib.suppress(Exception):
            values["device.utilization_fraction"] = library.nvmlDeviceGetUtilizationRates(handle).gpu / 100.0
        with contextlib.suppress(Exception):
            values["device.temperature_celsius"] = float(library.nvmlDeviceGetTemperature(handle, library.NVML_TEMPERATURE_GPU))
        with contextlib.suppress(Exception):
            reasons = library.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            values["device.throttled"] = 1.0 if reasons & THROTTLE_BITS else 0.0
        with contextlib.suppress(Exception):  # volatile counters start when the driver loads, which is not when we do
            errors = int(library.nvmlDeviceGetTotalEccErrors(handle, library.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, library.NVML_VOLATILE_ECC))
            self._errors = errors if self._errors is None else self._errors
            values["device.ecc_errors"] = float(max(0, errors - self._errors))
        self.latest = values
        return values
