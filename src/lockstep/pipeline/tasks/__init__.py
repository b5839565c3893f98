"""What is learned: inputs, loss, metrics and rehearsal of a task in one place."""
