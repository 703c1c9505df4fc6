"""Check a job on the login node before it is sent: config, site, data, disk, memory and time."""
