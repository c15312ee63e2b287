"""The parts of the shop's demo: what goes in, what happens, and whether it adds up."""
