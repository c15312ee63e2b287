"""The services of the containment benchmark: two healthy ones and a sick one. An app finds them here."""
