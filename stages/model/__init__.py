"""The prepared model: its bundle, its reference cases, and what every conversion is compared by."""
