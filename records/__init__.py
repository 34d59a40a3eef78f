"""How anything is written down: files beside and renamed, the environment, result files. Every room
may use it."""
