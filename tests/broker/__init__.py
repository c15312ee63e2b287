"""Private RabbitMQ nodes for tests: started here, killed here, and nothing else is touched."""
