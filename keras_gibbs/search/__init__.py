"""Everything of EDropout: a population of subnetworks evolves while the network trains."""
