"""What a head learns besides classes: a number, or the time to an event. The mathematics, on arrays and tensors."""
