"""How strong an intervention should be: calibration to a divergence, and search for the best."""

from sordino.tuning.calibration import Calibrated, Yardstick, calibrate

__all__ = ["Calibrated", "Yardstick", "calibrate"]
