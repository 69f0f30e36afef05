"""A recipe in several processes: the launcher, its messages, and the code of one rank."""
