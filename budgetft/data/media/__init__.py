"""Pictures and films: opened as a viewer shows them, checked, and cut to what an example may have."""
