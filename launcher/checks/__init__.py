"""What is checked on the login node before a job is sent: config, site, data, disk, memory and time."""
