"""How strong an intervention should be: calibration to a divergence, and search for the best."""
