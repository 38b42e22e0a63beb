"""Makes and judges the artefact of the codec `ftc1`: a model and public text -> Artefact -> Certificate; no network."""

from splitinfer.calibration.calibrate import Calibration, calibrate

__all__ = ["Calibration", "calibrate"]
