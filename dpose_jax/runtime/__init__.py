"""What entry points share: flags, hosts, devices."""
