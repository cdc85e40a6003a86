"""How strong an intervention should be: its size for a divergence, and the search for the best."""

from sordino.tuning.calibration import Calibrated, Yardstick, calibrate

__all__ = ["Calibrated", "Yardstick", "calibrate"]
