"""Training schemes: what networks are taught in which order."""
