"""The shop's services, one module each. They know each other by their events only."""
