"""What each machine did in an outage, drawn."""
