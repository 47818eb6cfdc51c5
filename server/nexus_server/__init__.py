"""The consortium's server: sees updates and signatures, never text, and needs no torch and no model."""
