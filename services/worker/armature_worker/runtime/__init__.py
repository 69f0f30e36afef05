"""One attempt at a job: admission, claim, heartbeat, the recipe's context, and the ending."""
