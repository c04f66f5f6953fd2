"""What torch itself makes of a model: TorchScript, exported programs, int8."""
