"""Files: uploads, scans of their rows and downloads."""
