"""adatad_ds: temporal action detection with a frozen billion-parameter backbone, trained on DeepSpeed."""

__version__ = "0.1.0"
