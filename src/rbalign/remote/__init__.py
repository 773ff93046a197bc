"""See ARCHITECTURE.md for this layer."""
