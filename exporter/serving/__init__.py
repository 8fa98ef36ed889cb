"""Files for a server: a Triton model repository of what this project makes."""
