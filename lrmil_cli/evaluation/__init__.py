"""How good predictions are: metrics, intervals, calibration, predictions tables, pages, the receipt."""
