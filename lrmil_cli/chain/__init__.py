"""The whole chain as steps with their command lines."""
