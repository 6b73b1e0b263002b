"""Find out, from one forward pass, which layers write and read each hidden unit."""
