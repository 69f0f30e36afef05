"""Jobs: submission, dispatch, lists, logs and their streams."""
