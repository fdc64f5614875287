"""Every stage on one machine: images in, answers and a report out."""
