"""How the weights of a network fall into groups that live or die together."""
