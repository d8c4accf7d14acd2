"""Training of models that read some HR tiles: AHDMIL, HDMIL, ZoomMIL."""
