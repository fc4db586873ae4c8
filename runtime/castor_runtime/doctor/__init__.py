"""What would keep a host from taking part in a job, found before it is started there."""
