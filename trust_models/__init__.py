"""What is assumed of the other side and what is permitted: policy files in, frozen policies out; device side."""
