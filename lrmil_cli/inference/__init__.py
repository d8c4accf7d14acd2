"""A slide in, a Prediction out: by torch or ONNX, at low resolution or with some HR tiles."""
