"""Keys with which things are signed."""
