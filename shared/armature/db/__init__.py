"""The control plane's database: tables, sessions, migrations and the job protocol."""
