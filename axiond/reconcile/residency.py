"""Which lazy models are held in memory. Pure."""
