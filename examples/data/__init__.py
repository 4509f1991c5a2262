"""Images with labels: where they lie, what their labels mean, how they are read and augmented."""
