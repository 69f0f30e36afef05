"""Files of rows: their formats, a line-by-line reader, and the scan that checks and describes a file."""
