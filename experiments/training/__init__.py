"""What trains networks, and on which labels."""
