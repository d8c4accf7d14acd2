"""What a slide costs on this machine: HR against LR, and the readers against each other."""
