"""The whole road on one machine: pictures in, answers and a report out."""
